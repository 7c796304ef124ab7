"""The module that holds what the package does not export."""
