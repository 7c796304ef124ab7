"""Batches on their way to the cloud: number and exact bytes are on disk before the first send."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

from edge_agent import documents, replica, restored_cloud
from edge_agent.batch_selection import Limits, Selection, mark_behind, select
from edge_agent.database import Database
from edge_agent.dead_letters import add_dead_letter
from edge_agent.device_clock import DeviceClock
from edge_agent.priority import RANKS, Priority
from edge_agent.queue import compose, remove
from edge_agent.queue_room import add_lost
from edge_agent.rate import Rate
from edge_agent.schema import forget_meta, read_number, write_meta
from edge_agent.stamps import Stamps
from edge_agent.streams import bounds
from edge_agent.uploads import rows as upload_rows
from primespark.core.clock import wall_clock_ms
from primespark.core.encoding import encode_body
from primespark.sync.records import PROTOCOL_VERSION, EpochRequest, PushResponse, ResultStatus

# Room for what surrounds the records in a batch.
_ENVELOPE_BYTES = 1024
# Pages given back to the disk with one acknowledgement; more would hold up those who enqueue.
_VACUUM_PAGES = 500
_KEPT_FREE_PAGES = 4000
# So often the cloud may fail on a batch before it is divided.
MAX_ATTEMPTS = 3

Place = list[Any]


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
        backlog_records_per_s: Most records a second of streams that have fallen behind.
        now_ms: The device's clock.
        clock: Gives facts and writes their true time.
        may_send_low: Whether facts of low priority may go now.
    """

    def __init__(
        self,
        database: Database,
        device_id: str,
        batch_records: int,
        batch_bytes: int,
        backlog_records_per_s: int = 2000,
        now_ms: Callable[[], int] = wall_clock_ms,
        clock: DeviceClock | None = None,
        may_send_low: Callable[[], bool] = lambda: True,
    ) -> None:
        self._may_send_low = may_send_low
        self._clock = clock
        self._stamps = Stamps(device_id, clock, now_ms)
        self._database = database
        self._device_id = device_id
        self._batch_records = batch_records
        self._batch_bytes = batch_bytes
        self._backlog = Rate(backlog_records_per_s, max(batch_records, backlog_records_per_s // 4), monotonic)
        self._with_dictionary = True
        self.waiting = 0
        self.is_urgent = False
        database.watch(self._count)

    @property
    def pause_s(self) -> float:
        """How long a backlog that has had its share waits for the next."""
        return self._backlog.wait_s(self._batch_records)

    async def count(self) -> None:
        """Count what waits; after a commit of this process that happens by itself."""
        await self._database.run(self._count)

    async def epoch(self) -> int | None:
        """The epoch the sequences count in; None when the cloud has to give one."""
        return await self._database.run(replica.epoch_of)

    async def epoch_request(self) -> EpochRequest:
        """What to ask a new epoch with."""
        return await self._database.run(restored_cloud.epoch_request)

    async def begin_epoch(self, epoch: int, server_epoch: int = 1) -> None:
        """Number everything that waits anew, for an epoch the cloud has just given."""
        await self._database.run(lambda connection: _begin_epoch(connection, self._device_id, epoch, server_epoch))

    async def meet(self, server_epoch: int) -> bool:
        """Note which life of the cloud answers; whether it is another one than before: then all is offered again."""
        return await self._database.run(
            lambda connection: restored_cloud.meet(connection, self._device_id, server_epoch)
        )

    async def begin_anew(self) -> None:
        """The cloud shows that it lacks what it had acknowledged: offer everything again, under a new epoch."""
        await self._database.run(lambda connection: restored_cloud.begin_anew(connection, self._device_id))

    async def next_batch(self) -> Batch | None:
        """The batch under way, else a new one; None when nothing may go now, or there is no epoch."""
        return await self._database.run(self._next_batch)

    async def acknowledge(self, batch_seq: int, response: PushResponse) -> None:
        """The cloud has the batch: forget it, and keep aside what of it was refused."""
        await self._database.run(lambda connection: self._acknowledge(connection, batch_seq, response))

    async def reject(self, batch_seq: int, code: str) -> bool:
        """The cloud refuses the whole batch for good: send smaller ones, until the record at fault goes alone.

        Whether another batch comes next: a lost range alone is kept as it is, since no fact after it is taken without.
        """
        return await self._database.run(lambda connection: self._reject(connection, batch_seq, code))

    async def failed(self, batch_seq: int, code: str) -> bool:
        """The cloud answered that it failed on the batch; the third time, one record may be why: divide it.

        A record that goes alone is set aside once the cloud took an empty batch in its place: then it is the record.
        Whether another batch comes next.
        """
        return await self._database.run(lambda connection: self._failed(connection, batch_seq, code))

    async def await_blobs(self, batch_seq: int) -> bool:
        """The cloud lacks a blob that the batch names: have it uploaded again, then the same bytes are right.

        Where this device has no such blob any more, the batch is divided, until the fact at fault goes alone, which is
        set aside. Whether another batch comes next.
        """
        return await self._database.run(lambda connection: self._await_blobs(connection, batch_seq))

    async def take_up_again(self, batch_seq: int) -> bool:
        """The cloud knows another batch of this number: if one was given up, it is sent again; whether one was."""
        return await self._database.run(lambda connection: _take_up_again(connection, batch_seq))

    async def forgo_dictionary(self, batch_seq: int) -> None:
        """The cloud does not know the dictionary: fix the batch anew without it, and each that follows."""
        self._with_dictionary = False
        forget = "DELETE FROM batch WHERE batch_seq = ?"
        await self._database.run(lambda connection: connection.execute(forget, (batch_seq,)))

    def _next_batch(self, connection: sqlite3.Connection) -> Batch | None:
        row = connection.execute("SELECT epoch, batch_seq, records, headers, body FROM batch").fetchone()
        if row is not None:
            epoch, batch_seq, places, headers, body = row
            return Batch(epoch, batch_seq, len(json.loads(places)), json.loads(headers), body)
        epoch = replica.epoch_of(connection)
        if epoch is None:
            return None
        self._stamps.settle(connection)
        mark_behind(connection)
        records = min(read_number(connection, "batch_limit", self._batch_records), self._batch_records)
        # Of a backlog whole batches only: what a second brings would go by the handful.
        share = self._backlog.available()
        limits = Limits(
            records, self._batch_bytes - _ENVELOPE_BYTES, backlog=share if share >= self._batch_records else 0,
            lanes=2 * self._ranks(),
        )  # fmt: skip
        corrections = self._clock.corrections(connection) if self._clock is not None else None
        selection = select(
            connection, limits, self._device_id, lambda kept: self._encode(connection, kept),
            corrections.settled if corrections is not None else None,
        )  # fmt: skip
        if not selection.records:
            return None
        self._backlog.spend(selection.backlog)
        return self._fix(connection, epoch, selection)

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

    def _fix(self, connection: sqlite3.Connection, epoch: int, selection: Selection) -> Batch:
        batch_seq = read_number(connection, "next_batch_seq", 1)
        head = {
            "v": PROTOCOL_VERSION, "replica_id": self._device_id, "epoch": epoch, "batch_seq": batch_seq,
            "hlc": self._stamps.stamp(connection, is_of_write=False),
        }  # fmt: skip
        payload = json.dumps(head).encode()[:-1] + b',"records":[' + b",".join(selection.records) + b"]}"
        body, headers = encode_body(payload, with_dictionary=self._with_dictionary)
        headers["Idempotency-Key"] = f"{self._device_id}/{epoch}/{batch_seq}"
        connection.execute(
            "INSERT INTO batch (batch_seq, epoch, records, headers, body) VALUES (?, ?, ?, ?, ?)",
            (batch_seq, epoch, json.dumps(selection.places), json.dumps(headers), body),
        )
        return Batch(epoch, batch_seq, len(selection.records), headers, body)

    def _acknowledge(self, connection: sqlite3.Connection, batch_seq: int, response: PushResponse) -> None:
        places = _load_places(connection, batch_seq)
        if places is None:
            return
        for result in response.results:
            if result.status is ResultStatus.REJECTED and result.index < len(places):
                _keep_aside(connection, places[result.index], result.code or "rejected")
        for scope, key, counter in (place for kind, *place in places if kind == "document"):
            documents.settle(connection, self._device_id, scope, key, counter)
        for result in response.results:
            if result.record is not None:
                documents.adopt(connection, result.record)
        _move_acknowledged(connection, places)
        _forget_lost(connection, [id_ for kind, id_, *_ in places if kind == "lost"])
        remove(connection, [id_ for kind, id_, *_ in places if kind == "operation"])
        if not places:
            self._judge_given_up(connection, batch_seq)
        connection.execute("DELETE FROM batch")
        connection.execute("DELETE FROM given_up")
        write_meta(connection, "next_batch_seq", batch_seq + 1)
        forget_meta(connection, "batch_limit")
        if response.status == "replayed":
            write_meta(connection, "replayed_batches", read_number(connection, "replayed_batches") + 1)
        self._stamps.observe(connection, response.server_hlc)
        restored_cloud.meet(connection, self._device_id, response.server_epoch)
        (free_pages,) = connection.execute("PRAGMA freelist_count").fetchone()
        if free_pages > _KEPT_FREE_PAGES:
            # A row per page, and each has to be fetched for it to happen.
            connection.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()

    def _reject(self, connection: sqlite3.Connection, batch_seq: int, code: str) -> bool:
        places = _load_places(connection, batch_seq)
        if places is None:
            return True
        if [kind for kind, *_ in places] == ["lost"]:
            return False
        connection.execute("DELETE FROM batch")
        if len(places) > 1:
            write_meta(connection, "batch_limit", len(places) // 2)
        else:
            forget_meta(connection, "batch_limit")
            self._give_up(connection, places[0], code)
        return True

    def _failed(self, connection: sqlite3.Connection, batch_seq: int, code: str) -> bool:
        places = _load_places(connection, batch_seq)
        if places is None:
            return True
        (attempts,) = connection.execute("UPDATE batch SET attempts = attempts + 1 RETURNING attempts").fetchone()
        if [kind for kind, *_ in places] == ["lost"]:
            return False
        if not places:
            # The empty one failed too: it is not the record. It waits for the cloud to be well.
            _take_up_again(connection, batch_seq)
            return False
        if attempts < MAX_ATTEMPTS:
            return False
        epoch = self._set_batch_aside(connection, len(places))
        if len(places) == 1:
            write_meta(connection, "suspect", json.dumps([places[0], code]))
            self._fix(connection, epoch, Selection(self._batch_bytes))
        return True

    def _await_blobs(self, connection: sqlite3.Connection, batch_seq: int) -> bool:
        places = _load_places(connection, batch_seq)
        if places is None:
            return True
        operations = [place[1] for place in places if place[0] == "operation"]
        named = upload_rows.named_by(connection, operations)
        again = upload_rows.send_again(connection, operations)
        if len(again) == len(named):
            return False
        self._set_batch_aside(connection, len(places))
        if len(places) == 1:
            self._give_up(connection, places[0], "blob_missing")
        return True

    def _set_batch_aside(self, connection: sqlite3.Connection, records: int) -> int:
        """Keep the batch, which the cloud may have after all, and send half of it next; its epoch."""
        # The first that was given up under this number is the one the cloud may have.
        connection.execute("INSERT OR IGNORE INTO given_up SELECT batch_seq, epoch, records, headers, body FROM batch")
        epoch: int = connection.execute("DELETE FROM batch RETURNING epoch").fetchone()[0]
        if records > 1:
            write_meta(connection, "batch_limit", records // 2)
        else:
            forget_meta(connection, "batch_limit")
        return epoch

    def _judge_given_up(self, connection: sqlite3.Connection, batch_seq: int) -> None:
        """The empty batch was taken: the record in whose place it went is at fault."""
        suspect = connection.execute("SELECT value FROM meta WHERE name = 'suspect'").fetchone()
        if suspect is not None:
            place, code = json.loads(suspect[0])
            forget_meta(connection, "suspect")
            self._give_up(connection, place, code)

    def _give_up(self, connection: sqlite3.Connection, place: Place, code: str) -> None:
        """Set a record aside for good; a fact counts as received then, so that its stream goes on."""
        stream, seq = _keep_aside(connection, place, code)
        kind, *where = place
        if kind == "document":
            scope, key, counter = where
            documents.settle(connection, self._device_id, scope, key, counter)
        elif kind == "operation":
            remove(connection, [where[0]])
            add_lost(connection, stream, seq, _reason(code), 0)

    def _ranks(self) -> int:
        """How many of the priorities may go now, from the first."""
        return len(RANKS) if self._may_send_low() else RANKS[Priority.LOW]

    def _count(self, connection: sqlite3.Connection) -> None:
        (self.waiting,) = connection.execute(
            "SELECT (SELECT coalesce(sum(pending), 0) FROM stream WHERE rank < ?1)"
            " + (SELECT count(*) FROM lost JOIN stream ON name = stream WHERE rank < ?1)"
            " + (SELECT count(*) FROM document WHERE dirty)",
            (self._ranks(),),
        ).fetchone()
        _, end = bounds(1)
        self.is_urgent = (
            connection.execute("SELECT 1 FROM operation WHERE id < ? LIMIT 1", (end,)).fetchone() is not None
        )


def give_up_fact(connection: sqlite3.Connection, operation: int, code: str) -> None:
    """Set a fact aside for good that is in no batch, while one may be under way."""
    stream, seq = _keep_aside(connection, ["operation", operation], code)
    remove(connection, [operation])
    (last_lost,) = connection.execute("SELECT coalesce(max(id), 0) FROM lost").fetchone()
    add_lost(connection, stream, seq, _reason(code), last_lost)


def _reason(code: str) -> str:
    return f"refused: {code}"[:200]


def _load_places(connection: sqlite3.Connection, batch_seq: int) -> list[Place] | None:
    row = connection.execute("SELECT records FROM batch WHERE batch_seq = ?", (batch_seq,)).fetchone()
    return None if row is None else list(json.loads(row[0]))


def _take_up_again(connection: sqlite3.Connection, batch_seq: int) -> bool:
    row = connection.execute("SELECT * FROM given_up WHERE batch_seq = ?", (batch_seq,)).fetchone()
    if row is None:
        return False
    connection.execute("DELETE FROM batch")
    connection.execute("DELETE FROM given_up")
    forget_meta(connection, "batch_limit")
    forget_meta(connection, "suspect")
    connection.execute("INSERT INTO batch (batch_seq, epoch, records, headers, body) VALUES (?, ?, ?, ?, ?)", row)
    return True


def _move_acknowledged(connection: sqlite3.Connection, places: list[Place]) -> None:
    """How far the cloud has each stream; read before what was sent is removed."""
    sent = {kind: json.dumps([place[0] for other, *place in places if other == kind]) for kind in ("operation", "lost")}
    reached = connection.execute(
        "SELECT stream, max(seq) FROM ("
        "SELECT stream, seq FROM operation WHERE id IN (SELECT value FROM json_each(?))"
        " UNION ALL SELECT stream, seq_to FROM lost WHERE id IN (SELECT value FROM json_each(?))"
        ") GROUP BY stream",
        (sent["operation"], sent["lost"]),
    ).fetchall()
    connection.executemany(
        "UPDATE stream SET acknowledged_seq = max(acknowledged_seq, ?) WHERE name = ?",
        [(seq, stream) for stream, seq in reached],
    )


def _forget_lost(connection: sqlite3.Connection, ids: list[int]) -> None:
    connection.execute("DELETE FROM lost WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(ids),))


def _keep_aside(connection: sqlite3.Connection, place: Place, code: str) -> tuple[str, int]:
    """Put a record among the dead letters; its stream and seq."""
    stream, seq, record = _record_at(connection, place)
    add_dead_letter(connection, stream, seq, code, record)
    connection.execute("UPDATE stream SET lost = lost + 1 WHERE name = ? AND ? > 0", (stream, seq))
    return stream, seq


def _record_at(connection: sqlite3.Connection, place: Place) -> tuple[str, int, str]:
    """Stream, seq and JSON of a record; seq 0 for what is no fact."""
    kind, *where = place
    if kind == "lost":
        row = connection.execute("SELECT * FROM lost WHERE id = ?", where).fetchone()
        return str(row[1]), 0, json.dumps(row[1:])
    if kind == "document":
        scope, key, _ = where
        return key, 0, documents.load_text(connection, scope, key)
    stream, seq, tail = connection.execute("SELECT stream, seq, tail FROM operation WHERE id = ?", where).fetchone()
    return stream, seq, compose(stream, seq, tail).decode()


def _begin_epoch(connection: sqlite3.Connection, device_id: str, epoch: int, server_epoch: int) -> None:
    restored_cloud.meet(connection, device_id, server_epoch)
    if replica.epoch_of(connection) == epoch:
        return
    write_meta(connection, "epoch", epoch)
    forget_meta(connection, replica.EPOCH_BEFORE)
    connection.execute("DELETE FROM batch")
    connection.execute("DELETE FROM given_up")
    for name in ("next_batch_seq", "batch_limit", "suspect"):
        forget_meta(connection, name)
    # What waits of a stream, facts and lost ranges, follows without a gap on what the cloud has.
    connection.execute(
        "UPDATE operation SET seq = seq - (SELECT acknowledged_seq FROM stream WHERE name = operation.stream)"
    )
    connection.execute(
        "UPDATE lost SET seq_from = seq_from - acknowledged_seq, seq_to = seq_to - acknowledged_seq FROM stream"
        " WHERE name = lost.stream"
    )
    connection.execute("UPDATE stream SET last_seq = last_seq - acknowledged_seq, acknowledged_seq = 0, lost = 0")
    documents.renumber(connection, device_id)
