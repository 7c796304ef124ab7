"""Documents as the cloud holds them: read, write by merge patch, merge of what a device wrote, pull."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select, text
from sqlalchemy.dialects.postgresql import insert

from primespark.core.clock import Timestamp, wall_clock_ms
from primespark.core.values import check_text, storable_json
from primespark.errors import AuthorizationError, InvalidInputError
from primespark.store import server, sync_log
from primespark.store.schema import document as document_table
from primespark.sync.documents import (
    MAX_LEAVES,
    Document,
    changed_pointers,
    check_value,
    flatten,
    join,
    merge,
    merge_patch,
    unflatten,
    write,
)
from primespark.sync.records import (
    DataClass,
    DocumentChange,
    PulledChange,
    PullResponse,
    ResultStatus,
    refuse_what_cannot_travel,
)

FLEET = "fleet"
# A device's clock may run ahead this far; its stamps beyond are replaced by the cloud's.
MAX_CLOCK_AHEAD_MS = 60_000
# A page of a pull is closed after this much; a device takes answers of up to 64 MiB.
PAGE_BYTES = 8 * 1024 * 1024
_ROWS_PER_FETCH = 8
_CLASS = DataClass.CONFIGURATIONS


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of a document a device pushed; `change` is the state that stands, where the device has another."""

    status: ResultStatus
    code: str | None = None
    change: DocumentChange | None = None


def read(connection: Connection, scope: str, key: str, *, for_update: bool = False) -> Document | None:
    """A document; with `for_update` nobody else writes documents until commit."""
    if for_update:
        sync_log.lock(connection)
    row = connection.execute(
        select(document_table.c.value, document_table.c.vv, document_table.c.leaf_hlc).where(*_is(scope, key))
    ).one_or_none()
    return _document(row) if row else None


def write_cloud(connection: Connection, scope: str, key: str, patch: dict[str, Any]) -> DocumentChange:
    """Apply a JSON merge patch (RFC 7396) as the cloud; a patch that changes nothing writes nothing.

    Raises:
        AuthorizationError: Code `not_owner`: `reported` is the device's alone.
        InvalidInputError: Too deep, too large, not storable, or nothing to begin a document with.
    """
    if "reported" in patch:
        raise AuthorizationError("`reported` is the device's alone", remedy="write `desired`", code="not_owner")
    storable_json(patch)
    check_text(scope, key)
    known = read(connection, scope, key, for_update=True)
    before = known or Document()
    value = merge_patch(before.value, patch)
    if value == before.value:
        if known is None:
            raise InvalidInputError("an empty document is none", remedy="write a field", code="empty_document")
        return to_change(scope, key, known)
    stamp, counter = server.stamp(connection), server.next_counter(connection)
    after = write(before, value, replica=server.REPLICA, counter=counter, hlc=stamp)
    with refuse_what_cannot_travel():
        change = to_change(scope, key, after)
    _store(connection, scope, key, after)
    return change


def merge_pushed(connection: Connection, device_id: str, change: DocumentChange) -> Merged:
    """Merge what `device_id` wrote into a document of its own scope.

    The cloud is the hub: whatever others wrote came from here, so only leaves with the device's own stamps count.
    """
    if change.scope != device_id:
        return Merged(ResultStatus.REJECTED, "not_owner")
    known = read(connection, change.scope, change.key, for_update=True) or Document()
    counter = change.vv.get(device_id, 0)
    if counter <= known.vv.get(device_id, 0):
        return Merged(ResultStatus.DUPLICATE)
    try:
        written, is_restamped = _written_by(connection, device_id, change)
    except InvalidInputError as error:
        return Merged(ResultStatus.REJECTED, error.code)
    if any(_concerns_desired(pointer) for pointer in written.leaf_hlc):
        return Merged(ResultStatus.REJECTED, "not_owner")
    merged = merge(known, written)
    # Stamps of removed leaves stay, so they are bounded here too.
    if len(merged.leaf_hlc) > MAX_LEAVES:
        return Merged(ResultStatus.REJECTED, "document_too_large")
    merged = Document(merged.value, join(known.vv, {device_id: counter}), merged.leaf_hlc)
    _store(connection, change.scope, change.key, merged)
    status = _status(change, merged, is_restamped)
    return Merged(status, change=None if status is ResultStatus.OK else to_change(change.scope, change.key, merged))


