"""`/sync/v1/conflicts`: versions of documents that lost, and those that wait for somebody to decide."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request

from primespark.cloud.state import Cloud, cloud_of
from primespark.core.clock import to_rfc3339
from primespark.core.identifiers import DeviceId
from primespark.core.web import Principal, Role, read_model, require
from primespark.store import conflicts
from primespark.sync.records import DocumentChange, Message, Name

_LARGEST = 2**62

router = APIRouter(prefix="/sync/v1/conflicts")
CloudState = Annotated[Cloud, Depends(cloud_of)]
Operator = Annotated[Principal, Depends(require(Role.OPERATOR))]


class Resolution(Message):
    """Whose version stands, or what else does."""

    winner: Literal["cloud"] | DeviceId | None = None
    value: dict[str, Any] | None = None


@router.get("", dependencies=[Depends(require(Role.VIEWER))])
async def list_conflicts(
    cloud: CloudState,
    after: Annotated[int, Query(ge=0, lt=_LARGEST)] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    only_open: Annotated[bool, Query(alias="open")] = False,
    scope: Annotated[Name | None, Query()] = None,
    key: Annotated[Name | None, Query()] = None,
) -> dict[str, Any]:
    """Conflicts, oldest first."""
    rows = await cloud.transact(
        lambda connection: conflicts.page(connection, after, limit, only_open=only_open, scope=scope, key=key)
    )
    next_cursor = rows[-1].conflict_id if len(rows) == limit else None
    return {"items": [describe(row) for row in rows], "next_cursor": next_cursor}


@router.post("/{conflict_id}/resolve")
async def resolve_conflict(
    conflict_id: Annotated[int, Path(ge=1, lt=_LARGEST)], request: Request, cloud: CloudState, person: Operator
) -> DocumentChange:
    """Decide a conflict that is open; the document as it stands then."""
    asked = await read_model(request, Resolution)
    by = f"person:{person.name}"
    return await cloud.transact(
        lambda connection: conflicts.resolve(connection, conflict_id, by, winner=asked.winner, value=asked.value)
    )


def describe(row: conflicts.Conflict) -> dict[str, Any]:
    """A conflict as JSON."""
    resolved_at = to_rfc3339(row.resolved_at) if row.resolved_at else None
    return asdict(row) | {"opened_at": to_rfc3339(row.opened_at), "resolved_at": resolved_at}
