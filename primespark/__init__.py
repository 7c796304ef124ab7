"""Prime Spark: run AI on a fleet of small computers, survive without a network, learn with a cloud."""

from importlib.metadata import version

__version__ = version("primespark")

__all__ = ["__version__"]
