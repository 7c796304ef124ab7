"""`primespark lineage`: where a stored fact comes from, on the cloud's machine."""

from __future__ import annotations

import json

import typer
from rich.console import Console
from rich.table import Table

from primespark.cli.store import connect_store
from primespark.core.settings import Settings
from primespark.store import lineage
from primespark.store.database import available


def show(settings: Settings, device_id: str, stream: str, seq: int, epoch: int | None, as_json: bool) -> None:
    """Print a fact's lineage.

    Raises:
        NotFoundError: No such fact.
    """
    with available(), connect_store(settings).begin() as connection:
        found = lineage.trace(connection, device_id, stream, seq, epoch).to_json()
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table(title=f"{device_id} {stream} {seq}", show_header=False)
    for name, value in found.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for part, text in parts:
            table.add_row(f"{name} {part}".strip(), "unknown" if text is None else str(text))
    Console().print(table)
