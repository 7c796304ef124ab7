"""What the next batch takes: lost ranges and documents first, then facts by priority, with a share for each lane."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from edge_agent import documents
from edge_agent.queue import compose
from edge_agent.streams import LANES, LIVE, bounds, lane_of

# Of a batch, each lane in which something waits gets at least this share, so that none waits for ever.
FLOOR = 0.05
# More than this of a stream is a backlog: what happens from then on goes into its twin.
BEHIND_OPERATIONS = 5000

Encode = Callable[[documents.Kept], bytes | None]
Settle = Callable[[int, str, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a batch; `backlog` is of records of lanes that are behind, `lanes` of lanes that may go at all."""

    records: int
    bytes: int
    backlog: int
    lanes: int = LANES


@dataclass(slots=True)
class Selection:
    """Records of a batch while it is put together; one record always fits.

    Attributes:
        records: As they travel.
        places: Where each is kept, see `schema`.
        backlog: How many are of a backlog.
    """

    room: int
    records: list[bytes] = field(default_factory=list)
    places: list[list[str | int]] = field(default_factory=list)
    backlog: int = 0

    def add(self, record: bytes, place: list[str | int]) -> bool:
        """Take the record if there is room."""
        if self.records and len(record) + 1 > self.room:
            return False
        self.records.append(record)
        self.places.append(place)
        self.room -= len(record) + 1
        return True


def select(
    connection: sqlite3.Connection, limits: Limits, device_id: str, encode: Encode, settle: Settle | None = None
) -> Selection:
    """Records for the next batch, those of a stream in the order of their seqs.

    Args:
        connection: In a transaction.
        limits: Of the batch.
        device_id: Of this device.
        encode: A document as it travels; None: it cannot.
        settle: Puts the time of a fact right, given its id, stream and content.
    """
    chosen = Selection(limits.bytes)
    order = _Order(connection, chosen, limits.records)
    order.add_lost_at_heads()
    for kept in documents.dirty(connection)[: max(limits.records - len(chosen.records), 0)]:
        record = encode(kept)
        if record is not None:
            chosen.add(record, ["document", kept.scope, kept.key, kept.document.vv[device_id]])
    lanes = _lanes(connection)
    picked = _pick(connection, _quotas(lanes, limits, limits.records - len(chosen.records)), chosen.room)
    for id_, stream, seq, waiting in picked:
        tail = settle(id_, stream, waiting) if settle is not None else waiting
        if order.add(stream, seq, compose(stream, seq, tail), id_) and lanes[id_ >> 56].is_behind:
            chosen.backlog += 1
    return chosen


@dataclass(slots=True)
class _Lane:
    waiting: int = 0
    is_behind: bool = False


def _lanes(connection: sqlite3.Connection) -> list[_Lane]:
    lanes = [_Lane() for _ in range(LANES)]
    for name, rank, pending, is_behind in connection.execute("SELECT name, rank, pending, is_behind FROM stream"):
        lane = lanes[lane_of(rank, name)]
        lane.waiting += pending
        lane.is_behind = lane.is_behind or bool(is_behind)
    return lanes


def _quotas(lanes: list[_Lane], limits: Limits, records: int) -> list[int]:
    """How many records each lane may send: by priority, but for the floor of those after it."""
    floor = int(limits.records * FLOOR)
    wanted = [min(lane.waiting, limits.backlog) if lane.is_behind else lane.waiting for lane in lanes]
    wanted[limits.lanes :] = [0] * (LANES - limits.lanes)
    reserved = [min(count, floor) for count in wanted]
    quotas = []
    for lane, count in enumerate(wanted):
        quotas.append(max(min(count, records - sum(reserved[lane + 1 :])), 0))
        records -= quotas[-1]
    return quotas


def _pick(connection: sqlite3.Connection, quotas: list[int], room: int) -> Iterator[tuple[int, str, int, bytes]]:
    """Operations of each lane up to its quota, and up to the bytes that the floors of those after it leave."""
    floor = int(room * FLOOR)
    for lane, quota in enumerate(quotas):
        if not quota:
            continue
        left = room - floor * sum(1 for later in quotas[lane + 1 :] if later)
        first, end = bounds(lane)
        rows = connection.execute(
            "SELECT id, stream, seq, tail FROM operation WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
            (first, end, quota),
        )
        for number, row in enumerate(rows):
            size = len(row[3]) + len(row[1]) + 64
            # The first of a lane is offered in any case: one that is larger than the floor must not wait for ever.
            if number and size > left:
                break
            left -= size
            room -= size
            yield row


class _Order:
    """Adds facts and lost ranges so that those of a stream follow one another without a gap."""

    def __init__(self, connection: sqlite3.Connection, chosen: Selection, limit: int) -> None:
        self._chosen = chosen
        self._limit = limit
        rows = connection.execute("SELECT name, acknowledged_seq FROM stream").fetchall()
        self._next = {name: seq + 1 for name, seq in rows}
        self._lost: dict[str, dict[int, tuple[int, int, str]]] = {}
        for id_, stream, seq_from, seq_to, reason in connection.execute("SELECT * FROM lost ORDER BY id"):
            self._lost.setdefault(stream, {})[seq_from] = (id_, seq_to, reason)

    def add_lost_at_heads(self) -> None:
        """Add the lost ranges before which nothing waits."""
        for stream in self._lost:
            self._add_lost(stream)

    def add(self, stream: str, seq: int, record: bytes, id_: int) -> bool:
        """Add a fact if it is the next of its stream and there is room."""
        if self._next.get(stream) != seq or not self._add(record, ["operation", id_]):
            return False
        self._next[stream] = seq + 1
        self._add_lost(stream)
        return True

    def _add_lost(self, stream: str) -> None:
        lost = self._lost.get(stream, {})
        while (seq := self._next.get(stream, 1)) in lost:
            id_, seq_to, reason = lost[seq]
            record = {"op": "lost", "stream": stream, "seq_from": seq, "seq_to": seq_to, "reason": reason}
            if not self._add(json.dumps(record).encode(), ["lost", id_]):
                return
            self._next[stream] = seq_to + 1

    def _add(self, record: bytes, place: list[str | int]) -> bool:
        return len(self._chosen.records) < self._limit and self._chosen.add(record, place)


def mark_behind(connection: sqlite3.Connection) -> None:
    """Note which streams have a backlog; a twin has no twin."""
    connection.execute(
        "UPDATE stream SET is_behind = 1 WHERE pending > ? AND NOT is_behind AND name NOT LIKE ?",
        (BEHIND_OPERATIONS, f"%{LIVE}"),
    )
