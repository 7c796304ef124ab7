"""Room in a full queue: what gives way to what, and that the cloud is told of each fact that went."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator

from prometheus_client import Counter

from edge_agent.priority import RANKS, Priority
from edge_agent.streams import LANES, LIVE, OnFull, StreamPolicy, bounds, lane_at, lane_of
from edge_agent.uploads import rows as upload_rows
from primespark.core.logging import get_logger

# What a row costs beside its text; counted, so that small facts do not fill a disk that large ones would not.
ROW_BYTES = 64
QUEUE_FULL = "queue_full"

DROPPED = Counter(
    "primespark_offline_queue_dropped_total", "Facts that gave way to others in the full queue.", ["priority"]
)
for _priority in Priority:
    DROPPED.labels(_priority.value)

log = get_logger(__name__)


class Giver:
    """Lets the oldest facts go, but for those of the batch under way, which the cloud may have.

    Args:
        connection: In a transaction.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._dropped: dict[tuple[str, int], int] = {}
        self._sent, self._sent_lost = _under_way(connection)

    def give_way(self, policy: StreamPolicy, stream: str, operations: int, size: int) -> bool:
        """Let go, for facts of `stream`, up to so many operations or bytes; whether anything went."""
        if policy.on_full is OnFull.REJECT or not (operations or size):
            return False
        if policy.on_full is OnFull.DROP_OLDEST:
            lanes = [lane_of(policy.rank, stream.removesuffix(LIVE)), lane_of(policy.rank, stream + LIVE)]
            names = {stream.removesuffix(LIVE), stream.removesuffix(LIVE) + LIVE}
        else:
            # What is critical never goes, and nothing more urgent than what comes.
            least = max(policy.rank, RANKS[Priority.HIGH])
            lanes = [lane for lane in reversed(range(LANES)) if lane // 2 >= least]
            names = None
        chosen, freed = [], 0
        for lane in lanes:
            for id_, name, seq, length in self._oldest(lane):
                if names is not None and name not in names:
                    continue
                chosen.append((id_, name, seq, length))
                freed += length + ROW_BYTES
                if len(chosen) >= operations and freed >= size:
                    break
            if chosen:
                break
        self._drop(chosen)
        return bool(chosen)

    def tell(self) -> None:
        """Count and log what went, once it is certain."""
        for (stream, rank), count in sorted(self._dropped.items()):
            DROPPED.labels(list(Priority)[rank].value).inc(count)
            log.warning("facts_dropped", stream=stream, facts=count, why="the queue is full")

    def _oldest(self, lane: int) -> Iterator[tuple[int, str, int, int]]:
        first, end = bounds(lane)
        rows = self._connection.execute(
            "SELECT id, stream, seq, length(tail) FROM operation WHERE id >= ? AND id < ? ORDER BY id", (first, end)
        )
        for row in rows:
            if row[0] not in self._sent:
                yield row

    def _drop(self, chosen: list[tuple[int, str, int, int]]) -> None:
        for id_, stream, seq, length in chosen:
            self._connection.execute("DELETE FROM operation WHERE id = ?", (id_,))
            self._connection.execute(
                "UPDATE stream SET pending = pending - 1, bytes = bytes - ?, lost = lost + 1,"
                " is_behind = CASE WHEN pending > 1 THEN is_behind ELSE 0 END WHERE name = ?",
                (length + ROW_BYTES, stream),
            )
            add_lost(self._connection, stream, seq, QUEUE_FULL, self._sent_lost)
            key = stream, lane_at(id_) // 2
            self._dropped[key] = self._dropped.get(key, 0) + 1
        upload_rows.forget_sent(self._connection)


def add_lost(connection: sqlite3.Connection, stream: str, seq: int, reason: str, last_sent: int) -> None:
    """Note that a fact is gone; ranges that touch become one, unless one is under way (up to id `last_sent`)."""
    before = connection.execute(
        "SELECT id, seq_from FROM lost WHERE stream = ? AND seq_to = ? AND reason = ? AND id > ?",
        (stream, seq - 1, reason, last_sent),
    ).fetchone()
    after = connection.execute(
        "SELECT id, seq_to FROM lost WHERE stream = ? AND seq_from = ? AND reason = ? AND id > ?",
        (stream, seq + 1, reason, last_sent),
    ).fetchone()
    seq_from, seq_to = (before[1] if before else seq), (after[1] if after else seq)
    if after:
        connection.execute("DELETE FROM lost WHERE id = ?", (after[0],))
    if before:
        connection.execute("UPDATE lost SET seq_to = ? WHERE id = ?", (seq_to, before[0]))
    else:
        connection.execute(
            "INSERT INTO lost (stream, seq_from, seq_to, reason) VALUES (?, ?, ?, ?)",
            (stream, seq_from, seq_to, reason),
        )


def _under_way(connection: sqlite3.Connection) -> tuple[set[int], int]:
    """Ids of operations in the batch under way, and the last id of a lost range in it."""
    operations, last_lost = set(), 0
    for (records,) in connection.execute("SELECT records FROM batch UNION ALL SELECT records FROM given_up"):
        for kind, *place in json.loads(records):
            if kind == "operation":
                operations.add(place[0])
            elif kind == "lost":
                last_lost = max(last_lost, place[0])
    return operations, last_lost
