"""The durable queue of facts: what `enqueue` answered for survives kill and power cut until the cloud has it."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from prometheus_client import Counter, Gauge

from edge_agent.database import Database
from edge_agent.device_clock import DeviceClock
from edge_agent.schema import read_number
from primespark.core.clock import monotonic_ns as read_monotonic_ns
from primespark.core.clock import to_rfc3339, utc_now
from primespark.core.identifiers import boot_id
from primespark.core.settings import OfflineSettings
from primespark.errors import InvalidInputError, OverloadedError, TooLargeError
from primespark.sync.records import DataClass

MAX_FACT_BYTES = 256 * 1024
MAX_STREAMS = 64
# What a row costs beside its text; counted, so that small facts do not fill a disk that large ones would not.
_ROW_BYTES = 64
# One encoder for all: making one for each fact, as `json.dumps` does, costs more than the encoding.
_to_json = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")).encode
_STREAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")

OPERATIONS = Gauge("primespark_offline_queue_operations", "Facts that wait for the cloud.")
BYTES = Gauge("primespark_offline_queue_bytes", "Bytes of the facts that wait for the cloud.")
CAPACITY = Gauge("primespark_offline_queue_capacity_operations", "Most facts the queue takes.")
REFUSED = Counter("primespark_offline_queue_refused_total", "Facts the full queue did not take.")


@dataclass(frozen=True, slots=True)
class NewFact:
    """Something that happened here, not yet numbered; its stream has the name of its class unless another is given."""

    data_class: DataClass
    value: dict[str, Any]
    time: datetime = field(default_factory=utc_now)
    boot_id: str = field(default_factory=boot_id)
    monotonic_ns: int = field(default_factory=read_monotonic_ns)
    stream: str = ""


@dataclass(frozen=True, slots=True)
class StreamState:
    """How far a stream has come."""

    last_seq: int
    acknowledged_seq: int
    lost: int
    pending: int


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """What the queue holds."""

    pending: int
    bytes: int
    epoch: int | None
    replayed_batches: int
    dead_letters: int
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


class OfflineQueue:
    """Facts in the order they came, numbered per stream from 1 without gaps, until they are acknowledged.

    Args:
        database: Where they are kept.
        limits: Most operations and bytes, and the disk space that must stay free.
        free_bytes: Free space of the disk; a parameter so that a test can fill it.
        clock: Remembers by what clock facts were stamped.
    """

    def __init__(
        self,
        database: Database,
        limits: OfflineSettings,
        free_bytes: Callable[[], int] | None = None,
        clock: DeviceClock | None = None,
    ) -> None:
        self._clock = clock
        self._database = database
        self._limits = limits
        self._free_bytes = free_bytes or (lambda: shutil.disk_usage(database.path.parent).free)
        CAPACITY.set(limits.capacity_operations)
        database.watch(_export)

    def submit(self, facts: Sequence[NewFact], once: Sequence[str] | None = None) -> Future[list[int]]:
        """Enqueue all of `facts` or none; the future has their seqs once they are on disk.

        Args:
            facts: In order.
            once: A key per fact; a fact whose key was enqueued before is left out (seq 0), whatever was killed between.

        Raises:
            InvalidInputError: A value that is not JSON, or a bad stream name.
            TooLargeError: A fact over 256 KiB.
            OverloadedError: Code `queue_full`, here or from the future; nothing was taken.
        """
        prepared = [encode(fact) for fact in facts]
        return self._database.submit(lambda connection: self._insert(connection, prepared, once))

    async def enqueue(self, facts: Sequence[NewFact], once: Sequence[str] | None = None) -> list[int]:
        """`submit`, awaited."""
        prepared = [encode(fact) for fact in facts]
        return await self._database.run(lambda connection: self._insert(connection, prepared, once))

    async def unknown(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` under which nothing was enqueued yet, in their order."""
        known = "SELECT 1 FROM remembered WHERE key = ?"
        return await self._database.run(
            lambda connection: [key for key in keys if connection.execute(known, (key,)).fetchone() is None]
        )

    async def remembered(self, prefix: str) -> list[str]:
        """Keys under which something was enqueued that begin with `prefix`, in their order."""
        select = "SELECT key FROM remembered WHERE key >= ? AND key < ? ORDER BY key"
        bounds = prefix, f"{prefix}\U0010ffff"
        return await self._database.run(
            lambda connection: [str(key) for (key,) in connection.execute(select, bounds).fetchall()]
        )

    async def status(self) -> QueueStatus:
        """What waits and how far each stream has come."""
        return await self._database.run(_read_status)

    async def waiting(self, after: int, limit: int) -> list[Waiting]:
        """Operations that wait, oldest first, after the one with id `after`."""
        return await self._database.run(lambda connection: _read_waiting(connection, after, limit))

    def take(self, connection: sqlite3.Connection, facts: list[tuple[str, bytes]]) -> list[int]:
        """Enqueue facts as `encode` made them in the caller's transaction; their seqs.

        Raises:
            OverloadedError: Code `queue_full`.
        """
        self._check_room(connection, len(facts), sum(len(tail) + _ROW_BYTES for _, tail in facts))
        if self._clock is not None:
            self._clock.note(connection)
        return _number(connection, facts)

    def _insert(
        self, connection: sqlite3.Connection, facts: list[tuple[str, bytes]], once: Sequence[str] | None
    ) -> list[int]:
        is_new = [True] * len(facts) if once is None else [_remember(connection, key) for key in once]
        taken = [fact for fact, new in zip(facts, is_new, strict=True) if new]
        seqs = iter(self.take(connection, taken))
        return [next(seqs) if new else 0 for new in is_new]

    def _check_room(self, connection: sqlite3.Connection, operations: int, size: int) -> None:
        pending, used = _totals(connection)
        cause = None
        if pending + operations > self._limits.capacity_operations:
            cause = f"{pending} operations wait, the queue takes {self._limits.capacity_operations}"
        elif used + size > self._limits.capacity_bytes:
            cause = f"{used} bytes wait, the queue takes {self._limits.capacity_bytes}"
        elif self._free_bytes() - size < self._limits.minimum_free_disk_bytes:
            cause = f"less than {self._limits.minimum_free_disk_bytes} bytes of the disk are free"
        if cause is not None:
            REFUSED.inc(operations)
            raise OverloadedError(cause, remedy="restore the link to the cloud, or free disk space", code="queue_full")


