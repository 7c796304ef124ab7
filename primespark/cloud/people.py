"""`/api/v1` for people: devices, groups, labels."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Base64Bytes, Field, StringConstraints
from sqlalchemy import Connection
from starlette.responses import JSONResponse, Response

from primespark.cloud.state import Cloud, cloud_of
from primespark.core.clock import to_rfc3339, utc_now
from primespark.core.identifiers import DeviceId, GroupName
from primespark.core.values import check_text
from primespark.core.web import Principal, Role, read_model, require
from primespark.errors import TooLargeError
from primespark.inference.images import decode_image
from primespark.store import devices, groups, labels
from primespark.store.facts import MAX_LABEL_BYTES
from primespark.sync.records import Message, Name

router = APIRouter(prefix="/api/v1")
CloudState = Annotated[Cloud, Depends(cloud_of)]
Viewer = Depends(require(Role.VIEWER))
Operator = Annotated[Principal, Depends(require(Role.OPERATOR))]
Admin = Depends(require(Role.ADMIN))
_MAX_LABEL_PIXELS = 1_000_000

Dataset = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class TokenRequest(Message):
    """A new enrolment token."""

    uses: Annotated[int, Field(ge=1, le=10_000)] = 1
    ttl_s: Annotated[int, Field(ge=1, le=30 * 86_400)] = 3600


class LabelRequest(Message):
    """What a person says an image shows."""

    dataset: Dataset
    sample: Name
    label: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    image_png_base64: Annotated[Base64Bytes, Field(strict=False)]


@router.post("/devices/tokens", dependencies=[Admin])
async def create_token(request: Request, cloud: CloudState) -> JSONResponse:
    """An enrolment token, shown this once."""
    asked = await read_model(request, TokenRequest)
    lifetime = timedelta(seconds=asked.ttl_s)
    token = await cloud.transact(lambda connection: devices.create_token(connection, asked.uses, lifetime))
    return JSONResponse({"token": token, "uses": asked.uses, "expires_at": to_rfc3339(utc_now() + lifetime)}, 201)


@router.get("/devices", dependencies=[Viewer])
async def list_devices(cloud: CloudState) -> dict[str, Any]:
    """The enrolled devices."""
    rows = await cloud.transact(devices.list_devices)
    return {"items": [_device(row) for row in rows], "next_cursor": None}


@router.get("/devices/{device_id}", dependencies=[Viewer])
async def show_device(device_id: DeviceId, cloud: CloudState) -> dict[str, Any]:
    """One device."""
    return _device(await cloud.transact(lambda connection: devices.find(connection, device_id)))


@router.delete("/devices/{device_id}", dependencies=[Admin])
async def forget_device(device_id: DeviceId, cloud: CloudState) -> Response:
    """Revoke a device's key; its data stay."""
    await cloud.transact(lambda connection: devices.forget(connection, device_id))
    return Response(status_code=204)


@router.post("/devices/{device_id}/rotate", dependencies=[Admin])
async def rotate_device(device_id: DeviceId, cloud: CloudState) -> dict[str, str]:
    """A new key for a device; the old one ends at once."""
    key = await cloud.transact(lambda connection: devices.rotate(connection, device_id))
    return {"device_id": device_id, "key": key}


@router.put("/devices/{device_id}/groups/{group}", dependencies=[Admin])
async def join_group(device_id: DeviceId, group: GroupName, cloud: CloudState) -> JSONResponse:
    """Make a device a member of a group, whose documents it reads from then on."""

    def work(connection: Connection) -> JSONResponse:
        is_new = groups.join(connection, device_id, group)
        body = {"device_id": device_id, "groups": groups.of_device(connection, device_id)}
        return JSONResponse(body, 201 if is_new else 200)

    return await cloud.transact(work)


@router.delete("/devices/{device_id}/groups/{group}", dependencies=[Admin])
async def leave_group(device_id: DeviceId, group: GroupName, cloud: CloudState) -> Response:
    """End a membership; the device drops the group's documents."""
    await cloud.transact(lambda connection: groups.leave(connection, device_id, group))
    return Response(status_code=204)


@router.post("/labels")
async def add_label(request: Request, cloud: CloudState, person: Operator) -> JSONResponse:
    """Say what an image shows; the newest word on a sample stands."""
    asked = await read_model(request, LabelRequest)
    check_text(asked.label)
    if len(asked.image_png_base64) > MAX_LABEL_BYTES:
        raise TooLargeError(f"an image file of more than {MAX_LABEL_BYTES} bytes", remedy="send a smaller image")
    decode_image(asked.image_png_base64, _MAX_LABEL_PIXELS)
    row = labels.Label(
        sample=asked.sample, label=asked.label, image_png=asked.image_png_base64, source=f"person:{person.name}",
        labelled_at=utc_now(),
    )  # fmt: skip
    await cloud.transact(lambda connection: labels.add(connection, asked.dataset, [row]))
    return JSONResponse({"dataset": asked.dataset, "sample": asked.sample, "label": asked.label}, 201)


@router.get("/labels", dependencies=[Viewer])
async def list_labels(
    cloud: CloudState,
    dataset: Annotated[Dataset, Query()],
    after: Annotated[str, Query(max_length=128)] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> dict[str, Any]:
    """Labels of a dataset in order of sample, without their images."""
    check_text(after)
    rows = await cloud.transact(lambda connection: labels.page(connection, dataset, after, limit))
    items = [
        {"sample": row.sample, "label": row.label, "source": row.source, "labelled_at": to_rfc3339(row.labelled_at)}
        for row in rows
    ]
    return {"items": items, "next_cursor": rows[-1].sample if len(rows) == limit else None}


def _device(row: devices.DeviceRow) -> dict[str, Any]:
    return {
        "device_id": row.device_id,
        "epoch": row.epoch,
        "enrolled_at": to_rfc3339(row.enrolled_at),
        "last_seen_at": to_rfc3339(row.last_seen_at) if row.last_seen_at else None,
        "overdue_since": to_rfc3339(row.overdue_since) if row.overdue_since else None,
        "groups": list(row.groups),
        "epoch_began_at": to_rfc3339(row.epoch_began_at) if row.epoch_began_at else None,
        "epoch_reason": row.epoch_reason,
        "capabilities": row.capabilities,
        "versions": row.versions,
    }
