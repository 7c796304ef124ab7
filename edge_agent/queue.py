"""The durable queue of facts: what `enqueue` answered for survives kill and power cut until the cloud has it."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import chain, islice
from typing import Any

from prometheus_client import Counter, Gauge

from edge_agent.database import Database
from edge_agent.device_clock import DeviceClock
from edge_agent.numbering import StreamRow, number, read_streams
from edge_agent.queue_room import ROW_BYTES, Giver
from edge_agent.queue_status import (
    QueueStatus,
    Waiting,
    read_oldest_time,
    read_status,
    read_totals,
    read_waiting,
)
from edge_agent.streams import StreamPolicies, StreamPolicy
from edge_agent.uploads import rows as upload_rows
from primespark.core.clock import monotonic_ns as read_monotonic_ns
from primespark.core.clock import to_rfc3339, utc_now
from primespark.core.identifiers import boot_id
from primespark.core.settings import OfflineSettings
from primespark.errors import InvalidInputError, OverloadedError, TooLargeError
from primespark.sync.records import DataClass

MAX_FACT_BYTES = 256 * 1024
# One encoder for all: making one for each fact, as `json.dumps` does, costs more than the encoding.
_to_json = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")).encode
_STREAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")

OPERATIONS = Gauge("primespark_offline_queue_operations", "Facts that wait for the cloud.")
BYTES = Gauge("primespark_offline_queue_bytes", "Bytes of the facts that wait for the cloud.")
CAPACITY = Gauge("primespark_offline_queue_capacity_operations", "Most facts the queue takes.")
REFUSED = Counter("primespark_offline_queue_refused_total", "Facts the full queue did not take.")


@dataclass(frozen=True, slots=True)
class NewFact:
    """Something that happened here, not yet numbered; its stream has the name of its class unless another is given.

    Attributes:
        blob: SHA-256 of a blob that the cloud has, see `uploads`; empty without.
    """

    data_class: DataClass
    value: dict[str, Any]
    time: datetime = field(default_factory=utc_now)
    boot_id: str = field(default_factory=boot_id)
    monotonic_ns: int = field(default_factory=read_monotonic_ns)
    stream: str = ""
    blob: str = ""


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
        self._policies = StreamPolicies(limits.streams)
        self._limits = limits
        self._free_bytes = free_bytes or partial(_free_bytes, os.fspath(database.path.parent))
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
        if once is None:
            return self._database.submit_joint(self._take_all, prepared)
        return self._database.submit(lambda connection: self._insert(connection, prepared, once))

    async def enqueue(self, facts: Sequence[NewFact], once: Sequence[str] | None = None) -> list[int]:
        """`submit`, awaited."""
        prepared = [encode(fact) for fact in facts]
        if once is None:
            return await self._database.run_joint(self._take_all, prepared)
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
        return await self._database.run(read_status)

    async def oldest_time(self) -> str | None:
        """The time of the fact that came first of all that wait; None when none waits."""
        return await self._database.run(read_oldest_time)

    async def waiting(self, after: int, limit: int) -> list[Waiting]:
        """Operations that wait, in the order they would go without floors, after the one with id `after`."""
        return await self._database.run(lambda connection: read_waiting(connection, after, limit))

    def take(self, connection: sqlite3.Connection, facts: list[tuple[str, bytes]]) -> list[int]:
        """Enqueue facts as `encode` made them in the caller's transaction; their seqs.

        Raises:
            OverloadedError: Code `queue_full`.
        """
        streams = self._make_room(connection, facts)
        if self._clock is not None:
            self._clock.note(connection)
        return number(connection, facts, streams, self._policies)

    def reserve(self, connection: sqlite3.Connection, size: int) -> None:
        """See that there is room for one fact more, of `size` bytes with its blob, which is stamped now.

        Raises:
            OverloadedError: Code `queue_full`: the queue is, or blobs have their half of it.
        """
        _, held = upload_rows.held(connection)
        if held + size > self._limits.capacity_bytes // 2:
            cause = f"blobs of {held} bytes wait, of {self._limits.capacity_bytes} they may have half"
            full: _Full | None = _Full(cause, 0, 0)
        else:
            full = self._check_room(connection, read_streams(connection), 1, size)
        if full is not None:
            raise _queue_full(full, 1)
        if self._clock is not None:
            self._clock.note(connection)

    def _take_all(self, connection: sqlite3.Connection, callers: list[list[tuple[str, bytes]]]) -> list[list[int]]:
        """Callers who come at once, as one: a statement for all of them costs little more than for one."""
        seqs = iter(self.take(connection, list(chain.from_iterable(callers))))
        return [list(islice(seqs, len(facts))) for facts in callers]

    def _insert(self, connection: sqlite3.Connection, facts: list[tuple[str, bytes]], once: Sequence[str]) -> list[int]:
        is_new = [_remember(connection, key) for key in once]
        taken = [fact for fact, new in zip(facts, is_new, strict=True) if new]
        seqs = iter(self.take(connection, taken))
        return [next(seqs) if new else 0 for new in is_new]

    def _make_room(self, connection: sqlite3.Connection, facts: list[tuple[str, bytes]]) -> dict[str, StreamRow]:
        """The streams, once the facts fit, at the cost of what their policies let go."""
        size = sum(len(tail) + ROW_BYTES for _, tail in facts)
        streams = read_streams(connection)
        full = self._check_room(connection, streams, len(facts), size)
        if full is None:
            return streams
        giver = Giver(connection)
        for policy, stream in sorted({(self._policies.of(stream), stream) for stream, _ in facts}, key=_patience):
            while full is not None and giver.give_way(policy, stream, full.operations, full.bytes):
                streams = read_streams(connection)
                full = self._check_room(connection, streams, len(facts), size)
        if full is not None:
            raise _queue_full(full, len(facts))
        giver.tell()
        return streams

    def _check_room(
        self, connection: sqlite3.Connection, streams: dict[str, StreamRow], operations: int, size: int
    ) -> _Full | None:
        held, held_bytes = upload_rows.held(connection)
        pending = held + sum(stream.pending for stream in streams.values())
        used = held_bytes + sum(stream.bytes for stream in streams.values())
        over = pending + operations - self._limits.capacity_operations
        if over > 0:
            return _Full(f"{pending} operations wait, the queue takes {self._limits.capacity_operations}", over, 0)
        if used + size > self._limits.capacity_bytes:
            cause = f"{used} bytes wait, the queue takes {self._limits.capacity_bytes}"
            return _Full(cause, 0, used + size - self._limits.capacity_bytes)
        if self._free_bytes() - size < self._limits.minimum_free_disk_bytes:
            # Letting facts go would write too, and gives the disk nothing back.
            return _Full(f"less than {self._limits.minimum_free_disk_bytes} bytes of the disk are free", 0, 0)
        return None


@dataclass(frozen=True, slots=True)
class _Full:
    """Why facts do not fit, and what must go for them; nothing helps where both are 0."""

    cause: str
    operations: int
    bytes: int


def _queue_full(full: _Full, facts: int) -> OverloadedError:
    REFUSED.inc(facts)
    return OverloadedError(full.cause, remedy="restore the link to the cloud, or free disk space", code="queue_full")


def _patience(entry: tuple[StreamPolicy, str]) -> tuple[int, str]:
    """The least urgent stream gives way first."""
    return -entry[0].rank, entry[1]


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
            f'"monotonic_ns":{fact.monotonic_ns:d},"value":{_to_json(fact.value)}'
            + (f',"blob":"{fact.blob}"}}' if fact.blob else "}")
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"the value of a fact is not JSON: {error}"[:200], remedy="give plain JSON") from None
    if len(body) > MAX_FACT_BYTES:
        raise TooLargeError(f"a fact of {len(body)} bytes, limit {MAX_FACT_BYTES}", remedy="send large things as blobs")
    return stream, body


def compose(stream: str, seq: int, tail: bytes) -> bytes:
    """The fact as JSON on the wire."""
    return f'{{"op":"append","stream":"{stream}","seq":{seq},'.encode() + tail


def _free_bytes(folder: str) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _remember(connection: sqlite3.Connection, key: str) -> bool:
    return connection.execute("INSERT OR IGNORE INTO remembered (key) VALUES (?)", (key,)).rowcount == 1


def remove(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Take operations out of the queue."""
    given = json.dumps(list(ids))
    groups = connection.execute(
        "SELECT stream, count(*), sum(length(tail)) FROM operation WHERE id IN (SELECT value FROM json_each(?))"
        " GROUP BY stream",
        (given,),
    ).fetchall()
    connection.executemany(
        "UPDATE stream SET pending = pending - ?, bytes = bytes - ?,"
        " is_behind = CASE WHEN pending > ? THEN is_behind ELSE 0 END WHERE name = ?",
        [(count, size + count * ROW_BYTES, count, stream) for stream, count, size in groups],
    )
    connection.execute("DELETE FROM operation WHERE id IN (SELECT value FROM json_each(?))", (given,))
    upload_rows.forget_sent(connection)


def _export(connection: sqlite3.Connection) -> None:
    pending, used = read_totals(connection)
    OPERATIONS.set(pending)
    BYTES.set(used)