def pull(connection: Connection, device_id: str, cursor: int, limit: int) -> PullResponse:
    """Documents in the device's scopes that changed after `cursor`, each once in its newest state, in commit order.

    At most `limit`, and at least one however large it is. A cursor beyond the log is of a database that has been
    restored since: then everything is sent.
    """
    newest = sync_log.newest(connection)
    after = cursor if cursor <= newest else 0
    statement = (
        select(document_table)
        .where(document_table.c.scope.in_((device_id, FLEET)))
        # What was written since `newest` was read is left to the next pull, whose cursor it lies behind.
        .where(document_table.c.log_seq > after, document_table.c.log_seq <= newest)
        .order_by(document_table.c.log_seq)
        .limit(limit + 1)
    )
    changes: list[PulledChange] = []
    size, has_more = 0, False
    with connection.execute(statement, execution_options={"yield_per": _ROWS_PER_FETCH}) as rows:
        for row in rows:
            has_more = len(changes) == limit or size >= PAGE_BYTES
            if has_more:
                break
            change = to_change(row.scope, row.key, _document(row))
            size += len(change.model_dump_json())
            changes.append(PulledChange(cursor=row.log_seq, change=change))
    return PullResponse(
        changes=changes,
        next_cursor=changes[-1].cursor if has_more else newest,
        has_more=has_more,
        server_epoch=server.identity(connection).server_epoch,
        server_hlc=server.peek(connection),
    )


def names_blob(connection: Connection, device_id: str, sha256: str) -> bool:
    """Whether the cloud named a blob to this device: in its documents' `desired`, or in a document of the fleet."""
    return bool(
        connection.execute(
            text(
                "SELECT EXISTS (SELECT 1 FROM sync.document WHERE scope IN (:device_id, :fleet) AND jsonb_path_exists("
                "CASE WHEN scope = :fleet THEN value ELSE value->'desired' END,"
                " '$.** ? (@ == $name)', jsonb_build_object('name', CAST(:sha256 AS text))))"
            ),
            {"device_id": device_id, "fleet": FLEET, "sha256": sha256},
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


def _written_by(connection: Connection, device_id: str, change: DocumentChange) -> tuple[Document, bool]:
    """The leaves a device wrote itself, stamped anew where its clock runs ahead; and whether any was.

    Raises:
        InvalidInputError: Not a document.
    """
    value = {} if change.op == "del" else change.value
    if not isinstance(value, dict) or len(change.leaf_hlc) > MAX_LEAVES:
        raise InvalidInputError("not an object of at most 10,000 leaves", code="bad_document")
    check_value(value)
    storable_json(change.leaf_hlc)
    leaves = flatten(value)
    if not leaves.keys() <= change.leaf_hlc.keys():
        raise InvalidInputError("a leaf without a timestamp", code="bad_document")
    stamps = {pointer: Timestamp.parse(hlc) for pointer, hlc in change.leaf_hlc.items()}
    own = {pointer: stamp for pointer, stamp in stamps.items() if stamp.replica == device_id}
    if not own:
        raise InvalidInputError("no leaf has a timestamp of the device", code="bad_document")
    latest = wall_clock_ms() + MAX_CLOCK_AHEAD_MS
    ahead = {pointer for pointer, stamp in own.items() if stamp.unix_ms > latest}
    seen = max((stamp for pointer, stamp in own.items() if pointer not in ahead), default=None)
    here = Timestamp.parse(server.stamp_after(connection, seen))
    restamped = Timestamp(here.unix_ms, here.counter, device_id)
    leaf_hlc = {pointer: str(restamped if pointer in ahead else stamp) for pointer, stamp in own.items()}
    written = unflatten({pointer: leaves[pointer] for pointer in own if pointer in leaves})
    return Document(written, {}, leaf_hlc), bool(ahead)


def _concerns_desired(pointer: str) -> bool:
    # The root's stamp ends every leaf below it.
    return pointer in ("", "/desired") or pointer.startswith("/desired/")


def _status(change: DocumentChange, merged: Document, is_restamped: bool) -> ResultStatus:
    if is_restamped:
        return ResultStatus.RESTAMPED
    pushed = Document({} if change.op == "del" else change.value)
    return ResultStatus.MERGED if changed_pointers(pushed, merged) else ResultStatus.OK


def _store(connection: Connection, scope: str, key: str, document: Document) -> None:
    fields = {
        "vv": document.vv, "leaf_hlc": document.leaf_hlc, "value": document.value,
        "log_seq": sync_log.append_document(connection, _CLASS, scope, key), "updated_at": func.now(),
    }  # fmt: skip
    connection.execute(
        insert(document_table)
        .values(data_class=_CLASS, scope=scope, key=key, **fields)
        .on_conflict_do_update(index_elements=["data_class", "scope", "key"], set_=fields)
    )


def _is(scope: str, key: str) -> tuple[Any, ...]:
    table = document_table.c
    return (table.data_class == _CLASS, table.scope == scope, table.key == key)


def _document(row: Any) -> Document:
    return Document(row.value, row.vv, row.leaf_hlc)
