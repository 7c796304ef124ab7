"""The device's side of documents: what it may write, what it has still to send, what the cloud says."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_agent import replica
from edge_agent.database import Database
from edge_agent.schema import read_number, write_meta
from primespark.errors import AuthorizationError
from primespark.sync.documents import Document, Order, changed_pointers, compare, merge, merge_patch, write
from primespark.sync.records import DataClass, DocumentChange, PullResponse, refuse_what_cannot_travel

TWIN = "twin"
FLEET = "fleet"
_CURSOR = "cursor"


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
    """

    def __init__(self, database: Database, device_id: str) -> None:
        self.device_id = device_id
        self._database = database

    async def read(self, scope: str, key: str) -> Document | None:
        """A document; None when there is none or it was deleted."""
        document = await self._database.run(lambda connection: load(connection, scope, key))
        return document if document and document.value else None

    async def list_all(self) -> list[Kept]:
        """Every document that has a value, by scope and key."""
        kept = await self._database.run(_load_all)
        return [entry for entry in kept if entry.document.value]

    async def cursor(self) -> int:
        """How far the cloud's log was read."""
        return await self._database.run(lambda connection: read_number(connection, _CURSOR))

    async def reset_cursor(self) -> None:
        """Read the cloud's log from its beginning again."""
        await self._database.run(lambda connection: write_meta(connection, _CURSOR, 0))

    async def effective(self, key: str) -> dict[str, Any]:
        """What holds for this device: its own document over the fleet's (RFC 7396)."""

        def work(connection: sqlite3.Connection) -> dict[str, Any]:
            value: Any = {}
            for scope in (FLEET, self.device_id):
                document = load(connection, scope, key)
                value = merge_patch(value, document.value) if document else value
            return dict(value)

        return await self._database.run(work)

    async def change(self, key: str, change: Callable[[Document], dict[str, Any]]) -> Document:
        """Write the value `change` makes of the device's own document; the same value again writes nothing.

        Raises:
            AuthorizationError: Code `not_owner`: it touches `desired`, which is the cloud's.
            InvalidInputError: It could not travel: too deep, too large, bad names, or values that cannot be stored.
        """

        def work(connection: sqlite3.Connection) -> Document:
            before = load(connection, self.device_id, key) or Document()
            value = change(before)
            if value == before.value:
                return before
            if any(p == "/desired" or p.startswith("/desired/") for p in changed_pointers(before, Document(value))):
                raise AuthorizationError(
                    "`desired` is the cloud's", remedy="change it there, or write another field", code="not_owner"
                )
            counter, hlc = replica.next_counter(connection), replica.stamp(connection, self.device_id)
            after = write(before, value, replica=self.device_id, counter=counter, hlc=hlc)
            kept = Kept(self.device_id, key, after, is_dirty=True)
            with refuse_what_cannot_travel():
                to_change(kept)
            store(connection, kept)
            return after

        return await self._database.run(work)

    async def patch(self, key: str, patch: dict[str, Any]) -> Document:
        """`change` by a JSON merge patch (RFC 7396)."""
        return await self.change(key, lambda document: dict(merge_patch(document.value, patch)))

    async def apply(self, page: PullResponse, asked_from: int) -> bool:
        """Take a page of the cloud's changes and its cursor in one transaction; whether any document changed.

        A page that was asked for from another cursor than the present one is left: the cursor was reset meanwhile.
        Without an epoch nothing is taken: after a lost database the cloud still knows writes of this device with higher
        counters than those made since, and would seem to have seen the newer ones.
        """

        def work(connection: sqlite3.Connection) -> bool:
            if replica.epoch_of(connection) is None or read_number(connection, _CURSOR) != asked_from:
                return False
            changed = [adopt(connection, item.change) for item in page.changes]
            if read_number(connection, _CURSOR) != page.next_cursor:
                write_meta(connection, _CURSOR, page.next_cursor)
                replica.observe(connection, self.device_id, page.server_hlc)
            return any(changed)

        return await self._database.run(work)


def adopt(connection: sqlite3.Connection, change: DocumentChange) -> bool:
    """Take the state the cloud holds of a document; whether it changed what is here."""
    kept = load_kept(connection, change.scope, change.key)
    theirs = Document(change.value if isinstance(change.value, dict) else {}, dict(change.vv), dict(change.leaf_hlc))
    if kept is None:
        store(connection, Kept(change.scope, change.key, theirs, is_dirty=False))
        return True
    order = compare(kept.document.vv, theirs.vv)
    if order is Order.AFTER:
        return False
    # The cloud has all that is here: its stamps stand too, as it may have replaced ones of a clock that ran ahead.
    after = merge(kept.document, theirs) if order is Order.CONCURRENT else theirs
    store(connection, Kept(change.scope, change.key, after, kept.is_dirty and order is Order.CONCURRENT))
    return after != kept.document


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
    """The cloud answered for the write numbered `counter`; a later one stays to be sent."""
    kept = load_kept(connection, scope, key)
    if kept is not None and kept.document.vv.get(device_id, 0) <= counter:
        connection.execute("UPDATE document SET dirty = 0 WHERE scope = ? AND key = ?", (scope, key))


def renumber(connection: sqlite3.Connection, device_id: str) -> None:
    """Give writes that were not sent yet counters of the epoch that has just begun."""
    for kept in dirty(connection):
        vv = {**kept.document.vv, device_id: replica.next_counter(connection)}
        store(connection, Kept(kept.scope, kept.key, Document(kept.document.value, vv, kept.document.leaf_hlc), True))


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
        "INSERT OR REPLACE INTO document (scope, key, value, vv, leaf_hlc, dirty) VALUES (?, ?, ?, ?, ?, ?)",
        (kept.scope, kept.key, *map(json.dumps, (document.value, document.vv, document.leaf_hlc)), kept.is_dirty),
    )


_SELECT = "SELECT scope, key, value, vv, leaf_hlc, dirty FROM document"


def _load_all(connection: sqlite3.Connection) -> list[Kept]:
    return [_kept(row) for row in connection.execute(f"{_SELECT} ORDER BY scope, key").fetchall()]


def _kept(row: tuple[Any, ...]) -> Kept:
    scope, key, value, vv, leaf_hlc, is_dirty = row
    return Kept(scope, key, Document(json.loads(value), json.loads(vv), json.loads(leaf_hlc)), bool(is_dirty))
