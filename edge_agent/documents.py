"""The device's side of documents: what it may write, what it has still to send, what the cloud says."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edge_agent import reading, replica
from edge_agent.commands import inbox
from edge_agent.database import Database
from edge_agent.device_clock import DeviceClock
from edge_agent.reading import Position, Sweep
from edge_agent.stamps import Stamps
from primespark.core.clock import wall_clock_ms
from primespark.core.identifiers import group_scope
from primespark.errors import AuthorizationError
from primespark.sync.documents import Document, Order, changed_pointers, compare, merge_patch, write
from primespark.sync.records import Command, DataClass, DocumentChange, PullResponse, refuse_what_cannot_travel
from primespark.sync.regions import Region, assemble, region_of, restrict

# Scope and key; version vector and timestamps, as they are kept.
Place = tuple[str, str]
Version = tuple[str, str]

TWIN = "twin"
FLEET = "fleet"


@dataclass(frozen=True, slots=True)
class Kept:
    """A document as it is here, and whether the cloud lacks a write of it."""

    scope: str
    key: str
    document: Document
    is_dirty: bool


class Documents:
    """Documents in the device's scopes.

    Args:
        database: Where they are kept.
        device_id: The device's own scope and replica.
        fleet_writable: Prefixes of keys whose documents of the fleet this device may write.
        now_ms: The device's clock.
        clock: Gives writes their true time.
    """

    def __init__(
        self,
        database: Database,
        device_id: str,
        fleet_writable: Sequence[str] = (),
        now_ms: Callable[[], int] = wall_clock_ms,
        clock: DeviceClock | None = None,
    ) -> None:
        self.device_id = device_id
        self._stamps = Stamps(device_id, clock, now_ms)
        self._now_ms = now_ms
        self._fleet_writable = tuple(fleet_writable)
        self._database = database

    async def read(self, scope: str, key: str) -> Document | None:
        """A document; None when there is none or it was deleted."""
        document = await self._database.run(lambda connection: load(connection, scope, key))
        return document if document and document.value else None

    async def page(self, after: tuple[str, str], limit: int, scope: str | None = None) -> list[Kept]:
        """At most `limit` documents that have a value, of one scope or all, behind `after` by scope and key."""

        def work(connection: sqlite3.Connection) -> list[Kept]:
            rows = connection.execute(
                f"{_SELECT} WHERE (scope, key) > (?, ?) AND value <> '{{}}' AND coalesce(scope = ?, 1)"
                " ORDER BY scope, key LIMIT ?",
                (*after, scope, limit),
            )
            return [_kept(row) for row in rows.fetchall()]

        return await self._database.run(work)

    async def versions(self, scope: str | None, key: str | None) -> dict[Place, Version]:
        """The version, as it is kept, of each document that has a value; of one scope or key, or of all."""

        def work(connection: sqlite3.Connection) -> dict[Place, Version]:
            rows = connection.execute(
                "SELECT scope, key, vv, leaf_hlc FROM document"
                " WHERE value <> '{}' AND coalesce(scope = ?, 1) AND coalesce(key = ?, 1) ORDER BY scope, key",
                (scope, key),
            )
            return {(row[0], row[1]): (row[2], row[3]) for row in rows}

        return await self._database.run(work)

    async def position(self) -> Position:
        """How far the cloud's log was read, and what the device knows of its groups."""
        return await self._database.run(reading.position)

    async def read_anew(self, sweep: Sweep) -> None:
        """Read the cloud's log from its beginning again, and drop what is no longer there."""
        await self._database.run(lambda connection: reading.begin(connection, sweep))

    async def effective(self, key: str) -> dict[str, Any]:
        """What holds for this device: its own document over its groups' by name over the fleet's (RFC 7396)."""

        def work(connection: sqlite3.Connection) -> dict[str, Any]:
            value: Any = {}
            for scope in (FLEET, *map(group_scope, reading.position(connection).groups), self.device_id):
                document = load(connection, scope, key)
                value = merge_patch(value, document.value) if document else value
            return dict(value)

        return await self._database.run(work)

    async def change(
        self, key: str, change: Callable[[Document], dict[str, Any]], scope: str | None = None
    ) -> Document:
        """Write the value `change` makes of a document; the same value again writes nothing.

        Args:
            key: Of the document.
            change: Called with what there is, in the transaction.
            scope: The device's own unless given.

        Raises:
            AuthorizationError: Code `not_owner`: it touches `desired`, which is the cloud's, or is not the device's.
            InvalidInputError: It could not travel: too deep, too large, bad names, or values that cannot be stored.
        """
        where = scope or self.device_id

        def work(connection: sqlite3.Connection) -> Document:
            before = load(connection, where, key) or Document()
            value = change(before)
            if value == before.value:
                return before
            self._check_owner(where, key, changed_pointers(before, Document(value)))
            counter, hlc = replica.next_counter(connection), self._stamps.stamp(connection)
            after = write(before, value, replica=self.device_id, counter=counter, hlc=hlc)
            kept = Kept(where, key, after, is_dirty=True)
            with refuse_what_cannot_travel():
                to_change(kept)
            store(connection, kept)
            return after

        return await self._database.run(work)

    def _check_owner(self, scope: str, key: str, changed: set[str]) -> None:
        if scope == self.device_id:
            foreign = {Region.DESIRED}
        elif scope == FLEET and any(map(key.startswith, self._fleet_writable)):
            foreign = {Region.DESIRED, Region.REPORTED}
        else:
            raise AuthorizationError(
                f"{scope} is not this device's to write", remedy="ask the cloud to write it", code="not_owner"
            )
        if any(region_of(pointer) in foreign for pointer in changed):
            raise AuthorizationError(
                "`desired` is the cloud's, and `reported` of the fleet nobody's",
                remedy="change it there, or write another field",
                code="not_owner",
            )

    async def patch(self, key: str, patch: dict[str, Any]) -> Document:
        """`change` by a JSON merge patch (RFC 7396)."""
        return await self.change(key, lambda document: dict(merge_patch(document.value, patch)))

    async def apply(self, page: PullResponse, asked_from: int) -> bool:
        """Take a page of the cloud's changes and its cursor in one transaction; whether there was anything new.

        A page that was asked for from another cursor than the present one is left: the cursor was reset meanwhile.
        Without an epoch nothing is taken: after a lost database the cloud still knows writes of this device with higher
        counters than those made since, and would seem to have seen the newer ones.
        """

        def work(connection: sqlite3.Connection) -> bool:
            cursor = reading.position(connection).cursor
            if replica.epoch_of(connection) is None or cursor != asked_from:
                return False
            changed = [self._take(connection, item.change) for item in page.changes]
            if cursor != page.next_cursor:
                self._stamps.observe(connection, page.server_hlc)
            return reading.advance(connection, self.device_id, page) or any(changed)

        return await self._database.run(work)

    def _take(self, connection: sqlite3.Connection, change: DocumentChange | Command) -> bool:
        if isinstance(change, Command):
            return inbox.receive(connection, change, self._now_ms())
        changed = adopt(connection, change)
        reading.came_across(connection, change.scope, change.key)
        return changed


