"""Data that devices pushed, as assets the graph begins with."""
