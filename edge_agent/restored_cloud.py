"""A cloud that was restored from a backup, as its devices meet it.

It has forgotten what came after the backup, and says so by another `server_epoch`. Then everything of a device is
offered again: its documents, and under a new epoch the facts that still wait. What was acknowledged and is gone here as
well is told with the request for that epoch, and the cloud has it on record as lost.
"""

from __future__ import annotations

import sqlite3

from edge_agent import documents, replica
from edge_agent.replica import EPOCH_BEFORE
from edge_agent.schema import RESTORED_AT, forget_meta, read_meta, read_number, write_meta
from primespark.core.clock import to_rfc3339, utc_now
from primespark.core.logging import get_logger
from primespark.sync.records import EpochRequest

_SERVER_EPOCH = "server_epoch"

log = get_logger(__name__)


def meet(connection: sqlite3.Connection, device_id: str, server_epoch: int) -> bool:
    """Note which life of the cloud answers; whether it is another one than before."""
    known = read_number(connection, _SERVER_EPOCH)
    if known == server_epoch:
        return False
    write_meta(connection, _SERVER_EPOCH, server_epoch)
    if not known:
        return False
    begin_anew(connection, device_id)
    return True


def begin_anew(connection: sqlite3.Connection, device_id: str) -> None:
    """The cloud lacks what it had acknowledged: offer everything again, under a new epoch."""
    epoch = replica.epoch_of(connection)
    if epoch is not None:
        write_meta(connection, EPOCH_BEFORE, epoch)
        forget_meta(connection, "epoch")
    # Its facts still wait; its number is of the epoch that ends.
    connection.execute("DELETE FROM batch")
    connection.execute("DELETE FROM given_up")
    write_meta(connection, RESTORED_AT, to_rfc3339(utc_now()))
    documents.offer_again(connection, device_id)
    log.warning("cloud_restored", why="it lacks what it had acknowledged; everything kept here is offered again")


def epoch_request(connection: sqlite3.Connection) -> EpochRequest:
    """What to ask a new epoch with."""
    before = read_meta(connection, EPOCH_BEFORE)
    if before is None:
        return EpochRequest()
    rows = connection.execute("SELECT name, acknowledged_seq FROM stream WHERE acknowledged_seq > 0").fetchall()
    return EpochRequest(reason="cloud_restored", epoch=int(before), acknowledged=dict(rows))
