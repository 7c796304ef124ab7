"""The conflict log: every version that lost against a concurrent one, and those that wait for somebody to decide."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, insert, select, update

from primespark.errors import ConflictError, InvalidInputError, NotFoundError
from primespark.store import documents, server
from primespark.store.documents import CLOUD
from primespark.store.schema import conflict
from primespark.sync.documents import Document, write
from primespark.sync.records import DocumentChange
from primespark.sync.regions import Region, restrict
from primespark.sync.strategies import Strategy

# Of each document; what an older conflict lost is no longer kept then.
KEPT_PER_DOCUMENT = 100
# What a person's own value won as.
VALUE = "value"


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two versions of a document of which neither writer saw the other's.

    Attributes:
        conflict_id: Its number.
        scope: Of the document.
        key: Of the document.
        strategy: What decides.
        device_id: Who pushed the one.
        cloud_version: What stood in the cloud: `{value, vv, hlc, leaf_hlc}`, without `desired` and `reported`.
        device_version: What the device wrote.
        opened_at: When they met.
        resolved_at: When it was decided; None: it waits, and the document is frozen.
        winner: `cloud`, the device, `merge`, or `value`.
        resolved_by: Who decided, where a person did.
    """

    conflict_id: int
    scope: str
    key: str
    strategy: str
    device_id: str
    cloud_version: dict[str, Any]
    device_version: dict[str, Any]
    opened_at: datetime
    resolved_at: datetime | None
    winner: str | None
    resolved_by: str | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A conflict that waits for somebody to decide."""

    conflict_id: int
    scope: str
    key: str
    device_id: str
    opened_at: datetime


def waiting(connection: Connection) -> list[Waiting]:
    """Every conflict that is open, oldest first."""
    columns = [conflict.c[name] for name in ("conflict_id", "scope", "key", "device_id", "opened_at")]
    rows = connection.execute(select(*columns).where(conflict.c.resolved_at.is_(None)).order_by(conflict.c.conflict_id))
    return [Waiting(*row) for row in rows]


def note(
    connection: Connection,
    change: DocumentChange,
    strategy: Strategy,
    device_id: str,
    cloud: Document,
    device: Document,
    winner: str | None,
) -> None:
    """Keep both versions.

    Args:
        connection: In a transaction that holds the lock of the log.
        change: Of which document.
        strategy: What decides.
        device_id: Who pushed.
        cloud: What stood.
        device: What was pushed.
        winner: None leaves it open; a newer version of the same device then takes the place of the one before.
    """
    if winner is None:
        changed = connection.execute(
            update(conflict)
            .where(_open(change.scope, change.key), conflict.c.device_id == device_id)
            .values(device_version=_version(device))
        )
        if changed.rowcount:
            return
    connection.execute(
        insert(conflict).values(
            data_class=change.data_class, scope=change.scope, key=change.key, strategy=strategy, device_id=device_id,
            cloud_version=_version(cloud), device_version=_version(device), winner=winner,
            resolved_at=None if winner is None else func.now(),
        )
    )  # fmt: skip
    kept = (
        select(conflict.c.conflict_id)
        .where(conflict.c.scope == change.scope, conflict.c.key == change.key, conflict.c.resolved_at.is_not(None))
        .order_by(conflict.c.conflict_id.desc())
        .offset(KEPT_PER_DOCUMENT)
    )
    connection.execute(delete(conflict).where(conflict.c.conflict_id.in_(kept)))


def page(
    connection: Connection,
    after: int,
    limit: int,
    *,
    only_open: bool = False,
    scope: str | None = None,
    key: str | None = None,
) -> list[Conflict]:
    """Conflicts after the one with id `after`, oldest first."""
    statement = select(conflict).where(conflict.c.conflict_id > after).order_by(conflict.c.conflict_id).limit(limit)
    if only_open:
        statement = statement.where(conflict.c.resolved_at.is_(None))
    if scope is not None:
        statement = statement.where(conflict.c.scope == scope)
    if key is not None:
        statement = statement.where(conflict.c.key == key)
    return [_conflict(row) for row in connection.execute(statement)]


def find(connection: Connection, conflict_id: int) -> Conflict:
    """One conflict.

    Raises:
        NotFoundError: No such one.
    """
    row = connection.execute(select(conflict).where(conflict.c.conflict_id == conflict_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"no conflict {conflict_id}", remedy="see `primespark sync conflicts`")
    return _conflict(row)


def resolve(
    connection: Connection, conflict_id: int, by: str, *, winner: str | None = None, value: dict[str, Any] | None = None
) -> DocumentChange:
    """Decide: what stands from now on is a write of the cloud that has seen every version of the document.

    It closes all open conflicts of the document.

    Args:
        connection: In a transaction.
        conflict_id: Which.
        by: Who decides.
        winner: `cloud` for what stands there, or the device whose version it is.
        value: Or what shall stand, without `desired` and `reported`.

    Raises:
        NotFoundError: No such conflict.
        ConflictError: Code `conflict_resolved`: it was decided before.
        InvalidInputError: Neither or both of `winner` and `value`, or none of the versions; or the value is not sound.
    """
    if (winner is None) == (value is None):
        raise InvalidInputError("give a winner or a value", remedy="one of the two", code="bad_resolution")
    asked = find(connection, conflict_id)
    known = documents.read_stored(connection, asked.scope, asked.key, for_update=True)
    # Under the lock: who came first has decided.
    asked = find(connection, conflict_id)
    if asked.resolved_at is not None:
        raise ConflictError(
            f"conflict {conflict_id} is resolved: {asked.winner} won",
            remedy="write the document to change it again",
            code="conflict_resolved",
        )
    shared = _chosen(asked, known.document, winner, value)
    owned = restrict(known.document, Region.DESIRED, Region.REPORTED)
    counter, hlc = server.next_counter(connection), server.stamp(connection)
    after = write(known.document, owned.value | shared, replica=CLOUD, counter=counter, hlc=hlc)
    change = documents.store_write(connection, asked.scope, asked.key, known, after, CLOUD, counter, hlc)
    connection.execute(
        update(conflict)
        .where(_open(asked.scope, asked.key))
        .values(resolved_at=func.now(), winner=VALUE if winner is None else winner, resolved_by=by[:200])
    )
    return change


def collect(connection: Connection, now: datetime, age: timedelta) -> int:
    """Remove what was decided longer than `age` ago; how many."""
    return connection.execute(delete(conflict).where(conflict.c.resolved_at < now - age)).rowcount


def _chosen(asked: Conflict, standing: Document, winner: str | None, value: dict[str, Any] | None) -> dict[str, Any]:
    if value is not None:
        if value.keys() & {Region.DESIRED.value, Region.REPORTED.value}:
            raise InvalidInputError(
                "`desired` and `reported` each have one owner and are never in conflict",
                remedy="leave them out: they stay as they are",
                code="bad_resolution",
            )
        return value
    if winner == CLOUD:
        return restrict(standing, Region.SHARED).value
    if winner == asked.device_id:
        return dict(asked.device_version["value"])
    raise InvalidInputError(
        f"{winner!r} has no version in this conflict",
        remedy=f"name {CLOUD} or {asked.device_id}",
        code="bad_resolution",
    )


def _version(document: Document) -> dict[str, Any]:
    return {"value": document.value, "vv": document.vv, "hlc": document.hlc, "leaf_hlc": document.leaf_hlc}


def _open(scope: str, key: str) -> ColumnElement[bool]:
    return and_(conflict.c.scope == scope, conflict.c.key == key, conflict.c.resolved_at.is_(None))


def _conflict(row: Row[Any]) -> Conflict:
    return Conflict(
        row.conflict_id, row.scope, row.key, row.strategy, row.device_id, row.cloud_version, row.device_version,
        row.opened_at, row.resolved_at, row.winner, row.resolved_by,
    )  # fmt: skip
