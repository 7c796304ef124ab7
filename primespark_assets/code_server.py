"""Dagster's command line for the code server, which makes the schema of a new DAGSTER_HOME before it listens.

The first process on a new home must be alone: several that create the SQLite schema at once leave it with two heads.
In a process of its own the schema costs 1.2 s of Python's and Dagster's start.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import dagster as dg

SCHEMA_STAMP = "schema.complete"


def make_schema(home: Path) -> None:
    """Make the tables of runs, events and schedules in DAGSTER_HOME `home`, and a stamp once all are there."""
    stamp = home / SCHEMA_STAMP
    if stamp.exists():
        return
    with dg.DagsterInstance.get() as instance:
        instance.get_runs_count()
        instance.all_instigator_state()
    stamp.touch()


if __name__ == "__main__":
    make_schema(Path(os.environ["DAGSTER_HOME"]))
    runpy.run_module("dagster", run_name="__main__", alter_sys=True)
