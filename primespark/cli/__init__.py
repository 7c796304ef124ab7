"""The `primespark` command."""
