"""Deleted documents: remembered until every active device has read that they are gone, then removed.

A device that has read less far than the newest tombstone removed may hold a document that is no more: it is told to
read everything anew. So how far each has read only decides when a tombstone goes, never whether a deletion holds.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, and_, cast, delete, func, select, true, update
from sqlalchemy.dialects.postgresql import JSONB

from primespark.errors import GoneError
from primespark.store import commands, documents, sync_log
from primespark.store.schema import device, document, round_
from primespark.sync.records import PullResponse

# How exactly a device's cursor is kept; more would be a write for every pull.
_CURSOR_INTERVAL = timedelta(seconds=10)


def pull(
    connection: Connection,
    device_id: str,
    cursor: int,
    limit: int,
    now: datetime,
    snapshot: int = 0,
    *,
    takes_commands: bool = True,
) -> PullResponse:
    """`documents.pull` and, where the device takes any, the commands between; notes how far the device has read.

    Raises:
        GoneError: Code `must_resync`: what was deleted after `cursor` is forgotten; cursor 0 reads everything. What was
            deleted before `snapshot` the device drops when it has read everything, so that may be forgotten.
    """
    page = documents.pull(connection, device_id, cursor, limit, snapshot)
    if takes_commands:
        page = commands.join(connection, page, device_id, cursor, snapshot, now)
    # After the page was read: a tombstone removed before that is missing in it, and counted in the watermark.
    known = connection.execute(
        select(round_.c.tombstone_watermark, device.c.cursor, device.c.cursor_at).select_from(
            round_.outerjoin(device, and_(true(), device.c.device_id == device_id))
        )
    ).one()
    if cursor and max(cursor, snapshot) < known.tombstone_watermark:
        raise GoneError(
            f"deletions after {cursor} are no longer known",
            remedy="read from cursor 0, and drop what is not there",
            code="must_resync",
        )
    # A clock that was ahead for a while leaves a time to come: what was noted then must not stand until that.
    if cursor != known.cursor and (known.cursor_at is None or abs(now - known.cursor_at) >= _CURSOR_INTERVAL):
        # A batch of the same device that is being applied holds the row: then the next pull notes it.
        free = select(device.c.device_id).where(device.c.device_id == device_id).with_for_update(skip_locked=True)
        connection.execute(update(device).where(device.c.device_id.in_(free)).values(cursor=cursor, cursor_at=now))
    return page


def collect(connection: Connection, now: datetime, age: timedelta, inactive_after: timedelta) -> int:
    """Remove tombstones older than `age` that every device seen within `inactive_after` has read of; how many."""
    if not _candidates(connection, now, age, inactive_after):
        return 0
    # Whoever writes a document reads it under this lock first.
    sync_log.lock(connection)
    removed = list(
        connection.execute(
            delete(document)
            .where(*_is_done(now, age, _read_by_all(connection, now, inactive_after)))
            .returning(document.c.log_seq)
        ).scalars()
    )
    if removed:
        highest = func.greatest(round_.c.tombstone_watermark, max(removed))
        connection.execute(update(round_).values(tombstone_watermark=highest))
    return len(removed)


def _candidates(connection: Connection, now: datetime, age: timedelta, inactive_after: timedelta) -> bool:
    done = _is_done(now, age, _read_by_all(connection, now, inactive_after))
    return connection.execute(select(document.c.key).where(*done).limit(1)).first() is not None


def _read_by_all(connection: Connection, now: datetime, inactive_after: timedelta) -> int:
    """How far every active device has read; one that never pulled begins with everything there is."""
    least = select(func.min(device.c.cursor)).where(
        device.c.key_sha256.is_not(None), device.c.last_seen_at >= now - inactive_after
    )
    cursor: int | None = connection.execute(least).scalar_one()
    return sync_log.newest(connection) if cursor is None else cursor


def _is_done(now: datetime, age: timedelta, read_to: int) -> list[ColumnElement[bool]]:
    return [
        document.c.value == cast({}, JSONB),
        document.c.updated_at < now - age,
        document.c.log_seq <= read_to,
    ]
