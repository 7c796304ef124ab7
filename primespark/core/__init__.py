"""What every other room stands on: settings, logging, clocks, identifiers, manifests, the HTTP application factory."""
