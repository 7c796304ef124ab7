"""The log of everything that came in, in commit order: whoever reads up to a `log_seq` has missed nothing below it.

A sequence alone would not do: of two transactions the one with the lower number may commit later, and a reader would
skip it. So numbers are taken under one advisory lock that is held until commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, insert, select, text

from primespark.store.schema import log

CHANNEL = "sync_log"
FACTS = "facts"
DOCUMENT = "document"
_LOCK = 7_301_002


@dataclass(frozen=True, slots=True)
class FactRange:
    """Facts of one batch, stream and class, as one row of the log."""

    data_class: str
    device_id: str
    epoch: int
    stream: str
    seq_from: int
    seq_to: int
    rows: int
    time_from: datetime
    time_to: datetime


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """What came in of one data class."""

    log_from: int
    log_to: int
    devices: tuple[str, ...]
    batches: int
    rows: int
    time_from: datetime
    time_to: datetime


@dataclass(frozen=True, slots=True)
class LogSummary:
    """What came in after a cursor, by data class; `next_cursor` is where to go on."""

    next_cursor: int
    classes: dict[str, ClassSummary]


def lock(connection: Connection) -> None:
    """Be the only writer of log, documents and labels until commit; take it after all other locks."""
    connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))


def newest(connection: Connection) -> int:
    """The highest `log_seq`; 0 in an empty log."""
    return int(connection.execute(select(func.coalesce(func.max(log.c.log_seq), 0))).scalar_one())


def append_facts(connection: Connection, ranges: Sequence[FactRange], received_at: datetime) -> None:
    """One row for each range, and one notification at commit."""
    if not ranges:
        return
    lock(connection)
    for entry in ranges:
        connection.execute(
            insert(log).values(
                kind=FACTS, data_class=entry.data_class, device_id=entry.device_id, epoch=entry.epoch,
                stream=entry.stream, seq_from=entry.seq_from, seq_to=entry.seq_to, rows=entry.rows,
                time_from=entry.time_from, time_to=entry.time_to, received_at=received_at,
            )
        )  # fmt: skip
    _notify(connection)


def append_document(connection: Connection, data_class: str, scope: str, key: str) -> int:
    """A row about a change of a document, and a notification at commit; its `log_seq`."""
    lock(connection)
    log_seq: int = connection.execute(
        insert(log).values(kind=DOCUMENT, data_class=data_class, rows=1, scope=scope, key=key).returning(log.c.log_seq)
    ).scalar_one()
    _notify(connection)
    return log_seq


def summarise(connection: Connection, after: int, limit: int) -> LogSummary:
    """Facts in the first `limit` rows of the log after `after`."""
    page = select(log).where(log.c.log_seq > after).order_by(log.c.log_seq).limit(limit).subquery()
    end = connection.execute(select(func.max(page.c.log_seq))).scalar_one()
    if end is None:
        return LogSummary(after, {})
    rows = connection.execute(
        select(
            page.c.data_class,
            func.min(page.c.log_seq),
            func.max(page.c.log_seq),
            func.array_agg(page.c.device_id.distinct()),
            func.count(),
            func.sum(page.c.rows),
            func.min(page.c.time_from),
            func.max(page.c.time_to),
        )
        # Rows that came since `end` was read must wait for the next cursor.
        .where(page.c.kind == FACTS, page.c.log_seq <= end)
        .group_by(page.c.data_class)
        .order_by(page.c.data_class)
    )
    classes = {
        name: ClassSummary(log_from, log_to, tuple(sorted(devices)), batches, int(total), time_from, time_to)
        for name, log_from, log_to, devices, batches, total, time_from, time_to in rows
    }
    return LogSummary(end, classes)


def _notify(connection: Connection) -> None:
    connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": CHANNEL})
