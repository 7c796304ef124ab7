"""Documents as the cloud holds them: read, write by merge patch, pull; `reconciliation` takes what devices wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, func, select, text
from sqlalchemy.dialects.postgresql import insert

from primespark.core.values import check_text, storable_json
from primespark.errors import AuthorizationError, ConflictError, InvalidInputError
from primespark.store import server, sync_log
from primespark.store.groups import of_device as groups_of
from primespark.store.groups import scopes_of
from primespark.store.schema import conflict
from primespark.store.schema import document as document_table
from primespark.sync.documents import Document, changed_pointers, merge_patch, write
from primespark.sync.records import (
    DataClass,
    DocumentChange,
    PulledChange,
    PullResponse,
    refuse_what_cannot_travel,
)
from primespark.sync.regions import Region, region_of

CLOUD = server.REPLICA
# A page of a pull is closed after this much; a device takes answers of up to 64 MiB.
PAGE_BYTES = 8 * 1024 * 1024
ROWS_PER_FETCH = 8
_CLASS = DataClass.CONFIGURATIONS


@dataclass(frozen=True, slots=True)
class SharedWrite:
    """A replica's last write to the part of a document that both sides may write."""

    counter: int
    hlc: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A document, and who last wrote what both sides may write: that tells which writes a device has not seen."""

    document: Document = field(default_factory=Document)
    shared_writes: dict[str, SharedWrite] = field(default_factory=dict)


def read(connection: Connection, scope: str, key: str, *, for_update: bool = False) -> Document | None:
    """A document; with `for_update` nobody else writes documents until commit."""
    row = _row(connection, scope, key, for_update)
    return document_of(row) if row else None


def read_stored(connection: Connection, scope: str, key: str, *, for_update: bool = False) -> Stored:
    """As `read`; an empty one where there is none."""
    row = _row(connection, scope, key, for_update)
    if row is None:
        return Stored()
    return Stored(document_of(row), {replica: SharedWrite(**told) for replica, told in row.shared_writes.items()})


def write_cloud(connection: Connection, scope: str, key: str, patch: dict[str, Any]) -> DocumentChange:
    """`change_cloud` by a JSON merge patch (RFC 7396); an empty document is the deleted one.

    Raises:
        AuthorizationError: As `change_cloud`.
        ConflictError: As `change_cloud`.
        InvalidInputError: As `change_cloud`, or nothing to begin a document with.
    """
    if Region.REPORTED in patch:
        raise _not_owner()
    storable_json(patch)
    written = change_cloud(connection, scope, key, lambda document: dict(merge_patch(document.value, patch)))
    if not written.vv:
        raise InvalidInputError("an empty document is none", remedy="write a field", code="empty_document")
    return to_change(scope, key, written)


def change_cloud(
    connection: Connection, scope: str, key: str, change: Callable[[Document], dict[str, Any]]
) -> Document:
    """Write, as the cloud, the value `change` makes of a document; the same value again writes nothing.

    Args:
        connection: In a transaction.
        scope: Of the document.
        key: Of the document.
        change: Called with what there is, while nobody else writes documents.

    Raises:
        AuthorizationError: Code `not_owner`: `reported` is the device's alone.
        ConflictError: Code `record_frozen`: versions of the document wait for somebody to decide.
        InvalidInputError: Too deep, too large, or not storable.
    """
    check_text(scope, key)
    known = read_stored(connection, scope, key, for_update=True)
    before = known.document
    value = change(before)
    if value == before.value:
        return before
    regions = {region_of(pointer) for pointer in changed_pointers(before, Document(value))}
    if Region.REPORTED in regions:
        raise _not_owner()
    if Region.SHARED in regions and is_frozen(connection, scope, key):
        raise ConflictError(
            f"versions of {key!r} wait for a decision",
            remedy="see `primespark sync conflicts`, then `primespark sync resolve`",
            code="record_frozen",
        )
    counter, hlc = server.next_counter(connection), server.stamp(connection)
    after = write(before, value, replica=CLOUD, counter=counter, hlc=hlc)
    store_write(connection, scope, key, known, after, CLOUD if Region.SHARED in regions else None, counter, hlc)
    return after


def store_write(
    connection: Connection,
    scope: str,
    key: str,
    known: Stored,
    after: Document,
    shared_writer: str | None,
    counter: int,
    hlc: str,
) -> DocumentChange:
    """Keep what follows `known`; it lies behind every cursor from then on.

    Args:
        connection: In a transaction that holds the lock of the log.
        scope: Of the document.
        key: Of the document.
        known: What stood before.
        after: What stands now.
        shared_writer: Who wrote the part that both sides may write; None: nobody did.
        counter: Of that write.
        hlc: Of that write.

    Raises:
        InvalidInputError: Code `bad_document`: it could not travel.
    """
    with refuse_what_cannot_travel():
        change = to_change(scope, key, after)
    writes = known.shared_writes
    if shared_writer is not None:
        writes = writes | {shared_writer: SharedWrite(counter, hlc)}
    fields = {
        "vv": after.vv, "leaf_hlc": after.leaf_hlc, "value": after.value, "written_hlc": after.written_hlc,
        "shared_writes": {replica: asdict(told) for replica, told in writes.items()},
        "log_seq": sync_log.append_document(connection, _CLASS, scope, key), "updated_at": func.now(),
    }  # fmt: skip
    connection.execute(
        insert(document_table)
        .values(data_class=_CLASS, scope=scope, key=key, **fields)
        .on_conflict_do_update(index_elements=["data_class", "scope", "key"], set_=fields)
    )
    return change


def pull(connection: Connection, device_id: str, cursor: int, limit: int, snapshot: int = 0) -> PullResponse:
    """Documents in the device's scopes that changed after `cursor`, each once in its newest state, in commit order.

    At most `limit`, and at least one however large it is. A position beyond the log is of a database that has been
    restored since: then everything is sent. `snapshot` is where the log was when the device began from cursor 0.
    """
    newest = sync_log.newest(connection)
    after = cursor if max(cursor, snapshot) <= newest else 0
    groups = groups_of(connection, device_id)
    statement = (
        select(document_table)
        .where(document_table.c.scope.in_(scopes_of(device_id, groups)), document_table.c.log_seq > after)
        .order_by(document_table.c.log_seq)
        .limit(limit + 1)
    )
    changes: list[PulledChange] = []
    size, has_more = 0, False
    with connection.execute(statement, execution_options={"yield_per": ROWS_PER_FETCH}) as rows:
        for row in rows:
            has_more = len(changes) == limit or size >= PAGE_BYTES
            if has_more:
                break
            change = to_change(row.scope, row.key, document_of(row))
            size += len(change.model_dump_json())
            changes.append(PulledChange(cursor=row.log_seq, change=change))
    last = changes[-1].cursor if changes else 0
    this_cloud = server.identity(connection)
    return PullResponse(
        changes=changes,
        # Of one snapshot of the database: what it shows behind `newest` is all there is up to there.
        next_cursor=last if has_more else max(newest, last),
        has_more=has_more,
        server_epoch=this_cloud.server_epoch,
        server_hlc=this_cloud.peek(),
        snapshot=snapshot if after else newest,
        groups=groups,
    )


def names_blob(connection: Connection, device_id: str, sha256: str) -> bool:
    """Whether the cloud named a blob to this device: in its documents' `desired`, or in one of a group or the fleet."""
    scopes = scopes_of(device_id, groups_of(connection, device_id))
    return bool(
        connection.execute(
            text(
                "SELECT EXISTS (SELECT 1 FROM sync.document WHERE scope = ANY(:scopes) AND jsonb_path_exists("
                "CASE WHEN scope = :device_id THEN value->'desired' ELSE value END,"
                " '$.** ? (@ == $name)', jsonb_build_object('name', CAST(:sha256 AS text))))"
            ),
            {"device_id": device_id, "scopes": scopes, "sha256": sha256},
        ).scalar_one()
    )


