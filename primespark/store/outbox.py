"""The outbox: what the relay still has to publish, and the lease that lets only one relay do it."""

from __future__ import annotations

import select
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

import psycopg2
from sqlalchemy import Connection, Engine, Row, func, text
from sqlalchemy import select as query
from sqlalchemy.dialects.postgresql import insert

from primespark.core.values import EARLIEST
from primespark.errors import UnavailableError
from primespark.store.database import connect_outside_pool, store_unavailable
from primespark.store.schema import log, relay

RELAY = "kafka"
# Where facts of a class are published; of others none are.
TOPICS = {
    "telemetry": "edge.telemetry",
    "inference_results": "edge.ai.inference",
    "metrics": "edge.metrics",
}
# A batch of the log has at most 5000 facts; a read stops after the batch that fills this.
_MAX_ROWS_PER_READ = 10_000
_LEASE = 7_301_003
_FACTS = text(
    "SELECT l.log_seq, f.device_id, f.epoch, f.stream, f.seq, f.time, f.value"
    " FROM sync.log l JOIN sync.fact f ON f.device_id = l.device_id AND f.epoch = l.epoch AND f.stream = l.stream"
    " AND f.seq BETWEEN l.seq_from AND l.seq_to AND f.data_class = l.data_class"
    " WHERE l.log_seq = ANY(:numbers) AND l.kind = 'facts' ORDER BY l.log_seq, f.seq"
)
# Of the log's end first the batches that hold them, then of these the rows.
_NEWEST = text(
    "SELECT * FROM (SELECT l.log_seq, l.received_at, f.device_id, f.epoch, f.stream, f.seq, f.time, f.value,"
    " row_number() OVER newest AS number, sum(octet_length(f.value::text)) OVER newest AS held"
    " FROM (SELECT *, sum(rows) OVER (ORDER BY log_seq DESC) - rows AS newer FROM ("
    " SELECT * FROM sync.log WHERE kind = 'facts' AND data_class = :data_class"
    " AND log_seq > (SELECT max(log_seq) FROM sync.log) - 100000 ORDER BY log_seq DESC LIMIT :most) AS ended) AS l"
    " JOIN sync.fact f ON f.device_id = l.device_id AND f.epoch = l.epoch AND f.stream = l.stream"
    " AND f.seq BETWEEN l.seq_from AND l.seq_to AND f.data_class = l.data_class"
    " WHERE l.newer < :most WINDOW newest AS (ORDER BY l.log_seq DESC, f.seq DESC)) AS found"
    " WHERE number <= :most AND held <= :most_bytes ORDER BY log_seq, seq"
)
_MAX_NEWEST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """A fact as a record of its topic, and when it came."""

    row: dict[str, Any]
    received_at: datetime


@dataclass(frozen=True, slots=True)
class OutboxBatch:
    """One row of the log; `rows` are its facts, none for a document."""

    log_seq: int
    data_class: str
    device_id: str
    rows: list[dict[str, Any]] = field(default_factory=list)


def position(connection: Connection) -> int:
    """The `log_seq` up to which everything is published."""
    return connection.execute(query(relay.c.log_seq).where(relay.c.name == RELAY)).scalar() or 0


def advance(connection: Connection, log_seq: int) -> None:
    """Everything up to `log_seq` is published; the position never goes back."""
    statement = insert(relay).values(name=RELAY, log_seq=log_seq)
    further = func.greatest(relay.c.log_seq, statement.excluded.log_seq)
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"log_seq": further}))


def read(connection: Connection, after: int, limit: int) -> list[OutboxBatch]:
    """Up to `limit` batches after `after` in commit order, fewer when they hold many facts."""
    entries = connection.execute(
        query(log.c.log_seq, log.c.data_class, log.c.device_id, log.c.scope, log.c.rows)
        .where(log.c.log_seq > after)
        .order_by(log.c.log_seq)
        .limit(limit)
    )
    batches: dict[int, OutboxBatch] = {}
    total = 0
    for entry in entries:
        batches[entry.log_seq] = OutboxBatch(entry.log_seq, entry.data_class, entry.device_id or entry.scope)
        total += entry.rows
        if total >= _MAX_ROWS_PER_READ:
            break
    for fact in connection.execute(_FACTS, {"numbers": list(batches)}):
        batches[fact.log_seq].rows.append(_row(fact))
    return list(batches.values())


def read_newest(connection: Connection, data_class: str, most: int) -> list[PublishedRow]:
    """The `most` newest facts of a class in commit order, as they are published; fewer where they are large."""
    return [
        PublishedRow(_row(fact), fact.received_at)
        for fact in connection.execute(
            _NEWEST, {"data_class": data_class, "most": most, "most_bytes": _MAX_NEWEST_BYTES}
        )
    ]  # fmt: skip


def _row(fact: Row[Any]) -> dict[str, Any]:
    identity = {
        "device_id": fact.device_id, "epoch": fact.epoch, "stream": fact.stream, "seq": fact.seq,
        "ts": (fact.time - EARLIEST) // timedelta(milliseconds=1),
    }  # fmt: skip
    # Whatever fields a fact has, they never speak for its identity.
    return {**identity, **fact.value, **identity}


class Lease:
    """Held as long as its connection lives; leave it to give it back."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def is_held(self) -> bool:
        """Whether the session that holds it is alive; looks at the socket and waits for nothing."""
        if self._connection.closed:
            return False
        arrived = select.poll()
        try:
            arrived.register(self._connection.fileno(), select.POLLIN)
            # The end of a session is a message, and then the end of the stream: only the second one is an error.
            while arrived.poll(0):
                self._connection.poll()
        except psycopg2.Error:
            return False
        return not self._connection.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()


def acquire_lease(engine: Engine) -> Lease:
    """The lease of the relay, on a connection outside the pool.

    Raises:
        UnavailableError: Code `lease_taken`: another relay has it; or the store does not answer.
    """
    try:
        connection = connect_outside_pool(engine)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (_LEASE,))
            is_ours = cursor.fetchone() == (True,)
    except psycopg2.Error as error:
        raise store_unavailable() from error
    if not is_ours:
        connection.close()
        raise UnavailableError(
            "another relay has the lease", remedy="none needed: it is tried again", code="lease_taken"
        )
    return Lease(connection)
