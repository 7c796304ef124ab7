"""`/api/v1/uploads`: files that a program beside the agent hands over for the cloud."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request

from edge_agent.api import Operator, Viewer
from edge_agent.queue import NewFact
from edge_agent.uploads.queue import UploadQueue
from edge_agent.uploads.rows import Upload
from primespark.core.web.bodies import parse_json
from primespark.errors import InvalidInputError, MalformedError, UnsupportedMediaError
from primespark.sync.records import DataClass, Name

router = APIRouter(prefix="/api/v1/uploads")
# A sender that is silent for longer holds a file for nothing.
_SILENCE_S = 60.0


def _uploads_of(request: Request) -> UploadQueue:
    uploads: UploadQueue = request.app.state.uploads
    return uploads


Uploads = Annotated[UploadQueue, Depends(_uploads_of)]


@router.post("", status_code=201)
async def take_upload(
    request: Request,
    uploads: Uploads,
    _: Operator,
    data_class: Literal[DataClass.INFERENCE_RESULTS, DataClass.TELEMETRY] = DataClass.INFERENCE_RESULTS,
    stream: Name = "uploads",
    value: Annotated[str, Query(max_length=4096)] = "{}",
) -> dict[str, Any]:
    """Keep the body, whatever it is, as a blob for the cloud, and a fact that names it; both are on disk then."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMediaError("a packed body", remedy="send the file's own bytes")
    described = parse_json(value.encode())
    if not isinstance(described, dict):
        raise InvalidInputError("`value` is a JSON object", remedy="describe the file in one")
    media_type = request.headers.get("content-type", "application/octet-stream")[:200]
    fact = NewFact(data_class, {**described, "media_type": media_type}, stream=stream)
    declared = request.headers.get("content-length", "")
    return _describe(await uploads.take(_pieces(request), fact, int(declared) if declared.isdecimal() else 0))


@router.get("", dependencies=[Viewer])
async def list_uploads(
    uploads: Uploads,
    cursor: Annotated[str, Query(max_length=64)] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """Blobs that are kept until the cloud has them and their facts, by id."""
    items = await uploads.page(cursor, limit)
    return {
        "items": [_describe(item) for item in items],
        "next_cursor": items[-1].name if len(items) == limit else None,
    }


def _describe(upload: Upload) -> dict[str, Any]:
    fields = asdict(upload)
    # Where its fact lies in the queue is nothing to others.
    del fields["operation"]
    return {"id": fields.pop("name"), **fields}


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(_SILENCE_S):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise MalformedError(f"nothing came for {_SILENCE_S:.0f} s", code="truncated_body") from None
        yield piece
