"""`primespark offline`: what the device on this machine holds for its cloud, asked of its API with its local key."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import typer
from rich.console import Console
from rich.table import Table

from primespark.core.paths import home
from primespark.core.settings import Settings
from primespark.embedded.probes import PLAIN_HTTP
from primespark.errors import NotFoundError, PrimeSparkError, UnavailableError

_TIMEOUT_S = 10.0
_PAGE = 1000
_LETTERS = "/api/v1/offline/dead-letters"


def show_status(settings: Settings, as_json: bool) -> None:
    """Print what waits, by stream."""
    status = ask(settings, "GET", "/api/v1/offline/status")
    if as_json:
        typer.echo(json.dumps(status))
        return
    link = "online" if status["online"] else "offline"
    table = Table(title=f"{status['pending']} wait, {status['bytes']} bytes; {link}; {status['dead_letters']} refused")
    for heading in ("stream", "priority", "waiting", "acknowledged up to", "lost"):
        table.add_column(heading)
    for name, stream in status["streams"].items():
        table.add_row(name, *(str(stream[field]) for field in ("priority", "pending", "acknowledged_seq", "lost")))
    Console().print(table)


def list_dead_letters(settings: Settings, as_json: bool) -> None:
    """Print what was refused for good."""
    items: list[dict[str, Any]] = []
    cursor: int | None = 0
    while cursor is not None:
        page = ask(settings, "GET", _LETTERS, {"cursor": cursor, "limit": _PAGE})
        items += page["items"]
        cursor = page["next_cursor"]
    if as_json:
        typer.echo(json.dumps({"items": items, "next_cursor": None}))
        return
    table = Table(title="Dead letters")
    for heading in ("number", "stream", "seq", "code", "at", "bytes"):
        table.add_column(heading)
    for item in items:
        table.add_row(*(str(item[field]) for field in ("id", "stream", "seq", "code", "at", "bytes")))
    Console().print(table)


def show_dead_letter(settings: Settings, number: int) -> None:
    """Print one with its record."""
    typer.echo(json.dumps(ask(settings, "GET", f"{_LETTERS}/{number}"), indent=2))


def replay_dead_letter(settings: Settings, number: int) -> None:
    """Send one again."""
    answer = ask(settings, "POST", f"{_LETTERS}/{number}/replay")
    typer.echo(f"waits for the cloud again, number {answer['seq']} of its stream")


def discard_dead_letter(settings: Settings, number: int) -> None:
    """Drop one."""
    ask(settings, "POST", f"{_LETTERS}/{number}/discard")


def ask(settings: Settings, method: str, path: str, params: dict[str, int] | None = None) -> dict[str, Any]:
    """What the device on this machine answers.

    Raises:
        NotFoundError: There is no device here.
        UnavailableError: It does not run.
    """
    edge = settings.edge
    key_file = home() / "edge" / edge.device_id / "local.key"
    try:
        key = key_file.read_text()
    except OSError as error:
        raise NotFoundError(
            f"no key of device {edge.device_id} here: {error.strerror}",
            remedy="run this on the device, with its settings, as the user it runs as",
        ) from None
    host = f"[{edge.host}]" if ":" in edge.host else edge.host
    try:
        answer = httpx2.request(
            method, f"http://{host}:{edge.port}{path}", params=params, headers={"Authorization": f"Bearer {key}"},
            timeout=_TIMEOUT_S, trust_env=False, verify=PLAIN_HTTP,
        )  # fmt: skip
    except httpx2.HTTPError as error:
        raise UnavailableError(
            f"device {edge.device_id} does not answer: {error}", remedy="start it: primespark edge"
        ) from None
    body: dict[str, Any] = answer.json() if answer.content else {}
    if answer.is_success:
        return body
    raise PrimeSparkError(body.get("detail", f"HTTP {answer.status_code}"), remedy=body.get("remedy", ""))
