"""Event-time windows as a pure library: rules, watermarks, mergeable aggregates, the engine; no I/O and no clock."""