def encode(fact: NewFact) -> tuple[str, bytes]:
    """Stream and `tail` of a fact: its JSON without stream and seq.

    Raises:
        InvalidInputError: A value that is not JSON, or a bad stream name.
        TooLargeError: Over 256 KiB.
    """
    stream = fact.stream or fact.data_class.value
    if not _STREAM.fullmatch(stream):
        raise InvalidInputError(f"not a stream name: {stream[:80]!r}", remedy="use letters, digits and _ . : / -")
    if not isinstance(fact.value, dict):
        raise InvalidInputError("the value of a fact is a JSON object", remedy="give a dict")
    try:
        body = (
            f'"data_class":"{fact.data_class.value}","time":"{to_rfc3339(fact.time)}","boot_id":{_to_json(fact.boot_id)},'
            f'"monotonic_ns":{fact.monotonic_ns:d},"value":{_to_json(fact.value)}}}'
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"the value of a fact is not JSON: {error}"[:200], remedy="give plain JSON") from None
    if len(body) > MAX_FACT_BYTES:
        raise TooLargeError(f"a fact of {len(body)} bytes, limit {MAX_FACT_BYTES}", remedy="send large things as blobs")
    return stream, body


def compose(stream: str, seq: int, tail: bytes) -> bytes:
    """The fact as JSON on the wire."""
    return f'{{"op":"append","stream":"{stream}","seq":{seq},'.encode() + tail


def _remember(connection: sqlite3.Connection, key: str) -> bool:
    return connection.execute("INSERT OR IGNORE INTO remembered (key) VALUES (?)", (key,)).rowcount == 1


def _number(connection: sqlite3.Connection, facts: list[tuple[str, bytes]]) -> list[int]:
    """Store the facts with the next seqs of their streams."""
    known = dict(connection.execute("SELECT name, last_seq FROM stream").fetchall())
    counts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    rows = []
    for stream, tail in facts:
        counts[stream] = counts.get(stream, 0) + 1
        sizes[stream] = sizes.get(stream, 0) + len(tail) + _ROW_BYTES
        rows.append((stream, known.get(stream, 0) + counts[stream], tail))
    if len(known.keys() | counts.keys()) > MAX_STREAMS:
        raise InvalidInputError(f"more than {MAX_STREAMS} streams", remedy="use fewer", code="too_many_streams")
    connection.executemany("INSERT INTO operation (stream, seq, tail) VALUES (?, ?, ?)", rows)
    connection.executemany(
        "INSERT INTO stream (name, last_seq, pending, bytes) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
        " last_seq = last_seq + excluded.pending, pending = pending + excluded.pending, bytes = bytes + excluded.bytes",
        [(stream, count, count, sizes[stream]) for stream, count in counts.items()],
    )
    return [seq for _, seq, _ in rows]


def remove_sent(connection: sqlite3.Connection, last_id: int) -> None:
    """Take operations up to `last_id` out of the queue and count them as acknowledged."""
    groups = connection.execute(
        "SELECT stream, max(seq), count(*), sum(length(tail)) FROM operation WHERE id <= ? GROUP BY stream", (last_id,)
    ).fetchall()
    connection.executemany(
        "UPDATE stream SET acknowledged_seq = max(acknowledged_seq, ?), pending = pending - ?, bytes = bytes - ?"
        " WHERE name = ?",
        [(seq, count, size + count * _ROW_BYTES, stream) for stream, seq, count, size in groups],
    )
    connection.execute("DELETE FROM operation WHERE id <= ?", (last_id,))


def _totals(connection: sqlite3.Connection) -> tuple[int, int]:
    pending, used = connection.execute(
        "SELECT coalesce(sum(pending), 0), coalesce(sum(bytes), 0) FROM stream"
    ).fetchone()
    return int(pending), int(used)


def _export(connection: sqlite3.Connection) -> None:
    pending, used = _totals(connection)
    OPERATIONS.set(pending)
    BYTES.set(used)


def _read_status(connection: sqlite3.Connection) -> QueueStatus:
    pending, used = _totals(connection)
    rows = connection.execute("SELECT name, last_seq, acknowledged_seq, lost, pending FROM stream ORDER BY name")
    (dead_letters,) = connection.execute("SELECT count(*) FROM dead_letter").fetchone()
    return QueueStatus(
        pending=pending,
        bytes=used,
        epoch=read_number(connection, "epoch") or None,
        replayed_batches=read_number(connection, "replayed_batches"),
        dead_letters=int(dead_letters),
        streams={name: StreamState(*numbers) for name, *numbers in rows},
    )


def _read_waiting(connection: sqlite3.Connection, after: int, limit: int) -> list[Waiting]:
    rows = connection.execute(
        "SELECT id, stream, seq, tail FROM operation WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
    ).fetchall()
    found = []
    for id_, stream, seq, tail in rows:
        fact = json.loads(b"{" + tail)
        found.append(Waiting(id_, stream, seq, fact["data_class"], fact["time"], len(tail)))
    return found
