"""`/api/v1/lineage`: where a stored fact comes from."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from primespark.cloud.state import Cloud, cloud_of
from primespark.core.identifiers import DeviceId
from primespark.core.web import Role, require
from primespark.store import lineage
from primespark.sync.records import Name

_LARGEST = 2**62

router = APIRouter(prefix="/api/v1")


@router.get("/lineage", dependencies=[Depends(require(Role.VIEWER))])
async def trace(
    cloud: Annotated[Cloud, Depends(cloud_of)],
    device_id: Annotated[DeviceId, Query()],
    stream: Annotated[Name, Query()],
    seq: Annotated[int, Query(ge=1, lt=_LARGEST)],
    epoch: Annotated[int | None, Query(ge=1, lt=_LARGEST)] = None,
) -> dict[str, Any]:
    """A fact's batch and device, and of an inference result its frame and model."""
    found = await cloud.transact(lambda connection: lineage.trace(connection, device_id, stream, seq, epoch))
    return found.to_json()
