"""The cloud as a replica: its epoch, its clock, the counter of its own writes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, func, select, text, update

from primespark.core.clock import HybridLogicalClock, Timestamp
from primespark.store import sync_log
from primespark.store.schema import server

REPLICA = "cloud"
# Version vector counters of epoch n lie above n times this, so a restored database never writes in the past.
EPOCH_SPAN = 2**32
# The log of an epoch begins here times the epoch.
LOG_ROWS_PER_EPOCH = 2**30
_EPOCHS_SINCE = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Server:
    """This cloud's identity and how far its clock and counter have come."""

    server_epoch: int
    document_counter: int
    last_hlc: str

    def peek(self) -> str:
        """A timestamp after all stamped and seen, for others to observe; it is not stored, so two may be equal."""
        return str(_clock(self).stamp())


def identity(connection: Connection) -> Server:
    """The one row about this cloud."""
    row = connection.execute(
        select(server.c.server_epoch, server.c.document_counter, server.c.last_hlc)
    ).one()  # fmt: skip
    return Server(*row)


def begin_epoch(connection: Connection, now: datetime, why: str) -> int:
    """The cloud was restored from a backup: whatever it gives out from now on, it never gave out before; its epoch.

    The backup cannot know of epochs that began after it, so the number is taken from the clock. The log goes on far
    above anything it may have reached: streams drop what is not above the highest they have seen.
    """
    sync_log.lock(connection)
    by_clock = int((now - _EPOCHS_SINCE).total_seconds() // 60)
    epoch: int = connection.execute(
        update(server)
        .values(
            server_epoch=func.greatest(server.c.server_epoch + 1, by_clock), document_counter=0, restored_at=now,
            restored_why=why,
        )
        .returning(server.c.server_epoch)
    ).scalar_one()  # fmt: skip
    connection.execute(
        text("SELECT setval(pg_get_serial_sequence('sync.log', 'log_seq'), :next)"),
        {"next": max(sync_log.newest(connection), epoch * LOG_ROWS_PER_EPOCH)},
    )
    # Nor does a version of a rule come again, by which somebody may know it who read it before.
    connection.execute(
        text(
            "SELECT setval('control.stream_rule_version', greatest(:floor, (SELECT last_value FROM"
            " control.stream_rule_version)))"
        ),
        {"floor": epoch * LOG_ROWS_PER_EPOCH},
    )
    return epoch


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
