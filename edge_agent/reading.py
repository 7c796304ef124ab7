"""How far the device has read what the cloud holds, and what it drops because the cloud no longer shows it.

A reading from the beginning is a snapshot: what it did not come across is dropped when it ends. The device says with
each pull at which position of the log its snapshot began, so deletions that were forgotten before that matter no more.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from enum import StrEnum

from edge_agent.schema import forget_meta, read_meta, read_number, write_meta
from primespark.core.identifiers import group_scope
from primespark.sync.records import PullResponse

_CURSOR, _SNAPSHOT, _GROUPS = "cursor", "snapshot", "groups"
_NUMBER, _SWEEP = "reading", "sweep"


class Sweep(StrEnum):
    """What a reading from the beginning drops where it did not come across it.

    `SHARED` leaves the device's own documents: a cloud that is another one, or was lost, has none of them.
    """

    ALL = "all"
    SHARED = "shared"


@dataclass(frozen=True, slots=True)
class Position:
    """What a device says of itself when it pulls.

    Attributes:
        cursor: How far it has read the log.
        snapshot: Where the log was when it last began from the beginning.
        groups: Those it knows to be in, in order of name.
    """

    cursor: int
    snapshot: int
    groups: tuple[str, ...]


def position(connection: sqlite3.Connection) -> Position:
    """Where the device is."""
    return Position(
        read_number(connection, _CURSOR),
        read_number(connection, _SNAPSHOT),
        tuple(json.loads(read_meta(connection, _GROUPS) or "[]")),
    )


def number(connection: sqlite3.Connection) -> int:
    """That of the present reading, which a document bears that since then the cloud has shown or the device written."""
    return read_number(connection, _NUMBER)


def begin(connection: sqlite3.Connection, sweep: Sweep) -> None:
    """Read from the beginning; one under way that drops all still does."""
    write_meta(connection, _CURSOR, 0)
    write_meta(connection, _NUMBER, number(connection) + 1)
    if read_meta(connection, _SWEEP) != Sweep.ALL:
        write_meta(connection, _SWEEP, sweep)


def came_across(connection: sqlite3.Connection, scope: str, key: str) -> None:
    """The cloud has this document."""
    present = number(connection)
    connection.execute(
        "UPDATE document SET seen = ? WHERE scope = ? AND key = ? AND seen <> ?", (present, scope, key, present)
    )


def advance(connection: sqlite3.Connection, device_id: str, page: PullResponse) -> bool:
    """Note that a page was taken, whose documents the device has come across; whether it dropped any.

    One that joined a group reads from the beginning, since what the group has lies before the cursor; and it drops all
    it does not come across then, as its own documents may be deleted and forgotten meanwhile.
    """
    here = position(connection)
    if here.cursor != page.next_cursor:
        write_meta(connection, _CURSOR, page.next_cursor)
    if page.snapshot is not None and page.snapshot != here.snapshot:
        write_meta(connection, _SNAPSHOT, page.snapshot)
    dropped = 0
    if not page.has_more and read_meta(connection, _SWEEP) is not None:
        dropped += _drop_unseen(connection, device_id)
        forget_meta(connection, _SWEEP)
    if page.groups is not None and tuple(page.groups) != here.groups:
        write_meta(connection, _GROUPS, json.dumps(page.groups))
        for name in set(here.groups) - set(page.groups):
            dropped += connection.execute("DELETE FROM document WHERE scope = ?", (group_scope(name),)).rowcount
        # From the beginning is what this page was read from.
        if here.cursor and set(page.groups) - set(here.groups):
            begin(connection, Sweep.ALL)
    return dropped > 0


def _drop_unseen(connection: sqlite3.Connection, device_id: str) -> int:
    """What waits to be sent stays, and so does what was written or sent since the reading began."""
    kept_scope = device_id if read_meta(connection, _SWEEP) == Sweep.SHARED else ""
    return connection.execute(
        "DELETE FROM document WHERE dirty = 0 AND seen <> ? AND scope <> ?", (number(connection), kept_scope)
    ).rowcount
