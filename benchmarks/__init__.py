"""Figures the project promises, each a ratio to a peer or a limit taken in the same run: `python -m benchmarks`."""
