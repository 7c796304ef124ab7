"""`primespark device`: tokens and devices, on the cloud's machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection

from primespark.cli.store import connect_store
from primespark.core.identifiers import GroupName
from primespark.core.settings import Settings
from primespark.errors import InvalidInputError
from primespark.store import devices, groups
from primespark.store.database import available

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def make_token(settings: Settings, uses: int, ttl: str) -> str:
    """A new enrolment token."""
    lifetime = parse_duration(ttl)
    with _transaction(settings) as connection:
        return devices.create_token(connection, uses, lifetime)


def list_devices(settings: Settings, as_json: bool) -> None:
    """Print the enrolled devices."""
    with _transaction(settings) as connection:
        rows = devices.list_devices(connection)
    if as_json:
        items = [
            {
                "device_id": row.device_id,
                "epoch": row.epoch,
                "enrolled_at": row.enrolled_at.isoformat(),
                "last_seen_at": row.last_seen_at.isoformat() if row.last_seen_at else None,
                "overdue_since": row.overdue_since.isoformat() if row.overdue_since else None,
                "groups": list(row.groups),
            }
            for row in rows
        ]
        typer.echo(json.dumps({"items": items, "next_cursor": None}))
        return
    table = Table(title="Devices")
    for heading in ("device", "groups", "epoch", "enrolled", "last seen", "overdue since"):
        table.add_column(heading)
    for row in rows:
        seen, overdue = _moment(row.last_seen_at, "never"), _moment(row.overdue_since, "")
        named = ", ".join(row.groups)
        table.add_row(row.device_id, named, str(row.epoch), _moment(row.enrolled_at), seen, overdue)
    Console().print(table)


def forget_device(settings: Settings, device_id: str) -> None:
    """Revoke a device's key."""
    with _transaction(settings) as connection:
        devices.forget(connection, device_id)
    typer.echo(f"{device_id} is forgotten; its key no longer opens anything")


def join_group(settings: Settings, device_id: str, group: str) -> None:
    """Make a device a member of a group."""
    name = _group(group)
    with _transaction(settings) as connection:
        is_new = groups.join(connection, device_id, name)
    typer.echo(f"{device_id} is in {name}" if is_new else f"{device_id} was in {name} before")


def leave_group(settings: Settings, device_id: str, group: str) -> None:
    """End a membership."""
    with _transaction(settings) as connection:
        groups.leave(connection, device_id, _group(group))
    typer.echo(f"{device_id} is not in {group} any more")


def rotate_device(settings: Settings, device_id: str) -> str:
    """A new key for a device."""
    with _transaction(settings) as connection:
        return devices.rotate(connection, device_id)


def parse_duration(text: str) -> timedelta:
    """`90s`, `15m`, `1h` or `7d`.

    Raises:
        InvalidInputError: Anything else, or nothing.
    """
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None or int(match[1]) == 0:
        raise InvalidInputError(f"not a duration: {text!r}", remedy="write 90s, 15m, 1h or 7d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _group(name: str) -> str:
    try:
        return TypeAdapter(GroupName).validate_python(name)
    except ValidationError:
        raise InvalidInputError(f"not a group: {name!r}", remedy="1 to 63 of a-z, 0-9 and '-'") from None


def _moment(moment: datetime | None, none: str = "") -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else none


@contextmanager
def _transaction(settings: Settings) -> Iterator[Connection]:
    with available(), connect_store(settings).begin() as connection:
        yield connection
