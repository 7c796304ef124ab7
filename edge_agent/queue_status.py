"""What the queue holds, read in one transaction."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass

from edge_agent.priority import Priority
from edge_agent.schema import RESTORED_AT, read_meta, read_number
from edge_agent.streams import LANES, bounds
from edge_agent.uploads import rows as upload_rows
from edge_agent.uploads.rows import UploadTotals


@dataclass(frozen=True, slots=True)
class StreamState:
    """How far a stream has come."""

    last_seq: int
    acknowledged_seq: int
    lost: int
    pending: int
    priority: str
    is_behind: bool


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """What the queue holds."""

    pending: int
    bytes: int
    epoch: int | None
    replayed_batches: int
    dead_letters: int
    cloud_restored_at: str | None
    uploads: UploadTotals
    streams: dict[str, StreamState]


@dataclass(frozen=True, slots=True)
class Waiting:
    """One operation that waits."""

    id: int
    stream: str
    seq: int
    data_class: str
    time: str
    bytes: int


def read_totals(connection: sqlite3.Connection) -> tuple[int, int]:
    """How many operations wait, and their bytes."""
    pending, used = connection.execute(
        "SELECT coalesce(sum(pending), 0), coalesce(sum(bytes), 0) FROM stream"
    ).fetchone()
    return int(pending), int(used)


def read_status(connection: sqlite3.Connection) -> QueueStatus:
    """What waits and how far each stream has come."""
    pending, used = read_totals(connection)
    rows = connection.execute(
        "SELECT name, last_seq, acknowledged_seq, lost, pending, rank, is_behind FROM stream ORDER BY name"
    )
    (dead_letters,) = connection.execute("SELECT count(*) FROM dead_letter").fetchone()
    return QueueStatus(
        pending=pending,
        bytes=used,
        epoch=read_number(connection, "epoch") or None,
        replayed_batches=read_number(connection, "replayed_batches"),
        dead_letters=int(dead_letters),
        cloud_restored_at=read_meta(connection, RESTORED_AT),
        uploads=upload_rows.totals(connection),
        streams={
            name: StreamState(last_seq, acknowledged_seq, lost, pending, list(Priority)[rank].value, bool(is_behind))
            for name, last_seq, acknowledged_seq, lost, pending, rank, is_behind in rows
        },
    )


def read_oldest_time(connection: sqlite3.Connection) -> str | None:
    """The time of the fact that came first of all that wait."""
    # Within a lane the first came first.
    firsts = []
    for lane in range(LANES):
        first, end = bounds(lane)
        firsts += connection.execute(
            "SELECT tail FROM operation WHERE id >= ? AND id < ? ORDER BY id LIMIT 1", (first, end)
        ).fetchall()
    return min((str(json.loads(b"{" + tail)["time"]) for (tail,) in firsts), default=None)


def read_waiting(connection: sqlite3.Connection, after: int, limit: int) -> list[Waiting]:
    """Operations that wait, in the order of their lanes, after the one with id `after`."""
    rows = connection.execute(
        "SELECT id, stream, seq, tail FROM operation WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
    ).fetchall()
    found = []
    for id_, stream, seq, tail in rows:
        fact = json.loads(b"{" + tail)
        found.append(Waiting(id_, stream, seq, fact["data_class"], fact["time"], len(tail)))
    return found
