"""`/api/v1/records`: the device's documents, for people beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from edge_agent.api import Here, Operator, Viewer
from edge_agent.documents import Documents, Place, Version
from primespark.core.web import read_json
from primespark.core.web.preconditions import check_preconditions, is_unchanged
from primespark.core.web.watching import Seen, Watchers
from primespark.errors import InvalidInputError, NotFoundError
from primespark.sync.documents import Document, merge_patch
from primespark.sync.records import DataClass, Name

router = APIRouter(prefix="/api/v1/records")
# Each has at most 1 MiB.
_WATCHED_AT_ONCE = 8
Scope = Annotated[Name | None, Query()]


@router.get("/{data_class}", dependencies=[Viewer])
async def list_records(
    data_class: DataClass,
    request: Request,
    here: Here,
    scope: Scope = None,
    after: Annotated[str, Query(max_length=200)] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    watch: bool = False,
) -> Any:
    """Documents in the device's scopes, or in one, by scope and key; or all and then their changes, as events."""
    _check_class(data_class)
    if watch:
        return request.app.state.watchers.stream(_View(here.documents, scope))
    last_scope, _, last_key = after.partition("/")
    kept = await here.documents.page((last_scope, last_key), limit, scope)
    last = f"{kept[-1].scope}/{kept[-1].key}" if len(kept) == limit else None
    return {"items": [_describe(entry.scope, entry.key, entry.document) for entry in kept], "next_cursor": last}


@router.get("/{data_class}/{key:path}", dependencies=[Viewer])
async def read_record(
    data_class: DataClass, key: Name, request: Request, here: Here, scope: Scope = None, watch: bool = False
) -> Response:
    """One document; or its changes from now on, as server-sent events."""
    _check_class(data_class)
    where = scope or here.device_id
    if watch:
        watchers: Watchers = request.app.state.watchers
        return watchers.stream(_View(here.documents, where, key))
    document = await here.documents.read(where, key)
    if document is None:
        raise _absent(key)
    if is_unchanged(request, _etag(document)):
        return Response(status_code=304, headers={"ETag": _etag(document)})
    return _answer(where, key, document, 200)


@router.put("/{data_class}/{key:path}")
async def put_record(
    data_class: DataClass, key: Name, request: Request, here: Here, _: Operator, scope: Scope = None
) -> Response:
    """Write a whole document; `desired` must stay as the cloud has it."""
    value = await _read_object(request, data_class)
    return await _write(here, scope, key, request, lambda _: value)


@router.patch("/{data_class}/{key:path}")
async def patch_record(
    data_class: DataClass, key: Name, request: Request, here: Here, _: Operator, scope: Scope = None
) -> Response:
    """Apply a JSON merge patch."""
    patch = await _read_object(request, data_class)
    return await _write(here, scope, key, request, lambda document: dict(merge_patch(document.value, patch)))


@router.delete("/{data_class}/{key:path}")
async def delete_record(
    data_class: DataClass, key: Name, request: Request, here: Here, _: Operator, scope: Scope = None
) -> Response:
    """Delete a document; the deletion travels."""
    _check_class(data_class)

    def delete(document: Document) -> dict[str, Any]:
        _check_match(request, document)
        if not document.value:
            raise _absent(key)
        return {}

    await here.documents.change(key, delete, scope)
    return Response(status_code=204)


class _View:
    """What one client watches: all documents here, those of a scope, or one."""

    def __init__(self, documents: Documents, scope: str | None, key: str | None = None) -> None:
        self._documents, self._scope, self._key = documents, scope, key
        self._known: dict[Place, Version] = {}

    async def look(self) -> Seen:
        """What has another version than at the last look, and what has gone; some at once."""
        present = await self._documents.versions(self._scope, self._key)
        records = [_gone(place, json.loads(self._known.pop(place)[0])) for place in self._known.keys() - present.keys()]
        changed = [place for place, version in present.items() if self._known.get(place) != version]
        for scope, key in changed[:_WATCHED_AT_ONCE]:
            # What is gone by now is told with the next look.
            if document := await self._documents.read(scope, key):
                records.append(_describe(scope, key, document))
                self._known[scope, key] = present[scope, key]
        return Seen(records, has_more=len(changed) > _WATCHED_AT_ONCE)


def _gone(place: Place, vv: dict[str, int]) -> dict[str, Any]:
    scope, key = place
    return _describe(scope, key, Document(vv=vv))


async def _write(
    here: Here, scope: str | None, key: str, request: Request, change: Callable[[Document], dict[str, Any]]
) -> Response:
    is_new = False

    def checked(document: Document) -> dict[str, Any]:
        nonlocal is_new
        _check_match(request, document)
        is_new = not document.value
        value = change(document)
        if not value:
            raise InvalidInputError("an empty document is none", remedy="delete it", code="empty_document")
        return value

    document = await here.documents.change(key, checked, scope)
    return _answer(scope or here.device_id, key, document, 201 if is_new else 200)


async def _read_object(request: Request, data_class: DataClass) -> dict[str, Any]:
    _check_class(data_class)
    value = await read_json(request)
    if not isinstance(value, dict):
        raise InvalidInputError("a document is a JSON object", remedy="send an object")
    return value


def _check_match(request: Request, document: Document) -> None:
    check_preconditions(request, _etag(document) if document.value else None)


def _etag(document: Document) -> str:
    return f'"{document.hlc}"'


def _check_class(data_class: DataClass) -> None:
    if data_class is not DataClass.CONFIGURATIONS:
        raise NotFoundError(f"{data_class} are facts, not documents", remedy="documents are in `configurations`")


def _absent(key: str) -> NotFoundError:
    return NotFoundError(f"no document {key!r}", remedy="list them with GET /api/v1/records/configurations")


def _answer(scope: str, key: str, document: Document, status: int) -> Response:
    return JSONResponse(_describe(scope, key, document), status, headers={"ETag": _etag(document)})


def _describe(scope: str, key: str, document: Document) -> dict[str, Any]:
    return {
        "data_class": DataClass.CONFIGURATIONS, "scope": scope, "key": key, "value": document.value,
        "vv": document.vv, "hlc": document.hlc, "leaf_hlc": document.leaf_hlc, "deleted": not document.value,
    }  # fmt: skip
