"""`/sync/v1`: enrolment, push and pull, as devices speak it."""

from __future__ import annotations

import asyncio
import base64
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import Connection
from starlette.responses import Response

from primespark.cloud.lanes import Lane
from primespark.cloud.metrics import RECORDS
from primespark.cloud.state import Cloud, cloud_of
from primespark.core.clock import utc_now
from primespark.core.web import Principal, Role, require
from primespark.core.web.access import allow_anyone
from primespark.core.web.bodies import parse_with, read_body, read_model
from primespark.errors import AuthorizationError, MalformedError
from primespark.store import devices, server, sync_log, tombstones, uploads
from primespark.store import gate as store_gate
from primespark.store.groups import MAX_GROUPS_OF_A_DEVICE, scopes_of
from primespark.sync.batches import read_batch
from primespark.sync.records import (
    MAX_RECORDS_PER_BATCH,
    EnrolRequest,
    EnrolResponse,
    EpochRequest,
    EpochResponse,
    Fact,
    Limits,
    PullResponse,
    PushRequest,
    PushResponse,
    TimeResponse,
    TrustedKey,
)

MAX_PULL_WAIT_S = 60.0
# Nobody has shown a credential yet when this body is read.
MAX_ENROL_BYTES = 16 * 1024

router = APIRouter(prefix="/sync/v1")
CloudState = Annotated[Cloud, Depends(cloud_of)]
Device = Annotated[Principal, Depends(require(Role.DEVICE))]


# The token in the body is the credential here.
@router.post("/enroll", dependencies=[Depends(allow_anyone)])
async def enrol(request: Request, cloud: CloudState) -> EnrolResponse:
    """Exchange a token for a device's key and its first epoch."""
    asked = await read_model(request, EnrolRequest, MAX_ENROL_BYTES)

    def work(connection: Connection) -> tuple[devices.Enrolment, int]:
        enrolment = devices.enrol(connection, asked.token, asked.device_id, asked.capabilities, asked.versions)
        return enrolment, server.identity(connection).server_epoch

    enrolment, server_epoch = await cloud.transact(work)
    public = base64.b64encode(cloud.signing_key.public_bytes).decode()
    return EnrolResponse(
        replica_id=asked.device_id,
        key=enrolment.key,
        epoch=enrolment.epoch,
        server_epoch=server_epoch,
        limits=Limits(max_body_bytes=cloud.settings.cloud.max_body_bytes, max_records=MAX_RECORDS_PER_BATCH),
        server_time=utc_now(),
        trust=[TrustedKey(key_id=cloud.signing_key.key_id, ed25519_public=public)],
    )


@router.post("/epoch")
async def begin_epoch(request: Request, cloud: CloudState, device: Device) -> EpochResponse:
    """A new epoch, for a device that lost its database but not its key, or that finds this cloud restored."""
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    asked = await read_model(request, EpochRequest, MAX_ENROL_BYTES) if has_body else EpochRequest()

    def work(connection: Connection) -> tuple[int, int]:
        return devices.begin_epoch(connection, device.name, asked), server.identity(connection).server_epoch

    epoch, server_epoch = await cloud.transact(work)
    return EpochResponse(epoch=epoch, server_epoch=server_epoch, server_time=utc_now())


@router.get("/time")
async def tell_time(_: Device) -> TimeResponse:
    """The time, for a device that has none; as every answer it says in its headers how long the gate held it."""
    return TimeResponse(server_time=utc_now())


@router.post("/push")
async def push(request: Request, cloud: CloudState, device: Device) -> PushResponse:
    """Apply one batch in one transaction, once, however often it is sent."""
    # Checked when the body is read, so it is the digest of the bytes as sent.
    digest = _required(request, "content-digest").strip()
    cloud.lanes.check(Lane.PUSHES)
    payload = await read_body(request)
    batch = await asyncio.to_thread(parse_with, read_batch, payload)
    _check_identity(request, batch, device)
    await asyncio.to_thread(_check_blobs, cloud, batch)
    received_at = utc_now()
    answer = await cloud.transact(
        lambda connection: store_gate.apply_batch(connection, batch, digest, received_at, cloud.document_rules),
        cloud.push_deadline_s,
        Lane.PUSHES,
    )
    RECORDS.labels(answer.status).inc(len(batch.records))
    return answer


@router.get("/pull")
async def pull(
    cloud: CloudState,
    device: Device,
    cursor: Annotated[int, Query(ge=0, lt=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    wait: Annotated[float, Query(ge=0, le=MAX_PULL_WAIT_S)] = 0,
    snapshot: Annotated[int, Query(ge=0, lt=2**62)] = 0,
    groups: Annotated[str | None, Query(max_length=64 * MAX_GROUPS_OF_A_DEVICE)] = None,
) -> Response:
    """Changes for the device after `cursor`, or other groups than it knows; without, wait up to `wait` seconds."""
    deadline = asyncio.get_running_loop().time() + wait
    while True:
        # Taken before the read: a commit between read and wait completes it.
        ticket = cloud.notifier.ticket()
        read = partial(
            tombstones.pull, device_id=device.name, cursor=cursor, limit=limit, now=utc_now(), snapshot=snapshot,
            # One that knows nothing of groups knows nothing of commands: it would take no page with one.
            takes_commands=groups is not None,
        )  # fmt: skip
        try:
            page = await cloud.transact(read)
        except BaseException:
            ticket.cancel()
            raise
        remaining_s = deadline - asyncio.get_running_loop().time()
        is_moved = groups is not None and groups != ",".join(page.groups or ())
        if page.changes or is_moved or remaining_s <= 0:
            ticket.cancel()
            return _page(page, is_old=groups is None)
        scopes = scopes_of(device.name, page.groups or [])
        cloud.notifier.narrow(ticket, map(sync_log.topic_of, scopes))
        if not await cloud.notifier.wait_for(ticket, remaining_s):
            return _page(page, is_old=groups is None)
        cursor, snapshot = page.next_cursor, page.snapshot or 0


def _page(page: PullResponse, *, is_old: bool) -> Response:
    """The answer to a pull; a device that does not tell its groups knows nothing of them."""
    text = page.model_dump_json(exclude={"snapshot", "groups"} if is_old else None)
    return Response(text, media_type="application/json")


def _required(request: Request, header: str) -> str:
    value = request.headers.get(header)
    if value is None:
        raise MalformedError(f"no {header} header", remedy="send the batch as the protocol says", code="no_digest")
    return value


def _check_blobs(cloud: Cloud, batch: PushRequest) -> None:
    """The store knows who wrote which blob; whether its file is there, after a backup, only the disk does."""
    for record in batch.records:
        if isinstance(record, Fact) and record.blob is not None and not cloud.blobs.exists(record.blob):
            raise uploads.blob_missing(record.blob)


def _check_identity(request: Request, batch: PushRequest, device: Principal) -> None:
    if batch.replica_id != device.name:
        raise AuthorizationError(
            f"the key of {device.name} may not push for {batch.replica_id}",
            remedy="push under the device's own id",
            code="wrong_device",
        )
    key = f"{batch.replica_id}/{batch.epoch}/{batch.batch_seq}"
    if request.headers.get("idempotency-key", key) != key:
        raise MalformedError("Idempotency-Key names another batch", remedy=f"send {key}", code="bad_idempotency_key")
