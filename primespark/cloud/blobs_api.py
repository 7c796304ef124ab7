"""Blobs between device and cloud: read in ranges, written chunk by chunk."""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from sqlalchemy import Connection
from starlette.responses import FileResponse, Response

from primespark.cloud.state import Cloud, cloud_of
from primespark.core.clock import utc_now
from primespark.core.identifiers import sha256_hex
from primespark.core.web import Principal, Role, require
from primespark.core.web.bodies import read_body, read_model
from primespark.errors import IntegrityError, InvalidInputError, MalformedError, NotFoundError
from primespark.store import documents, uploads
from primespark.sync.chunks import MAX_CHUNK_BYTES, ChunkList, UploadState

_SHA256 = re.compile(r"[0-9a-f]{64}")

router = APIRouter(prefix="/sync/v1")
CloudState = Annotated[Cloud, Depends(cloud_of)]
Device = Annotated[Principal, Depends(require(Role.DEVICE))]

people = APIRouter(prefix="/api/v1", dependencies=[Depends(require(Role.VIEWER))])


@router.get("/blobs/{sha256}")
async def blob(sha256: str, cloud: CloudState, device: Device) -> Response:
    """A blob that the device wrote or that a document in its scopes names; `Range` and `If-Range` are honoured."""
    return await _send(await _readable(sha256, cloud, device), cloud)


@people.get("/blobs/{sha256}")
async def blob_of_fact(sha256: str, cloud: CloudState) -> Response:
    """A blob that a fact names; `Range` and `If-Range` are honoured."""
    is_named = partial(uploads.is_of_fact, sha256=sha256)
    if not _SHA256.fullmatch(sha256) or not await cloud.transact(is_named):
        raise NotFoundError(f"no fact names a blob {sha256[:64]!r}", remedy="take it from the fact's lineage")
    return await _send(sha256, cloud)


@router.get("/blobs/{sha256}/chunks")
async def chunks(sha256: str, cloud: CloudState, device: Device) -> Response:
    """What such a blob is made of."""
    await _readable(sha256, cloud, device)
    try:
        made_of = await asyncio.to_thread(cloud.blobs.chunks, sha256)
    except ValueError:
        # It has too many: only the whole can be had.
        raise _no_blob(sha256) from None
    return Response(made_of.to_json(), media_type="application/json")


@router.put("/blobs/{sha256}/chunks")
async def name_chunks(sha256: str, request: Request, cloud: CloudState, device: Device) -> UploadState:
    """Say what a blob is made of; which chunks are missing. With none missing it is whole and on the disk."""
    wanted = await read_model(request, ChunkList)
    if wanted.sha256 != sha256:
        raise InvalidInputError("the list is of another blob", remedy="send it to the path of its own")
    limits = uploads.UploadLimits(cloud.settings.cloud.max_blob_bytes, cloud.settings.cloud.max_unfinished_bytes)
    note = partial(uploads.begin, device_id=device.name, wanted=wanted, limits=limits, now=utc_now())
    begun = await cloud.transact(note)
    if begun.is_written:
        if await asyncio.to_thread(cloud.blobs.keep, sha256):
            return UploadState(missing=[])
        # Its file is gone: it has to come again.
        await cloud.transact(partial(uploads.disown, device_id=device.name, sha256=sha256))
        begun = await cloud.transact(note)
    chunks = uploads.Chunks(cloud.blobs)
    try:
        missing = await asyncio.to_thread(chunks.bring_together, device.name, wanted, begun.versions)
    except IntegrityError:
        await cloud.transact(partial(uploads.give_up, device_id=device.name, sha256=sha256))
        raise
    if not missing:

        def finish(connection: Connection) -> set[str]:
            uploads.finish(connection, device.name, wanted, utc_now())
            return uploads.unneeded(connection, device.name, wanted)

        unneeded = await cloud.transact(finish)
        await asyncio.to_thread(chunks.discard, device.name, unneeded)
    return UploadState(missing=missing)


@router.put("/chunks/{sha256}", status_code=204)
async def chunk(sha256: str, request: Request, cloud: CloudState, device: Device) -> Response:
    """Take one chunk of a blob whose chunks the device has named; as often as it is sent."""
    data = await read_body(request, MAX_CHUNK_BYTES)
    if sha256_hex(data) != sha256:
        raise MalformedError("the chunk has another digest", remedy="send it again", code="bad_digest")
    await cloud.transact(partial(uploads.check_expected, device_id=device.name, sha256=sha256, size=len(data)))
    await asyncio.to_thread(uploads.Chunks(cloud.blobs).keep, device.name, sha256, data)
    return Response(status_code=204)


async def _send(sha256: str, cloud: Cloud) -> Response:
    path = cloud.blobs.path(sha256)
    if not await asyncio.to_thread(path.is_file):
        raise _no_blob(sha256)
    headers = {"ETag": f'"{sha256}"', "Cache-Control": "private, immutable, max-age=31536000"}
    return FileResponse(path, media_type="application/octet-stream", headers=headers)


async def _readable(sha256: str, cloud: Cloud, device: Principal) -> str:
    """The name of a blob that the device may read.

    Raises:
        NotFoundError: It may not, or that is no name.
    """

    def may_read(connection: Connection) -> bool:
        return documents.names_blob(connection, device.name, sha256) or uploads.wrote(connection, device.name, sha256)

    if not _SHA256.fullmatch(sha256) or not await cloud.transact(may_read):
        raise _no_blob(sha256)
    return sha256


def _no_blob(sha256: str) -> NotFoundError:
    return NotFoundError(f"no blob {sha256[:64]!r} for this device", remedy="read only what a document names")