def adopt(connection: sqlite3.Connection, change: DocumentChange) -> bool:
    """Take the state the cloud holds of a document; whether it changed what is here.

    Where the cloud lacks a write of this device, that write stays until the cloud has judged it, since only the cloud
    knows how; but `desired` is the cloud's, and holds at once.
    """
    kept = load_kept(connection, change.scope, change.key)
    theirs = _from_change(change)
    if kept is None:
        store(connection, Kept(change.scope, change.key, theirs, is_dirty=False))
        return True
    order = compare(kept.document.vv, theirs.vv)
    if order is Order.AFTER:
        return False
    if order is Order.CONCURRENT:
        parts = [restrict(kept.document, Region.SHARED, Region.REPORTED), restrict(theirs, Region.DESIRED)]
        after = assemble(parts, kept.document.vv, kept.document.hlc)
    else:
        # The cloud has all that is here: its stamps stand too, as it may have replaced ones of a clock that ran ahead.
        after = theirs
    store(connection, Kept(change.scope, change.key, after, is_dirty=order is Order.CONCURRENT))
    _keep_theirs(connection, change.scope, change.key, change if order is Order.CONCURRENT else None)
    return after != kept.document


def offer_again(connection: sqlite3.Connection, device_id: str) -> None:
    """The cloud may lack any write: read it from its beginning, and send it whatever this device wrote.

    Its own earlier writes count for nothing any more: what it has forgotten of them must not outweigh what it says now.
    """
    for kept in _load_all(connection):
        vv = {name: counter for name, counter in kept.document.vv.items() if name == device_id}
        store(connection, Kept(kept.scope, kept.key, replace(kept.document, vv=vv), is_dirty=device_id in vv))
        _keep_theirs(connection, kept.scope, kept.key, None)
    reading.begin(connection, Sweep.ALL)


def dirty(connection: sqlite3.Connection) -> list[Kept]:
    """Documents with writes the cloud lacks."""
    return [entry for entry in _load_all(connection) if entry.is_dirty]


