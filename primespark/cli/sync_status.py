"""`primespark sync status`: how the device on this machine stands with its cloud, for a person."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from primespark.cli.offline import ask
from primespark.core.settings import Settings


def show_sync(settings: Settings, as_json: bool) -> None:
    """Print both directions and what waits, by stream."""
    status, queue = ask(settings, "GET", "/api/v1/sync/status"), ask(settings, "GET", "/api/v1/offline/status")
    if as_json:
        typer.echo(json.dumps({**status, "streams": queue["streams"]}))
        return
    print_sync(Console(), status, queue, datetime.now(UTC))


def print_sync(console: Console, status: dict[str, Any], queue: dict[str, Any], now: datetime) -> None:
    """Print the device's two answers as tables."""
    table = Table(title=f"Synchronisation: {status['phase']}", show_header=False)
    for name, value in _lines(status, queue, now):
        table.add_row(name, value)
    console.print(table)
    waiting = {name: stream for name, stream in queue["streams"].items() if stream["pending"]}
    if waiting:
        streams = Table("stream", "priority", "waiting", "acknowledged up to", title="What waits")
        for name, stream in sorted(waiting.items(), key=lambda entry: -entry[1]["pending"]):
            behind = " (backlog)" if stream["is_behind"] else ""
            streams.add_row(name, stream["priority"], f"{stream['pending']}{behind}", str(stream["acknowledged_seq"]))
        console.print(streams)


def _lines(status: dict[str, Any], queue: dict[str, Any], now: datetime) -> Iterator[tuple[str, str]]:
    push, link = status["push"], status["link"]
    if status["cause"]:
        yield "why", f"{status['code']}: {status['cause']}"
    if status["remedy"]:
        yield "try", status["remedy"]
    if link is not None:
        yield "link", f"{link['state']}, for {_span(now - datetime.fromisoformat(link['since']))}"
    yield "last exchange", _ago(status["last_contact_at"], now)
    yield "last sent", _ago(push["last_at"], now)
    yield "last received", _ago(status["pull"]["last_at"], now)
    yield "waiting", f"{push['pending']} facts, {queue['bytes'] / 1024:.0f} KiB"
    yield "pace", f"{push['records_per_s']:.1f} records/s in the last minute"
    if push["pending"]:
        left = push["eta_s"]
        yield "done in", "not while nothing goes" if left is None else f"{_span(timedelta(seconds=left))} at this pace"
    if queue["dead_letters"]:
        yield "refused", f"{queue['dead_letters']}: primespark offline dead-letters"
    if status["clock_offset_s"] is not None:
        yield "clock", f"{status['clock_offset_s']:+.1f} s against the cloud's"


def _ago(moment: str | None, now: datetime) -> str:
    return "never since the start" if moment is None else f"{_span(now - datetime.fromisoformat(moment))} ago"


def _span(time: timedelta) -> str:
    seconds = max(int(time.total_seconds()), 0)
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
