"""`primespark demo`: the closed loop, run once through the real processes, and measured."""

from primespark.cli.demo.command import run_demo

__all__ = ["run_demo"]
