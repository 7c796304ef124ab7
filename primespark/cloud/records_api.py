"""`/api/v1/…/records`: documents of devices, groups and the fleet, for people."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import TypeAdapter
from sqlalchemy import Connection
from starlette.responses import JSONResponse, Response

from primespark.cloud.state import Cloud, cloud_of
from primespark.core.identifiers import GroupName, check_device_id, group_scope
from primespark.core.web import Principal, Role, read_json, require
from primespark.core.web.preconditions import check_preconditions, is_unchanged
from primespark.core.web.watching import Seen
from primespark.errors import InvalidInputError, NotFoundError
from primespark.store import devices, document_lists, documents
from primespark.store.groups import FLEET
from primespark.sync.documents import Document, merge_patch
from primespark.sync.records import DataClass, Name

# Whose the documents are.
PLACES = ("/devices/{device_id}", "/groups/{group}", "/fleet")
# Each has at most 1 MiB.
_WATCHED_AT_ONCE = 8
_GROUP: TypeAdapter[str] = TypeAdapter(GroupName)


def scope_of(request: Request) -> str:
    """The scope that the path names.

    Raises:
        InvalidInputError: It is none.
    """
    named = request.path_params
    try:
        if "device_id" in named:
            return check_device_id(named["device_id"])
        return group_scope(_GROUP.validate_python(named["group"])) if "group" in named else FLEET
    except ValueError:
        raise InvalidInputError(
            "a device or group is 1 to 63 of a-z, 0-9 and '-'", remedy="see `primespark device list`"
        ) from None


CloudState = Annotated[Cloud, Depends(cloud_of)]
Scope = Annotated[str, Depends(scope_of)]
Viewer = Depends(require(Role.VIEWER))
Operator = Annotated[Principal, Depends(require(Role.OPERATOR))]


async def list_records(
    scope: Scope,
    data_class: DataClass,
    cloud: CloudState,
    after: Annotated[Name | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    watch: bool = False,
) -> Response:
    """Documents in order of key; or all of them and then their changes, as server-sent events."""
    _check_class(data_class)
    if watch:
        return cloud.watchers.stream(_View(cloud, scope))
    page = await cloud.transact(lambda connection: document_lists.page(connection, scope, after or "", limit))
    items = [describe(scope, key, document) for key, document in page.items]
    return await asyncio.to_thread(JSONResponse, {"items": items, "next_cursor": page.next_after})


async def read_record(
    scope: Scope, data_class: DataClass, key: Name, request: Request, cloud: CloudState, watch: bool = False
) -> Response:
    """One document; or its changes from now on, as server-sent events."""
    _check_class(data_class)
    if watch:
        return cloud.watchers.stream(_View(cloud, scope, key))
    document = await cloud.transact(lambda connection: documents.read(connection, scope, key))
    if document is None or not document.value:
        raise _absent(scope, key)
    if is_unchanged(request, _etag(document)):
        return Response(status_code=304, headers={"ETag": _etag(document)})
    return _answer(scope, key, document, 200)


async def put_record(
    scope: Scope, data_class: DataClass, key: Name, request: Request, cloud: CloudState, _: Operator
) -> Response:
    """Write a whole document; `reported` must stay as the device has it."""
    value = await _read_object(request, data_class)
    return await _write(cloud, scope, key, request, lambda _: value)


async def patch_record(
    scope: Scope, data_class: DataClass, key: Name, request: Request, cloud: CloudState, _: Operator
) -> Response:
    """Apply a JSON merge patch."""
    patch = await _read_object(request, data_class)
    return await _write(cloud, scope, key, request, lambda document: dict(merge_patch(document.value, patch)))


async def delete_record(
    scope: Scope, data_class: DataClass, key: Name, request: Request, cloud: CloudState, _: Operator
) -> Response:
    """Delete a document; the deletion travels."""
    _check_class(data_class)

    def delete(document: Document) -> dict[str, Any]:
        _check(request, document)
        if not document.value:
            raise _absent(scope, key)
        return {}

    await cloud.transact(lambda connection: documents.change_cloud(connection, scope, key, delete))
    return Response(status_code=204)


router = APIRouter(prefix="/api/v1")
for _place in PLACES:
    _all, _one = f"{_place}/records/{{data_class}}", f"{_place}/records/{{data_class}}/{{key:path}}"
    router.add_api_route(_all, list_records, methods=["GET"], dependencies=[Viewer])
    router.add_api_route(_one, read_record, methods=["GET"], dependencies=[Viewer])
    router.add_api_route(_one, put_record, methods=["PUT"])
    router.add_api_route(_one, patch_record, methods=["PATCH"])
    router.add_api_route(_one, delete_record, methods=["DELETE"])


def describe(scope: str, key: str, document: Document) -> dict[str, Any]:
    """A document as JSON."""
    return {
        "data_class": DataClass.CONFIGURATIONS, "scope": scope, "key": key, "value": document.value,
        "vv": document.vv, "hlc": document.hlc, "leaf_hlc": document.leaf_hlc, "deleted": not document.value,
    }  # fmt: skip


class _View:
    """What one client watches: a scope, or one document of it."""

    def __init__(self, cloud: Cloud, scope: str, key: str | None = None) -> None:
        self._cloud, self._scope, self._key = cloud, scope, key
        self._cursor = 0
        self._is_first = True

    async def look(self) -> Seen:
        """What changed in the log; at first deleted ones are left out."""
        scope, key, cursor = self._scope, self._key, self._cursor
        found = await self._cloud.transact(
            lambda connection: document_lists.changed(connection, scope, key, cursor, _WATCHED_AT_ONCE)
        )
        shown = [(name, document) for name, document in found.items if document.value or not self._is_first]
        self._cursor, self._is_first = found.log_seq, self._is_first and found.has_more
        return Seen([describe(scope, name, document) for name, document in shown], found.has_more)


async def _write(
    cloud: Cloud, scope: str, key: str, request: Request, change: Callable[[Document], dict[str, Any]]
) -> Response:
    def work(connection: Connection) -> Response:
        is_new = False

        def checked(document: Document) -> dict[str, Any]:
            nonlocal is_new
            _check(request, document)
            is_new = not document.value
            value = change(document)
            if not value:
                raise InvalidInputError("an empty document is none", remedy="delete it", code="empty_document")
            return value

        if "device_id" in request.path_params:
            devices.find(connection, scope)
        written = documents.change_cloud(connection, scope, key, checked)
        return _answer(scope, key, written, 201 if is_new else 200)

    return await cloud.transact(work)


async def _read_object(request: Request, data_class: DataClass) -> dict[str, Any]:
    _check_class(data_class)
    value = await read_json(request)
    if not isinstance(value, dict):
        raise InvalidInputError("a document is a JSON object", remedy="send an object")
    return value


def _check(request: Request, document: Document) -> None:
    check_preconditions(request, _etag(document) if document.value else None)


def _check_class(data_class: DataClass) -> None:
    if data_class is not DataClass.CONFIGURATIONS:
        raise NotFoundError(f"{data_class} are facts, not documents", remedy="documents are in `configurations`")


def _etag(document: Document) -> str:
    return f'"{document.hlc}"'


def _answer(scope: str, key: str, document: Document, status: int) -> Response:
    return JSONResponse(describe(scope, key, document), status, headers={"ETag": _etag(document)})


def _absent(scope: str, key: str) -> NotFoundError:
    return NotFoundError(f"no document {key!r} of {scope!r}", remedy="list them first: …/records/configurations")
