"""The cloud as a replica: its epoch, its clock, the counter of its own writes."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from primespark.core.clock import HybridLogicalClock, Timestamp
from primespark.store import sync_log
from primespark.store.schema import server

REPLICA = "cloud"
# Version vector counters of epoch n lie above n times this, so a restored database never writes in the past.
EPOCH_SPAN = 2**32


@dataclass(frozen=True, slots=True)
class Server:
    """This cloud's identity and how far its clock and counter have come."""

    server_epoch: int
    document_counter: int
    last_hlc: str


def identity(connection: Connection) -> Server:
    """The one row about this cloud."""
    row = connection.execute(
        select(server.c.server_epoch, server.c.document_counter, server.c.last_hlc)
    ).one()  # fmt: skip
    return Server(*row)


def peek(connection: Connection) -> str:
    """A timestamp after all stamped and seen, for others to observe; it is not stored, so two may be equal."""
    return str(_clock(identity(connection)).stamp())


def stamp(connection: Connection) -> str:
    """A timestamp greater than every one stamped or observed before; writers follow one another until they commit."""
    return stamp_after(connection, None)


def stamp_after(connection: Connection, seen: Timestamp | None) -> str:
    """As `stamp`, and greater than `seen`."""
    sync_log.lock(connection)
    clock = _clock(identity(connection))
    if seen is not None:
        clock.observe(seen)
    hlc = str(clock.stamp())
    connection.execute(update(server).values(last_hlc=hlc))
    return hlc


def next_counter(connection: Connection) -> int:
    """The version vector counter of the cloud's next write."""
    sync_log.lock(connection)
    epoch, counter = connection.execute(
        update(server)
        .values(document_counter=server.c.document_counter + 1)
        .returning(server.c.server_epoch, server.c.document_counter)
    ).one()
    return int(epoch) * EPOCH_SPAN + int(counter)


def _clock(row: Server) -> HybridLogicalClock:
    return HybridLogicalClock(REPLICA, last=Timestamp.parse(row.last_hlc) if row.last_hlc else None)