def to_change(kept: Kept) -> DocumentChange:
    """The whole state of a document as it travels."""
    document = kept.document
    return DocumentChange(
        data_class=DataClass.CONFIGURATIONS, scope=kept.scope, key=kept.key, op="put" if document.value else "del",
        vv=document.vv, hlc=document.hlc, leaf_hlc=document.leaf_hlc, value=document.value or None,
    )  # fmt: skip


def settle(connection: sqlite3.Connection, device_id: str, scope: str, key: str, counter: int) -> None:
    """The cloud answered for the write numbered `counter`; a later one stays to be sent.

    What the cloud held all the while is taken now; its answer, where it gave one, follows it.
    """
    kept = load_kept(connection, scope, key)
    if kept is None or kept.document.vv.get(device_id, 0) > counter:
        return
    (theirs,) = connection.execute("SELECT theirs FROM document WHERE scope = ? AND key = ?", (scope, key)).fetchone()
    if theirs is None:
        # The cloud has it: a reading that began before the batch was applied may not have come across it.
        connection.execute(
            "UPDATE document SET dirty = 0, seen = ? WHERE scope = ? AND key = ?",
            (reading.number(connection), scope, key),
        )
    else:
        store(connection, Kept(scope, key, _from_change(DocumentChange.model_validate_json(theirs)), is_dirty=False))
        _keep_theirs(connection, scope, key, None)


def renumber(connection: sqlite3.Connection, device_id: str) -> None:
    """Give writes that were not sent yet counters of the epoch that has just begun."""
    for kept in dirty(connection):
        vv = {**kept.document.vv, device_id: replica.next_counter(connection)}
        connection.execute(
            "UPDATE document SET vv = ? WHERE scope = ? AND key = ?", (json.dumps(vv), kept.scope, kept.key)
        )


def load(connection: sqlite3.Connection, scope: str, key: str) -> Document | None:
    """A document, with an empty value when it was deleted."""
    kept = load_kept(connection, scope, key)
    return kept.document if kept else None


def load_kept(connection: sqlite3.Connection, scope: str, key: str) -> Kept | None:
    """A document with its state here."""
    row = connection.execute(f"{_SELECT} WHERE scope = ? AND key = ?", (scope, key)).fetchone()
    return _kept(row) if row else None


def load_text(connection: sqlite3.Connection, scope: str, key: str) -> str:
    """The JSON of a document's value, as it is kept; empty for a document there is none of."""
    row = connection.execute("SELECT value FROM document WHERE scope = ? AND key = ?", (scope, key)).fetchone()
    return str(row[0]) if row else ""


def store(connection: sqlite3.Connection, kept: Kept) -> None:
    """Keep a document."""
    document = kept.document
    connection.execute(
        "INSERT INTO document (scope, key, value, vv, leaf_hlc, written_hlc, dirty, seen)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (scope, key) DO UPDATE SET value = excluded.value, vv = excluded.vv,"
        " leaf_hlc = excluded.leaf_hlc, written_hlc = excluded.written_hlc, dirty = excluded.dirty,"
        " seen = excluded.seen",
        (
            kept.scope, kept.key, *map(json.dumps, (document.value, document.vv, document.leaf_hlc)),
            document.written_hlc, kept.is_dirty, reading.number(connection),
        ),
    )  # fmt: skip


def _keep_theirs(connection: sqlite3.Connection, scope: str, key: str, change: DocumentChange | None) -> None:
    """Keep, beside a document that waits to be judged, what the cloud holds."""
    connection.execute(
        "UPDATE document SET theirs = ? WHERE scope = ? AND key = ?",
        (change.model_dump_json() if change else None, scope, key),
    )


_SELECT = "SELECT scope, key, value, vv, leaf_hlc, dirty, written_hlc FROM document"


def _load_all(connection: sqlite3.Connection) -> list[Kept]:
    return [_kept(row) for row in connection.execute(f"{_SELECT} ORDER BY scope, key").fetchall()]


def _kept(row: tuple[Any, ...]) -> Kept:
    scope, key, value, vv, leaf_hlc, is_dirty, written_hlc = row
    document = Document(json.loads(value), json.loads(vv), json.loads(leaf_hlc), written_hlc)
    return Kept(scope, key, document, bool(is_dirty))


def _from_change(change: DocumentChange) -> Document:
    value = change.value if isinstance(change.value, dict) else {}
    return Document(value, dict(change.vv), dict(change.leaf_hlc), change.hlc)
