"""Records the cloud refused for good, kept aside: to be seen, sent once more, or dropped."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from prometheus_client import Counter

from edge_agent.database import Database
from edge_agent.queue import OfflineQueue, compose
from primespark.core.clock import to_rfc3339, utc_now
from primespark.core.logging import get_logger
from primespark.errors import ConflictError, NotFoundError

MAX_DEAD_LETTERS = 10_000

DEAD_LETTERS = Counter(
    "primespark_sync_dead_letters_total", "Records the cloud refused for good, or that cannot travel."
)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that was refused.

    Attributes:
        id: Its number here.
        stream: Of a fact; of a document its key.
        seq: Of a fact, under which the cloud has it as lost; 0 for what is no fact.
        code: Why it was refused.
        at: When, RFC 3339.
        bytes: Of the record.
    """

    id: int
    stream: str
    seq: int
    code: str
    at: str
    bytes: int


class DeadLetters:
    """What was kept aside, at most the last 10,000.

    Args:
        database: Where it is kept.
        queue: Of the same database; takes what is sent once more.
    """

    def __init__(self, database: Database, queue: OfflineQueue) -> None:
        self._database = database
        self._queue = queue

    async def page(self, after: int, limit: int) -> list[DeadLetter]:
        """Dead letters, oldest first, after the one with id `after`."""
        select = (
            "SELECT id, stream, seq, code, at, length(CAST(record AS BLOB)) FROM dead_letter"
            " WHERE id > ? ORDER BY id LIMIT ?"
        )
        rows = await self._database.run(lambda connection: connection.execute(select, (after, limit)).fetchall())
        return [DeadLetter(*row) for row in rows]

    async def read(self, id_: int) -> tuple[DeadLetter, str]:
        """A dead letter and its record, JSON as it was sent.

        Raises:
            NotFoundError: Code `unknown_dead_letter`.
        """
        return await self._database.run(lambda connection: _load(connection, id_))

    async def replay(self, id_: int) -> int:
        """Enqueue the fact anew, with its own time, in the transaction that forgets the dead letter; its new seq.

        Raises:
            NotFoundError: Code `unknown_dead_letter`.
            ConflictError: Code `not_replayable`: a document, or a range of lost facts.
            OverloadedError: Code `queue_full`; it stays where it is.
        """

        def work(connection: sqlite3.Connection) -> int:
            letter, record = _load(connection, id_)
            head, data = compose(letter.stream, letter.seq, b""), record.encode()
            if not letter.seq or not data.startswith(head):
                raise ConflictError(
                    "only facts are sent again",
                    remedy="write the document anew, or discard this",
                    code="not_replayable",
                )
            (seq,) = self._queue.take(connection, [(letter.stream, data.removeprefix(head))])
            _forget(connection, id_)
            return seq

        return await self._database.run(work)

    async def discard(self, id_: int) -> None:
        """Forget a dead letter; the cloud has it on record as lost.

        Raises:
            NotFoundError: Code `unknown_dead_letter`.
        """

        def work(connection: sqlite3.Connection) -> None:
            _load(connection, id_)
            _forget(connection, id_)

        await self._database.run(work)


def add_dead_letter(connection: sqlite3.Connection, stream: str, seq: int, code: str, record: str) -> None:
    """Keep a record aside; the oldest beyond the most that are kept are forgotten."""
    log.warning("record_refused", stream=stream, seq=seq, code=code)
    DEAD_LETTERS.inc()
    connection.execute(
        "INSERT INTO dead_letter (stream, seq, code, record, at) VALUES (?, ?, ?, ?, ?)",
        (stream, seq, code, record, to_rfc3339(utc_now())),
    )
    connection.execute("DELETE FROM dead_letter WHERE id <= (SELECT max(id) FROM dead_letter) - ?", (MAX_DEAD_LETTERS,))


def _load(connection: sqlite3.Connection, id_: int) -> tuple[DeadLetter, str]:
    row = connection.execute(
        "SELECT id, stream, seq, code, at, record FROM dead_letter WHERE id = ?", (id_,)
    ).fetchone()
    if row is None:
        raise NotFoundError(f"no dead letter {id_}", remedy="list what there is", code="unknown_dead_letter")
    number, stream, seq, code, at, record = row
    return DeadLetter(number, stream, seq, code, at, len(record.encode())), record


def _forget(connection: sqlite3.Connection, id_: int) -> None:
    connection.execute("DELETE FROM dead_letter WHERE id = ?", (id_,))
