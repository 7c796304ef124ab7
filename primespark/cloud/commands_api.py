"""`/api/v1/devices/{device_id}/commands`: tell a device to do something, and see what came of it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AwareDatetime, Field
from sqlalchemy import Connection
from starlette.responses import JSONResponse

from primespark.cloud.state import Cloud, cloud_of
from primespark.core.clock import to_rfc3339, utc_now
from primespark.core.identifiers import DeviceId
from primespark.core.logging import get_logger
from primespark.core.web import Principal, Role, read_model, require
from primespark.store import commands, devices
from primespark.sync.records import CommandId, CommandName, Message

DEFAULT_LIFETIME = timedelta(hours=1)
_PATH = "/api/v1/devices/{device_id}/commands"

router = APIRouter()
CloudState = Annotated[Cloud, Depends(cloud_of)]
Viewer = Depends(require(Role.VIEWER))
Operator = Annotated[Principal, Depends(require(Role.OPERATOR))]

log = get_logger(__name__)


class CommandRequest(Message):
    """What a device is to do, and until when; an hour from now unless told."""

    name: CommandName
    arguments: dict[str, Any] = Field(default_factory=dict)
    expires_at: Annotated[AwareDatetime | None, Field(strict=False)] = None


@router.post(_PATH)
async def issue_command(device_id: DeviceId, request: Request, cloud: CloudState, person: Operator) -> JSONResponse:
    """Tell a device to do something, once; what came of it is at `Location`."""
    asked = await read_model(request, CommandRequest)
    now = utc_now()
    expires_at = asked.expires_at or now + DEFAULT_LIFETIME
    by = f"person:{person.name}"

    def work(connection: Connection) -> commands.IssuedCommand:
        devices.find(connection, device_id)
        return commands.issue(connection, device_id, asked.name, asked.arguments, by, now, expires_at)

    issued = await cloud.transact(work)
    log.info("command_issued", device_id=device_id, command_id=issued.command_id, name=issued.name, by=by)
    location = f"{_PATH.format(device_id=device_id)}/{issued.command_id}"
    return JSONResponse(describe(issued), 202, {"Location": location})


@router.get(_PATH, dependencies=[Viewer])
async def list_commands(
    device_id: DeviceId,
    cloud: CloudState,
    cursor: Annotated[int | None, Query(ge=1, lt=2**62)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> dict[str, Any]:
    """Commands of a device, the newest first."""

    def work(connection: Connection) -> list[commands.IssuedCommand]:
        devices.find(connection, device_id)
        return commands.page(connection, device_id, cursor, limit, utc_now())

    rows = await cloud.transact(work)
    return {
        "items": [describe(row) for row in rows],
        "next_cursor": rows[-1].position if len(rows) == limit else None,
    }


@router.get(f"{_PATH}/{{command_id}}", dependencies=[Viewer])
async def show_command(device_id: DeviceId, command_id: CommandId, cloud: CloudState) -> dict[str, Any]:
    """One command."""
    return describe(
        await cloud.transact(lambda connection: commands.find(connection, device_id, command_id, utc_now()))
    )


def describe(issued: commands.IssuedCommand) -> dict[str, Any]:
    """A command as JSON."""
    described = {
        name: to_rfc3339(value) if isinstance(value, datetime) else value for name, value in asdict(issued).items()
    }
    del described["position"]
    return described
