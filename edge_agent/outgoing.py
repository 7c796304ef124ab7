"""Batches on their way to the cloud: number and exact bytes are on disk before the first send."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_agent import documents, replica
from edge_agent.database import Database
from edge_agent.dead_letters import add_dead_letter
from edge_agent.device_clock import DeviceClock
from edge_agent.queue import compose, remove_sent
from edge_agent.schema import forget_meta, read_number, write_meta
from primespark.core.clock import wall_clock_ms
from primespark.core.encoding import encode_body
from primespark.sync.records import PROTOCOL_VERSION, PushResponse, ResultStatus

# Room for what surrounds the records in a batch.
_ENVELOPE_BYTES = 1024
# Pages given back to the disk with one acknowledgement; more would hold up those who enqueue.
_VACUUM_PAGES = 500
_KEPT_FREE_PAGES = 4000


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it is sent, each time the same bytes."""

    epoch: int
    batch_seq: int
    records: int
    headers: dict[str, str]
    body: bytes


class Outgoing:
    """What goes to the cloud next.

    Args:
        database: Shared with the queue and the documents.
        device_id: Who sends.
        batch_records: Most records of a batch.
        batch_bytes: Most bytes of a batch before compression.
        now_ms: The device's clock.
        clock: Gives facts their true time.
    """

    def __init__(
        self,
        database: Database,
        device_id: str,
        batch_records: int,
        batch_bytes: int,
        now_ms: Callable[[], int] = wall_clock_ms,
        clock: DeviceClock | None = None,
    ) -> None:
        self._clock = clock
        self._now_ms = now_ms
        self._database = database
        self._device_id = device_id
        self._batch_records = batch_records
        self._batch_bytes = batch_bytes
        self.waiting = 0
        database.watch(self._count)

    async def epoch(self) -> int | None:
        """The epoch the sequences count in; None when the cloud has to give one."""
        return await self._database.run(replica.epoch_of)

    async def begin_epoch(self, epoch: int) -> None:
        """Number everything that waits anew, for an epoch the cloud has just given."""
        await self._database.run(lambda connection: _begin_epoch(connection, self._device_id, epoch))

    async def next_batch(self) -> Batch | None:
        """The batch under way, else a new one of what waits; None when nothing waits or there is no epoch."""
        return await self._database.run(self._next_batch)

    async def acknowledge(self, batch_seq: int, response: PushResponse) -> None:
        """The cloud has the batch: forget it, and keep aside what of it was refused."""
        await self._database.run(lambda connection: self._acknowledge(connection, batch_seq, response))

    async def reject(self, batch_seq: int, code: str) -> bool:
        """The cloud refuses the whole batch for good: send smaller ones, until the record at fault goes alone.

        Whether another batch comes next: a lost range alone is kept as it is, since no fact after it is taken without.
        """
        return await self._database.run(lambda connection: self._reject(connection, batch_seq, code))

    def _next_batch(self, connection: sqlite3.Connection) -> Batch | None:
        row = connection.execute("SELECT epoch, batch_seq, records, headers, body FROM batch").fetchone()
        if row is not None:
            epoch, batch_seq, records, headers, body = row
            return Batch(epoch, batch_seq, records, json.loads(headers), body)
        epoch = replica.epoch_of(connection)
        if epoch is None:
            return None
        picked = self._pick(connection)
        return self._fix(connection, epoch, picked) if picked.records else None

    def _pick(self, connection: sqlite3.Connection) -> _Picked:
        limit = min(read_number(connection, "batch_limit", self._batch_records), self._batch_records)
        picked = _Picked(self._batch_bytes - _ENVELOPE_BYTES)
        for id_, stream, seq_from, seq_to, reason in connection.execute(
            "SELECT * FROM lost ORDER BY id LIMIT ?", (limit,)
        ):
            record = {"op": "lost", "stream": stream, "seq_from": seq_from, "seq_to": seq_to, "reason": reason}
            if picked.add(json.dumps(record).encode()):
                picked.last_lost, picked.lost = id_, picked.lost + 1
        for kept in documents.dirty(connection)[: limit - len(picked.records)]:
            encoded = self._encode(connection, kept)
            if encoded is not None and picked.add(encoded):
                picked.documents.append((kept.scope, kept.key, kept.document.vv[self._device_id]))
        rows = connection.execute(
            "SELECT id, stream, seq, tail FROM operation ORDER BY id LIMIT ?", (limit - len(picked.records),)
        )
        corrections = self._clock.corrections(connection) if self._clock is not None else None
        for id_, stream, seq, waiting in rows:
            tail = corrections.settled(id_, stream, waiting) if corrections is not None else waiting
            if not picked.add(compose(stream, seq, tail)):
                break
            picked.last_operation = id_
        return picked

    def _encode(self, connection: sqlite3.Connection, kept: documents.Kept) -> bytes | None:
        """A document as it travels; None for one that cannot, which is set aside: it would hold up all that waits."""
        try:
            return documents.to_change(kept).model_dump_json().encode()
        except (ValueError, RecursionError):
            record = documents.load_text(connection, kept.scope, kept.key)
            add_dead_letter(connection, kept.key, 0, "bad_document", record)
            counter = kept.document.vv.get(self._device_id, 0)
            documents.settle(connection, self._device_id, kept.scope, kept.key, counter)
            return None

    def _fix(self, connection: sqlite3.Connection, epoch: int, picked: _Picked) -> Batch:
        batch_seq = read_number(connection, "next_batch_seq", 1)
        head = {
            "v": PROTOCOL_VERSION, "replica_id": self._device_id, "epoch": epoch, "batch_seq": batch_seq,
            "hlc": replica.stamp(connection, self._device_id, self._now_ms),
        }  # fmt: skip
        payload = json.dumps(head).encode()[:-1] + b',"records":[' + b",".join(picked.records) + b"]}"
        body, headers = encode_body(payload)
        headers["Idempotency-Key"] = f"{self._device_id}/{epoch}/{batch_seq}"
        connection.execute(
            "INSERT INTO batch (batch_seq, epoch, last_lost, last_operation, documents, lost, records, headers, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                batch_seq, epoch, picked.last_lost, picked.last_operation, json.dumps(picked.documents), picked.lost,
                len(picked.records), json.dumps(headers), body,
            ),
        )  # fmt: skip
        return Batch(epoch, batch_seq, len(picked.records), headers, body)

    def _acknowledge(self, connection: sqlite3.Connection, batch_seq: int, response: PushResponse) -> None:
        sent = _load_sent(connection, batch_seq)
        if sent is None:
            return
        for result in response.results:
            if result.status is ResultStatus.REJECTED:
                _keep_aside(connection, sent, result.index, result.code or "rejected")
        for scope, key, counter in sent.documents:
            documents.settle(connection, self._device_id, scope, key, counter)
        for result in response.results:
            if result.record is not None:
                documents.adopt(connection, result.record)
        connection.execute("DELETE FROM lost WHERE id <= ?", (sent.last_lost,))
        remove_sent(connection, sent.last_operation)
        connection.execute("DELETE FROM batch")
        write_meta(connection, "next_batch_seq", batch_seq + 1)
        forget_meta(connection, "batch_limit")
        if response.status == "replayed":
            write_meta(connection, "replayed_batches", read_number(connection, "replayed_batches") + 1)
        replica.observe(connection, self._device_id, response.server_hlc)
        (free_pages,) = connection.execute("PRAGMA freelist_count").fetchone()
        if free_pages > _KEPT_FREE_PAGES:
            # A row per page, and each has to be fetched for it to happen.
            connection.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()

    def _reject(self, connection: sqlite3.Connection, batch_seq: int, code: str) -> bool:
        sent = _load_sent(connection, batch_seq)
        if sent is None:
            return True
        if sent.records == sent.lost == 1:
            return False
        connection.execute("DELETE FROM batch")
        if sent.records > 1:
            write_meta(connection, "batch_limit", sent.records // 2)
            return True
        forget_meta(connection, "batch_limit")
        stream, seq = _keep_aside(connection, sent, 0, code)
        for scope, key, counter in sent.documents:
            documents.settle(connection, self._device_id, scope, key, counter)
        if sent.last_operation:
            # Counts as received, so that the stream goes on; the cloud has it on record as lost.
            remove_sent(connection, sent.last_operation)
            connection.execute(
                "INSERT INTO lost (stream, seq_from, seq_to, reason) VALUES (?, ?, ?, ?)",
                (stream, seq, seq, f"refused: {code}"[:200]),
            )
        return True

    def _count(self, connection: sqlite3.Connection) -> None:
        (self.waiting,) = connection.execute(
            "SELECT (SELECT coalesce(sum(pending), 0) FROM stream) + (SELECT count(*) FROM lost)"
            " + (SELECT count(*) FROM document WHERE dirty)"
        ).fetchone()


class _Picked:
    """Records of a batch while it is put together, up to a number of bytes; one record always fits."""

    def __init__(self, max_bytes: int) -> None:
        self.records: list[bytes] = []
        self.documents: list[tuple[str, str, int]] = []
        self.lost = self.last_lost = self.last_operation = 0
        self._room = max_bytes

    def add(self, record: bytes) -> bool:
        """Take the record if there is room."""
        if self.records and len(record) + 1 > self._room:
            self._room = 0
            return False
        self.records.append(record)
        self._room -= len(record) + 1
        return True


@dataclass(frozen=True, slots=True)
class _Sent:
    last_lost: int
    last_operation: int
    documents: list[tuple[str, str, int]]
    lost: int
    records: int


def _load_sent(connection: sqlite3.Connection, batch_seq: int) -> _Sent | None:
    row = connection.execute(
        "SELECT last_lost, last_operation, documents, lost, records FROM batch WHERE batch_seq = ?", (batch_seq,)
    ).fetchone()
    if row is None:
        return None
    last_lost, last_operation, written, lost, records = row
    return _Sent(last_lost, last_operation, [tuple(entry) for entry in json.loads(written)], lost, records)


def _keep_aside(connection: sqlite3.Connection, sent: _Sent, index: int, code: str) -> tuple[str, int]:
    """Put a record of a batch among the dead letters; its stream and seq."""
    stream, seq, record = _record_at(connection, sent, index)
    add_dead_letter(connection, stream, seq, code, record)
    connection.execute("UPDATE stream SET lost = lost + 1 WHERE name = ? AND ? > 0", (stream, seq))
    return stream, seq


def _record_at(connection: sqlite3.Connection, sent: _Sent, index: int) -> tuple[str, int, str]:
    """Stream, seq and JSON of a record of the batch; seq 0 for what is no fact."""
    row: Any
    if index < sent.lost:
        row = connection.execute("SELECT * FROM lost ORDER BY id LIMIT 1 OFFSET ?", (index,)).fetchone()
        return str(row[1]), 0, json.dumps(row[1:])
    index -= sent.lost
    if index < len(sent.documents):
        scope, key, _ = sent.documents[index]
        return key, 0, documents.load_text(connection, scope, key)
    row = connection.execute(
        "SELECT stream, seq, tail FROM operation ORDER BY id LIMIT 1 OFFSET ?", (index - len(sent.documents),)
    ).fetchone()
    stream, seq, tail = row
    return stream, seq, compose(stream, seq, tail).decode()


def _begin_epoch(connection: sqlite3.Connection, device_id: str, epoch: int) -> None:
    if replica.epoch_of(connection) == epoch:
        return
    write_meta(connection, "epoch", epoch)
    connection.execute("DELETE FROM batch")
    connection.execute("DELETE FROM lost")
    forget_meta(connection, "next_batch_seq")
    forget_meta(connection, "batch_limit")
    # Facts that wait are the newest of their stream and have no gaps, so the acknowledged seq is what to subtract.
    connection.execute(
        "UPDATE operation SET seq = seq - (SELECT last_seq - pending FROM stream WHERE name = operation.stream)"
    )
    connection.execute("UPDATE stream SET last_seq = pending, acknowledged_seq = 0, lost = 0")
    documents.renumber(connection, device_id)
