"""Commands to devices: issued, sent with what a device pulls, answered by facts of class `command_results`.

A device runs a command once, whatever is sent twice: it keeps the identity before it does anything. What it kept is
gone with its database, so what was sent to it before that is not sent again, but answered here as `interrupted`.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, insert, or_, select, update

from primespark.core.clock import utc_now
from primespark.core.values import storable_json
from primespark.errors import InvalidInputError, NotFoundError, OverloadedError, TooLargeError
from primespark.store import sync_log
from primespark.store.schema import command
from primespark.sync.records import Command, CommandResult, PulledChange, PullResponse

MAX_OPEN = 100
MAX_ARGUMENTS_BYTES = 4096
MAX_LIFETIME = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class IssuedCommand:
    """A command and what is known of it.

    Attributes:
        state: queued, delivered, succeeded, failed or expired.
        issued_by: Who asked for it.
        delivered_at: When it was first sent to the device.
        code: Why it failed.
        output: What it gave.
        position: In the order of issue.
    """

    command_id: str
    device_id: str
    name: str
    arguments: dict[str, Any]
    state: str
    issued_by: str
    issued_at: datetime
    expires_at: datetime
    delivered_at: datetime | None
    answered_at: datetime | None
    code: str | None
    message: str
    output: dict[str, Any]
    position: int


def issue(
    connection: Connection,
    device_id: str,
    name: str,
    arguments: dict[str, Any],
    issued_by: str,
    now: datetime,
    expires_at: datetime,
) -> IssuedCommand:
    """Tell a device to do something, once, before `expires_at`.

    Args:
        connection: In a transaction.
        device_id: Of an enrolled device.
        name: Of the command; the device says whether it knows and allows it.
        arguments: Of the command.
        issued_by: Who asks for it; kept with it.
        now: The present.
        expires_at: At most 7 days from now.

    Raises:
        InvalidInputError: Code `bad_expiry`, or `unstorable_value`.
        TooLargeError: Arguments over 4 KiB.
        OverloadedError: Code `too_many_commands`: as many wait for this device as may.
    """
    if not now < expires_at <= now + MAX_LIFETIME:
        raise InvalidInputError(
            "a command expires between now and 7 days from now", remedy="give such a time", code="bad_expiry"
        )
    if len(storable_json(arguments).encode()) > MAX_ARGUMENTS_BYTES:
        raise TooLargeError(f"arguments of more than {MAX_ARGUMENTS_BYTES} bytes", remedy="send less")
    sync_log.lock(connection)
    waiting = select(func.count()).where(command.c.device_id == device_id, _is_open(now))
    if connection.execute(waiting).scalar_one() >= MAX_OPEN:
        raise OverloadedError(
            f"{MAX_OPEN} commands wait for {device_id}",
            remedy="wait until they are answered or expired",
            code="too_many_commands",
        )
    command_id = uuid.uuid4().hex
    row = connection.execute(
        insert(command)
        .values(
            command_id=command_id, device_id=device_id, name=name, arguments=arguments, issued_by=issued_by,
            issued_at=now, expires_at=expires_at,
            log_seq=sync_log.append_command(connection, device_id, command_id),
        )
        .returning(command)
    ).one()  # fmt: skip
    return _issued(row, now)


def find(connection: Connection, device_id: str, command_id: str, now: datetime) -> IssuedCommand:
    """One command of a device.

    Raises:
        NotFoundError: Code `unknown_command`.
    """
    row = connection.execute(
        select(command).where(command.c.command_id == command_id, command.c.device_id == device_id)
    ).one_or_none()
    if row is None:
        raise NotFoundError(
            f"no command {command_id[:32]!r} of {device_id}", remedy="list those there are", code="unknown_command"
        )
    return _issued(row, now)


def page(connection: Connection, device_id: str, before: int | None, limit: int, now: datetime) -> list[IssuedCommand]:
    """Commands of a device, the newest first, issued before the one at position `before`."""
    statement = select(command).where(command.c.device_id == device_id).order_by(command.c.log_seq.desc()).limit(limit)
    if before is not None:
        statement = statement.where(command.c.log_seq < before)
    return [_issued(row, now) for row in connection.execute(statement)]


def join(
    connection: Connection, page: PullResponse, device_id: str, cursor: int, snapshot: int, now: datetime
) -> PullResponse:
    """A page of documents pulled from `cursor`, with the commands to the device that lie between, in commit order.

    They are at most `MAX_OPEN`, beyond the page's limit. Noted is that they were sent.
    """
    # With another snapshot than the device's, the page begins anew: its cursor is of a database restored since.
    after = cursor if page.snapshot == snapshot and cursor <= page.next_cursor else 0
    rows = connection.execute(
        select(command).where(
            command.c.device_id == device_id, _is_open(now),
            command.c.log_seq > after, command.c.log_seq <= page.next_cursor,
        )
    ).all()  # fmt: skip
    if not rows:
        return page
    new = [row.command_id for row in rows if row.delivered_at is None]
    if new:
        free = select(command.c.command_id).where(command.c.command_id.in_(new)).with_for_update(skip_locked=True)
        connection.execute(update(command).where(command.c.command_id.in_(free)).values(delivered_at=now))
    changes = [*page.changes, *(PulledChange(cursor=row.log_seq, change=_to_send(row, now)) for row in rows)]
    return page.model_copy(update={"changes": sorted(changes, key=lambda change: change.cursor)})


def answer(connection: Connection, device_id: str, results: Sequence[CommandResult], at: datetime) -> None:
    """Keep what became of commands of this device; the first answer stands, and one to no command is nothing."""
    for result in results:
        _answer(connection, [command.c.command_id == result.command_id], device_id, result, at)


def interrupt(connection: Connection, device_id: str) -> None:
    """Answer what was sent to a device and not answered yet: it may have been run, and is not to run twice."""
    interrupted = CommandResult(
        command_id="0" * 32, outcome="failed", code="interrupted",
        message="the device began anew before it answered; it may have been run",
    )  # fmt: skip
    _answer(connection, [command.c.delivered_at.is_not(None)], device_id, interrupted, utc_now())


def collect(connection: Connection, now: datetime, age: timedelta) -> int:
    """Remove commands that were answered, or expired, longer than `age` ago; how many."""
    ended = func.coalesce(command.c.answered_at, command.c.expires_at)
    # One whose answer is just coming holds its row: the next round removes it.
    old = select(command.c.command_id).where(ended < now - age).with_for_update(skip_locked=True)
    removed = connection.execute(
        delete(command).where(command.c.command_id.in_(old)).returning(command.c.command_id)
    ).all()
    return len(removed)


def _answer(
    connection: Connection, which: list[ColumnElement[bool]], device_id: str, result: CommandResult, at: datetime
) -> None:
    connection.execute(
        update(command)
        .where(*which, command.c.device_id == device_id, command.c.answered_at.is_(None))
        .values(answered_at=at, outcome=result.outcome, code=result.code, message=result.message, output=result.output)
    )


def _is_open(now: datetime) -> ColumnElement[bool]:
    """Not answered, and of use to send: one that was sent may have been lost on the way, and its device says so."""
    return and_(command.c.answered_at.is_(None), or_(command.c.delivered_at.is_not(None), command.c.expires_at > now))


def _to_send(row: Row[Any], now: datetime) -> Command:
    return Command(
        command_id=row.command_id, name=row.name, arguments=row.arguments, expires_at=row.expires_at,
        expires_in_s=(row.expires_at - now).total_seconds(),
    )  # fmt: skip


def _state(row: Row[Any], now: datetime) -> str:
    if row.outcome is not None:
        return str(row.outcome)
    if row.delivered_at is not None:
        return "delivered"
    return "queued" if row.expires_at > now else "expired"


def _issued(row: Row[Any], now: datetime) -> IssuedCommand:
    return IssuedCommand(
        command_id=row.command_id, device_id=row.device_id, name=row.name, arguments=row.arguments,
        state=_state(row, now), issued_by=row.issued_by, issued_at=row.issued_at, expires_at=row.expires_at,
        delivered_at=row.delivered_at, answered_at=row.answered_at, code=row.code, message=row.message,
        output=row.output, position=row.log_seq,
    )  # fmt: skip
