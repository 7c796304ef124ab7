"""This device as a writer of documents: epoch, counter and hybrid logical clock, kept in the database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from edge_agent.schema import read_meta, read_number, write_meta
from primespark.core.clock import HybridLogicalClock, Timestamp, wall_clock_ms

# Counters of an epoch start here times the epoch, so a device that lost its database never writes in the past.
COUNTERS_PER_EPOCH = 2**32
# Kept in place of the epoch from when the device knows that it needs a new one until it has it.
EPOCH_BEFORE = "epoch_before"


def epoch_of(connection: sqlite3.Connection) -> int | None:
    """The epoch in which this database's sequences count; None before the cloud gave one."""
    value = read_meta(connection, "epoch")
    return None if value is None else int(value)


def next_counter(connection: sqlite3.Connection) -> int:
    """A counter above every one given before."""
    writes = read_number(connection, "writes") + 1
    write_meta(connection, "writes", writes)
    return (epoch_of(connection) or read_number(connection, EPOCH_BEFORE)) * COUNTERS_PER_EPOCH + writes


def stamp(connection: sqlite3.Connection, device_id: str, now_ms: Callable[[], int] = wall_clock_ms) -> str:
    """A timestamp above every one given or seen before."""
    kept = read_meta(connection, "hlc")
    clock = HybridLogicalClock(device_id, now_ms, Timestamp.parse(kept) if kept else None)
    now = str(clock.stamp())
    write_meta(connection, "hlc", now)
    return now


def observe(connection: sqlite3.Connection, device_id: str, seen: str) -> None:
    """Make every later stamp greater than `seen`."""
    kept = read_meta(connection, "hlc")
    if kept is None or Timestamp.parse(seen) > Timestamp.parse(kept):
        write_meta(connection, "hlc", seen)
