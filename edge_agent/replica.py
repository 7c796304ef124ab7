"""This device as a writer of documents: its epoch, and the counter of its writes; kept in the database."""

from __future__ import annotations

import sqlite3

from edge_agent.schema import read_meta, read_number, write_meta

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
