"""A round of the cloud's side of the exchange: what came in since the last one, who is silent, what can be removed.

It calls no device. A round is one transaction: killed in the middle it has not happened, and the next does its work.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, case, exists, func, or_, select, true, tuple_, update

from primespark.store import audit, sync_log, tombstones
from primespark.store.groups import FLEET
from primespark.store.schema import command, device, document, log, member, round_

# A waiting pull ends by itself after 60 s and says how far it has read with the next: what is unread for longer than
# this was missed by whoever should have been woken.
_UNREAD_AFTER = timedelta(seconds=120)


@dataclass(frozen=True, slots=True)
class Rules:
    """When a device is overdue, and how long what was deleted is remembered.

    Attributes:
        overdue_after: A device that was silent for longer is overdue.
        tombstone_age: A deleted document is remembered at least so long, and until all active devices have read of it.
        inactive_after: A device that was silent for longer is not waited for.
    """

    overdue_after: timedelta
    tombstone_age: timedelta
    inactive_after: timedelta


@dataclass(frozen=True, slots=True)
class Folded:
    """What the log says of `(log_from, log_to]`."""

    log_from: int
    log_to: int
    devices: int
    batches: int
    facts: int
    documents: int


@dataclass(frozen=True, slots=True)
class Round:
    """What a round found and did.

    Attributes:
        folded: What came in since the round before.
        overdue: All devices that are silent for too long.
        woken: Scopes whose devices were told again that something changed.
        gaps: Facts that are neither stored nor on record as lost.
        tombstones: How many were removed.
    """

    folded: Folded
    overdue: tuple[str, ...]
    woken: tuple[str, ...]
    gaps: tuple[audit.Gap, ...]
    tombstones: int


def close_round(connection: Connection, now: datetime, rules: Rules) -> Round:
    """Close a round at `now`; rounds at the same time follow one another."""
    last = connection.execute(select(round_.c.log_seq).with_for_update()).scalar_one()
    folded = _fold(connection, last)
    found = Round(
        folded=folded,
        overdue=_mark_overdue(connection, now, rules.overdue_after),
        woken=_wake(connection, now, rules.overdue_after),
        gaps=audit.find_gaps(connection),
        # Takes the lock of the log, which is the last of all locks.
        tombstones=tombstones.collect(connection, now, rules.tombstone_age, rules.inactive_after),
    )
    connection.execute(update(round_).values(log_seq=folded.log_to, finished_at=now))
    return found


def _fold(connection: Connection, after: int) -> Folded:
    # Its rows are of whole transactions, so no batch is divided between two rounds.
    newest = sync_log.newest(connection)
    is_facts = log.c.kind == sync_log.FACTS
    devices, batches, facts, documents = connection.execute(
        select(
            func.count(log.c.device_id.distinct()),
            func.count(tuple_(log.c.device_id, log.c.epoch, log.c.batch_seq).distinct()).filter(is_facts),
            func.coalesce(func.sum(log.c.rows).filter(is_facts), 0),
            func.count().filter(log.c.kind == sync_log.DOCUMENT),
        ).where(log.c.log_seq > after, log.c.log_seq <= newest)
    ).one()
    return Folded(after, newest, devices, batches, int(facts), documents)


def _mark_overdue(connection: Connection, now: datetime, overdue_after: timedelta) -> tuple[str, ...]:
    """Note since when each silent device is overdue, and that the others are not; the overdue ones."""
    since = func.coalesce(device.c.last_seen_at, device.c.enrolled_at) + overdue_after
    is_overdue = device.c.key_sha256.is_not(None) & (since < now)
    mark = case((is_overdue, since), else_=None)
    # A device whose batch is just being applied holds its row, and is not silent.
    wrong = select(device.c.device_id).where(device.c.overdue_since.is_distinct_from(mark))
    connection.execute(
        update(device).where(device.c.device_id.in_(wrong.with_for_update(skip_locked=True))).values(overdue_since=mark)
    )
    rows = connection.execute(select(device.c.device_id).where(is_overdue).order_by(device.c.device_id))
    return tuple(row.device_id for row in rows)


def _wake(connection: Connection, now: datetime, overdue_after: timedelta) -> tuple[str, ...]:
    """Tell those who wait for a scope again, where a device that is there has not read what changed long ago."""
    is_of_its_group = exists().where(
        member.c.device_id == device.c.device_id, document.c.scope == "group:" + member.c.group_name
    )
    unread = (
        select(document.c.scope)
        .distinct()
        .join_from(document, device, true())
        .where(
            or_(document.c.scope.in_([device.c.device_id, FLEET]), is_of_its_group),
            document.c.updated_at < now - _UNREAD_AFTER,
            device.c.cursor < document.c.log_seq,
            device.c.key_sha256.is_not(None),
            device.c.last_seen_at > now - overdue_after,
        )
    )
    unsent = (
        select(command.c.device_id)
        .distinct()
        .join(device, device.c.device_id == command.c.device_id)
        .where(
            command.c.issued_at < now - _UNREAD_AFTER,
            command.c.delivered_at.is_(None),
            command.c.answered_at.is_(None),
            command.c.expires_at > now,
            device.c.key_sha256.is_not(None),
            device.c.last_seen_at > now - overdue_after,
        )
    )
    scopes = tuple(sorted({*connection.execute(unread).scalars(), *connection.execute(unsent).scalars()}))
    for scope in scopes:
        sync_log.wake(connection, scope)
    return scopes
