"""Dagster's command line for the code server, which makes the schema of a new DAGSTER_HOME before it listens.

It also reads Dagster's migrations once, not for each tick.

The first process on a new home must be alone: several that create the SQLite schema at once leave it with two heads.
In a process of its own the schema costs 1.2 s of Python's and Dagster's start.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

import dagster as dg
from alembic.config import Config
from alembic.script import ScriptDirectory

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


def keep_migrations() -> None:
    """Let Alembic keep the folders of migrations that it read; none of them changes while a process runs.

    Dagster opens its storage anew for each tick of a sensor and asks which migration is the newest, for which Alembic
    reads and executes all of them: more than half of what a tick costs here.
    """
    read, kept = ScriptDirectory.from_config, dict[tuple[Any, Any], ScriptDirectory]()

    def from_config(config: Config) -> ScriptDirectory:
        key = (config.config_file_name, config.get_main_option("script_location"))
        if key not in kept:
            kept[key] = read(config)
        return kept[key]

    ScriptDirectory.from_config = from_config  # type: ignore[method-assign]


if __name__ == "__main__":
    keep_migrations()
    make_schema(Path(os.environ["DAGSTER_HOME"]))
    runpy.run_module("dagster", run_name="__main__", alter_sys=True)
