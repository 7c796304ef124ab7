"""The log of everything that came in, in commit order: whoever reads up to a `log_seq` has missed nothing below it.

A sequence alone would not do: of two transactions the one with the lower number may commit later, and a reader would
skip it. So numbers are taken under one advisory lock that is held until commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, and_, func, insert, select, text, tuple_

from primespark.store.schema import log
from primespark.sync.records import DataClass

CHANNEL = "sync_log"
FACTS = "facts"
DOCUMENT = "document"
COMMAND = "command"
_LOCK = 7_301_002
# One message to the server: of several, all other batches would wait until each is answered, and the next one sent.
_APPEND_FACTS = text(
    "SELECT pg_advisory_xact_lock(:lock);"
    " INSERT INTO sync.log (kind, received_at, data_class, device_id, epoch, batch_seq, stream, seq_from, seq_to, rows,"
    " time_from, time_to)"
    " SELECT :kind, CAST(:received_at AS timestamptz), given.* FROM unnest("
    " CAST(:data_class AS text[]), CAST(:device_id AS text[]), CAST(:epoch AS bigint[]), CAST(:batch_seq AS bigint[]),"
    " CAST(:stream AS text[]), CAST(:seq_from AS bigint[]), CAST(:seq_to AS bigint[]), CAST(:rows AS integer[]),"
    " CAST(:time_from AS timestamptz[]), CAST(:time_to AS timestamptz[])) AS given;"
    " SELECT pg_notify(:channel, :kind)"
)


@dataclass(frozen=True, slots=True)
class FactRange:
    """Facts of one batch, stream and class, as one row of the log."""

    data_class: str
    device_id: str
    epoch: int
    batch_seq: int
    stream: str
    seq_from: int
    seq_to: int
    rows: int
    time_from: datetime
    time_to: datetime


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """What came in of one data class.

    Attributes:
        log_from: Its first row of the log.
        log_to: Its last.
        devices: Whose facts came; of documents, the scopes.
        batches: In how many batches; 0 of documents.
        rows: Facts, or changes of documents.
        documents: How many of them changed; 0 of facts.
        time_from: The earliest time of a fact; when the first change of a document came.
        time_to: The latest.
    """

    log_from: int
    log_to: int
    devices: tuple[str, ...]
    batches: int
    rows: int
    documents: int
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
    columns = {name: [getattr(entry, name) for entry in ranges] for name in FactRange.__slots__}
    fixed = {"lock": _LOCK, "kind": FACTS, "received_at": received_at, "channel": CHANNEL}
    connection.execute(_APPEND_FACTS, columns | fixed)


def append_document(connection: Connection, data_class: str, scope: str, key: str) -> int:
    """A row about a change of a document, and a notification at commit; its `log_seq`."""
    return _append_one(connection, DOCUMENT, data_class, scope, key)


def append_command(connection: Connection, device_id: str, command_id: str) -> int:
    """A row about a command to a device, and a notification at commit; its `log_seq`."""
    return _append_one(connection, COMMAND, DataClass.COMMANDS, device_id, command_id)


def _append_one(connection: Connection, kind: str, data_class: str, scope: str, key: str) -> int:
    lock(connection)
    log_seq: int = connection.execute(
        insert(log).values(kind=kind, data_class=data_class, rows=1, scope=scope, key=key).returning(log.c.log_seq)
    ).scalar_one()
    wake(connection, scope)
    return log_seq


def summarise(connection: Connection, after: int, limit: int) -> LogSummary:
    """What the log says after `after`, in about `limit` rows: it ends with a whole batch, so none is counted twice."""
    end = _page_end(connection, after, limit)
    if end is None:
        return LogSummary(after, {})
    batch = tuple_(log.c.device_id, log.c.epoch, log.c.batch_seq)
    is_document = log.c.kind == DOCUMENT
    rows = connection.execute(
        select(
            log.c.data_class,
            func.min(log.c.log_seq),
            func.max(log.c.log_seq),
            func.array_agg(func.coalesce(log.c.device_id, log.c.scope).distinct()),
            func.count(batch.distinct()).filter(log.c.kind == FACTS),
            func.sum(log.c.rows),
            func.count(tuple_(log.c.scope, log.c.key).distinct()).filter(is_document),
            func.min(func.coalesce(log.c.time_from, log.c.received_at)),
            func.max(func.coalesce(log.c.time_to, log.c.received_at)),
        )
        .where(log.c.log_seq > after, log.c.log_seq <= end)
        .group_by(log.c.data_class)
        .order_by(log.c.data_class)
    )
    classes = {
        name: ClassSummary(log_from, log_to, tuple(sorted(devices)), batches, int(total), documents, time_from, time_to)
        for name, log_from, log_to, devices, batches, total, documents, time_from, time_to in rows
    }
    return LogSummary(end, classes)


def _page_end(connection: Connection, after: int, limit: int) -> int | None:
    """The last row of the page, moved on to the last row of its batch; None when nothing came in."""
    page = select(log.c.log_seq).where(log.c.log_seq > after).order_by(log.c.log_seq).limit(limit).subquery()
    end: int | None = connection.execute(select(func.max(page.c.log_seq))).scalar_one()
    if end is None:
        return None
    last, other = log.alias(), log.alias()
    whole: int | None = connection.execute(
        select(func.max(other.c.log_seq))
        .join_from(
            last,
            other,
            and_(
                other.c.device_id == last.c.device_id,
                other.c.epoch == last.c.epoch,
                other.c.batch_seq == last.c.batch_seq,
            ),
        )
        .where(last.c.log_seq == end)
    ).scalar_one()
    return end if whole is None else whole


def wake(connection: Connection, scope: str) -> None:
    """Wake who waits for documents of `scope`, or commands to it, at commit, whether or not the log grows."""
    connection.execute(text("SELECT pg_notify(:channel, :topic)"), {"channel": CHANNEL, "topic": topic_of(scope)})


def topic_of(scope: str) -> str:
    """What a notification about documents of `scope` and commands to it says; one about facts says `FACTS`."""
    return f"{DOCUMENT}:{scope}"
