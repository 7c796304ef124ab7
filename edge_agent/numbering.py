"""Facts take their numbers: each the next of its stream, and its place in the file after all of its lane."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from edge_agent.queue_room import ROW_BYTES
from edge_agent.streams import LIVE, StreamPolicies, bounds, lane_of
from primespark.errors import InvalidInputError

MAX_STREAMS = 64


@dataclass(slots=True)
class StreamRow:
    """A stream of the file, and what is being added to it."""

    last_seq: int
    pending: int
    bytes: int
    rank: int
    is_behind: bool
    count: int = 0
    size: int = 0


def read_streams(connection: sqlite3.Connection) -> dict[str, StreamRow]:
    """Every stream by its name."""
    rows = connection.execute("SELECT name, last_seq, pending, bytes, rank, is_behind FROM stream")
    return {name: StreamRow(*numbers) for name, *numbers in rows}


def number(
    connection: sqlite3.Connection,
    facts: list[tuple[str, bytes]],
    streams: dict[str, StreamRow],
    policies: StreamPolicies,
) -> list[int]:
    """Store facts with the next seqs of their streams, each in its lane; their seqs.

    Raises:
        InvalidInputError: Code `too_many_streams`.
    """
    next_ids: dict[int, int] = {}
    operations = []
    for wanted, tail in facts:
        name = wanted + LIVE if wanted in streams and streams[wanted].is_behind else wanted
        stream = streams.get(name)
        if stream is None:
            stream = streams[name] = StreamRow(0, 0, 0, 0, False)
        if not stream.pending and not stream.count:
            stream.rank = policies.of(name).rank
        stream.count += 1
        stream.size += len(tail) + ROW_BYTES
        lane = lane_of(stream.rank, name)
        next_ids[lane] = next_ids[lane] + 1 if lane in next_ids else _last_id(connection, lane) + 1
        operations.append((next_ids[lane], name, stream.last_seq + stream.count, tail))
    if len(streams) > MAX_STREAMS:
        raise InvalidInputError(f"more than {MAX_STREAMS} streams", remedy="use fewer", code="too_many_streams")
    connection.executemany("INSERT INTO operation (id, stream, seq, tail) VALUES (?, ?, ?, ?)", operations)
    connection.executemany(
        "INSERT INTO stream (name, last_seq, pending, bytes, rank) VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE"
        " SET last_seq = last_seq + excluded.pending, pending = pending + excluded.pending,"
        " bytes = bytes + excluded.bytes, rank = excluded.rank",
        [
            (name, stream.count, stream.count, stream.size, stream.rank)
            for name, stream in streams.items()
            if stream.count
        ],
    )
    return [seq for _, _, seq, _ in operations]


def _last_id(connection: sqlite3.Connection, lane: int) -> int:
    first, end = bounds(lane)
    (last,) = connection.execute("SELECT max(id) FROM operation WHERE id >= ? AND id < ?", (first, end)).fetchone()
    return first if last is None else int(last)
