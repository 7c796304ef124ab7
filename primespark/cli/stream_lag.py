"""`primespark streams lag`: how far the stream workers are behind, for a person."""

from __future__ import annotations

import json
import logging
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from primespark.cli.cells import plain
from primespark.cli.services import run_room
from primespark.core.paths import home
from primespark.core.settings import Settings
from primespark.embedded.stack import broker_address


def show_lag(settings: Settings, as_json: bool) -> None:
    """Print each partition's offsets, and who reads it.

    Raises:
        ConfigurationError: No broker is set and `up` does not run.
        UnavailableError: The broker does not answer.
    """
    # What it logs of a broker that is not there is told once, by the error.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    report = run_room("streams-lag", "streams", _with_broker(settings))
    if as_json:
        typer.echo(json.dumps(report))
    else:
        print_lag(Console(), report)


def print_lag(console: Console, report: dict[str, Any]) -> None:
    """Print a row for each partition, and the sum."""
    table = Table(title="Stream workers", show_footer=True)
    table.add_column("topic", footer="in all")
    for name, footer in (("partition", ""), ("end", ""), ("committed", ""), ("lag", str(report["lag"]))):
        table.add_column(name, justify="right", footer=footer)
    table.add_column("member", footer=_count(len(report["members"])))
    for row in report["partitions"]:
        committed = "none" if row["committed_offset"] is None else str(row["committed_offset"])
        table.add_row(
            row["topic"], str(row["partition"]), str(row["end_offset"]), committed, str(row["lag"]),
            plain(row["member"] or "nobody"),
        )  # fmt: skip
    console.print(table)
    for topic in report["missing_topics"]:
        console.print(f"{topic} is not there yet", markup=False)
    if not report["members"]:
        console.print("  try: primespark streams, which starts a worker")


def _count(members: int) -> str:
    return "1 member" if members == 1 else f"{members} members"


def _with_broker(settings: Settings) -> Settings:
    """With the broker that `primespark up` runs here where none is set."""
    kafka = settings.cloud.kafka
    address = broker_address(home()) if kafka.bootstrap_servers is None else None
    if address is None:
        return settings
    kafka = kafka.model_copy(update={"bootstrap_servers": address, "embedded": True})
    return settings.model_copy(update={"cloud": settings.cloud.model_copy(update={"kafka": kafka})})
