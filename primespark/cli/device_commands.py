"""`primespark device command` and `commands`: tell devices what to do, on the cloud's machine."""

from __future__ import annotations

import getpass
import json
from datetime import timedelta
from typing import Any

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine

from primespark.cli.devices import parse_duration
from primespark.cli.store import connect_store
from primespark.cloud.commands_api import describe
from primespark.core.clock import utc_now
from primespark.core.settings import Settings
from primespark.errors import InvalidInputError, PermanentError
from primespark.store import commands, devices, sync_log
from primespark.store.database import Listener, available
from primespark.sync.records import CommandName

_SHOWN = 100
# What a device had when the command expired may still be on its way.
_GRACE = timedelta(seconds=30)
# A notification that was missed is made up for after this.
_LOOK_EVERY_S = 5.0


def send_command(
    settings: Settings, device_id: str, name: str, arguments: list[str], expires: str, is_waited_for: bool
) -> None:
    """Issue a command and print its id; waited for, print its output once it has succeeded.

    Raises:
        InvalidInputError: A name, an argument or a duration that is none.
        PermanentError: Code `command_failed`: waited for, and it failed or expired.
        PrimeSparkError: As `commands.issue`.
    """
    _check_name(name)
    given, lifetime = _parse_arguments(arguments), parse_duration(expires)
    with available():
        engine = connect_store(settings)
        with engine.begin() as connection:
            devices.find(connection, device_id)
            now = utc_now()
            by = f"shell:{getpass.getuser()}"
            issued = commands.issue(connection, device_id, name, given, by, now, now + lifetime)
        typer.echo(issued.command_id)
        if is_waited_for:
            _show_outcome(_until_answered(engine, issued))


def list_commands(settings: Settings, device_id: str, as_json: bool) -> None:
    """Print the newest commands of a device."""
    with available(), connect_store(settings).begin() as connection:
        devices.find(connection, device_id)
        rows = commands.page(connection, device_id, None, _SHOWN, utc_now())
    if as_json:
        typer.echo(json.dumps({"items": [describe(row) for row in rows], "next_cursor": None}))
        return
    table = Table(title=f"Commands to {device_id}")
    table.add_column("id", no_wrap=True)
    for heading in ("command", "state", "issued"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        state = f"{row.state} ({row.code})" if row.code else row.state
        table.add_row(row.command_id, row.name, state, f"{row.issued_at:%Y-%m-%d %H:%M:%S}\n{row.issued_by}")
    Console().print(table)


def _until_answered(engine: Engine, issued: commands.IssuedCommand) -> commands.IssuedCommand:
    listener = Listener(engine, sync_log.CHANNEL)
    try:
        while True:
            with engine.begin() as connection:
                now = utc_now()
                found = commands.find(connection, issued.device_id, issued.command_id, now)
            until = found.expires_at + (_GRACE if found.state == "delivered" else timedelta(0))
            if found.answered_at is not None or now >= until:
                return found
            listener.wait(min(_LOOK_EVERY_S, (until - now).total_seconds()))
    finally:
        listener.close()


def _show_outcome(found: commands.IssuedCommand) -> None:
    if found.state != "succeeded":
        cause = f": {found.code}: {found.message}" if found.code else ""
        raise PermanentError(
            f"{found.name} at {found.device_id} is {found.state}{cause}",
            remedy=f"see `primespark device commands {found.device_id}`",
            code="command_failed",
        )
    typer.echo(json.dumps(found.output, indent=2))


def _check_name(name: str) -> None:
    try:
        TypeAdapter(CommandName).validate_python(name)
    except ValidationError:
        raise InvalidInputError(
            f"not a name of a command: {name[:63]!r}", remedy="write it in small letters, as sync_now"
        ) from None


def _parse_arguments(given: list[str]) -> dict[str, Any]:
    parsed = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise InvalidInputError(f"not an argument: {text[:60]!r}", remedy="write KEY=VALUE")
        try:
            parsed[key] = json.loads(value)
        except (ValueError, RecursionError):
            parsed[key] = value
    return parsed