def to_change(scope: str, key: str, document: Document) -> DocumentChange:
    """The whole state of a document as it travels."""
    return DocumentChange(
        data_class=DataClass.CONFIGURATIONS,
        scope=scope,
        key=key,
        op="put" if document.value else "del",
        vv=document.vv,
        hlc=document.hlc,
        leaf_hlc=document.leaf_hlc,
        value=document.value or None,
    )


def _not_owner() -> AuthorizationError:
    return AuthorizationError("`reported` is the device's alone", remedy="write `desired`", code="not_owner")


def _row(connection: Connection, scope: str, key: str, for_update: bool) -> Row[Any] | None:
    if for_update:
        sync_log.lock(connection)
    return connection.execute(select(document_table).where(*_is(scope, key))).one_or_none()


def is_frozen(connection: Connection, scope: str, key: str) -> bool:
    """Whether versions of a document wait for somebody to decide."""
    waits = select(conflict.c.conflict_id).where(
        conflict.c.scope == scope, conflict.c.key == key, conflict.c.resolved_at.is_(None)
    )
    return connection.execute(waits.limit(1)).first() is not None


def _is(scope: str, key: str) -> tuple[Any, ...]:
    table = document_table.c
    return (table.data_class == _CLASS, table.scope == scope, table.key == key)


def document_of(row: Any) -> Document:
    """A row of the table as a document."""
    return Document(row.value, row.vv, row.leaf_hlc, row.written_hlc)
