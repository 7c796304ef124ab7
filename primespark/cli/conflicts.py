"""`primespark sync`: versions of documents that met, on the cloud's machine."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from primespark.cli.store import connect_store
from primespark.cloud.conflicts_api import describe
from primespark.core.settings import Settings
from primespark.errors import InvalidInputError
from primespark.store import conflicts
from primespark.store.database import available
from primespark.sync.documents import MAX_BYTES

_SHOWN = 1000
_SHOWN_CHARACTERS = 60


def list_conflicts(settings: Settings, include_resolved: bool, as_json: bool) -> None:
    """Print conflicts, oldest first."""
    with available(), connect_store(settings).begin() as connection:
        rows = conflicts.page(connection, 0, _SHOWN, only_open=not include_resolved)
    if as_json:
        typer.echo(json.dumps({"items": [describe(row) for row in rows], "next_cursor": None}))
        return
    table = Table(title="Conflicts")
    table.add_column("id", no_wrap=True)
    table.add_column("document", overflow="fold", min_width=20)
    for heading in ("the cloud has", "the device wrote", "winner"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        document = f"{row.scope}/{row.key}\n{row.strategy}, {row.opened_at:%Y-%m-%d %H:%M}"
        wrote = f"{row.device_id}\n{_short(row.device_version)}"
        table.add_row(str(row.conflict_id), document, _short(row.cloud_version), wrote, row.winner or "open")
    Console().print(table)


def resolve_conflict(settings: Settings, conflict_id: int, winner: str | None, value: str | None) -> None:
    """Decide a conflict and print what stands.

    Raises:
        InvalidInputError: The value is not a JSON object.
        PrimeSparkError: As `conflicts.resolve`.
    """
    parsed = None if value is None else _read_value(value)
    with available(), connect_store(settings).begin() as connection:
        change = conflicts.resolve(connection, conflict_id, f"shell:{getpass.getuser()}", winner=winner, value=parsed)
    typer.echo(f"{change.scope}/{change.key} is now {json.dumps(change.value)}")


def _read_value(given: str) -> dict[str, Any]:
    try:
        text = given
        if given.startswith("@"):
            with Path(given[1:]).open(encoding="utf-8") as file:
                text = file.read(MAX_BYTES + 1)
        parsed = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"--value: {error}", remedy="give a JSON object, or @FILE with one") from None
    if not isinstance(parsed, dict):
        raise InvalidInputError("--value is no JSON object", remedy="give a JSON object, or @FILE with one")
    return parsed


def _short(version: dict[str, Any]) -> str:
    text = json.dumps(version["value"]) if version["value"] else "deleted"
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
