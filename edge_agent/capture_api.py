"""What the cameras see, for people beside the device: sources, latest frames, kept pictures, live events."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from email.utils import format_datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from edge_agent.capture import Capture, Witness
from edge_agent.capture.broadcast import Broadcast
from edge_agent.capture.picture_store import Picture, PictureKind, PictureStore
from edge_agent.capture.pictures import draw_boxes, encode_jpeg
from edge_agent.capture.watching import Watched
from edge_agent.capture.witness import Latest
from primespark.core.clock import to_rfc3339
from primespark.core.web import Role, require
from primespark.errors import NotFoundError

router = APIRouter(prefix="/api/v1")
Viewer = Depends(require(Role.VIEWER))
# Pictures of people's homes: no proxy and no browser keeps them.
_HEADERS = {"Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class CaptureParts:
    """What the routes stand on; without a capture there are no sources, but what was kept can be seen."""

    capture: Capture | None
    witness: Witness
    pictures: dict[PictureKind, PictureStore]
    broadcast: Broadcast


def _parts_of(request: Request) -> CaptureParts:
    parts: CaptureParts = request.app.state.capture_parts
    return parts


Here = Annotated[CaptureParts, Depends(_parts_of)]


@router.get("/capture", dependencies=[Viewer])
async def list_sources(here: Here) -> dict[str, Any]:
    """The sources and how each stands."""
    watched = here.capture.sources.values() if here.capture else ()
    return {"items": [_describe_source(one) for one in watched], "next_cursor": None}


@router.get("/capture/{source}/latest.jpg", dependencies=[Viewer])
async def latest_frame(source: str, here: Here, boxes: bool = True) -> Response:
    """The last frame of a source that was looked at, with what was found in it."""
    latest = here.witness.latest.get(source)
    if latest is None:
        names = ", ".join(sorted(here.witness.latest)) or "none yet"
        raise NotFoundError(f"no frame of {source[:64]!r}", remedy=f"sources with a frame: {names}")
    data = await asyncio.to_thread(_draw, latest, boxes)
    return Response(
        data, media_type="image/jpeg", headers=_HEADERS | {"Last-Modified": format_datetime(latest.time, usegmt=True)}
    )


@router.get("/snapshots", dependencies=[Viewer])
async def list_snapshots(
    here: Here,
    kind: PictureKind = PictureKind.EVENT,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> dict[str, Any]:
    """Kept pictures of a kind, the newest first, with what was known when they were taken."""
    found = await asyncio.to_thread(here.pictures[kind].list, cursor, limit)
    return {"items": [describe_picture(picture) for picture in found.pictures], "next_cursor": found.next_cursor}


@router.get("/snapshots/{picture_id}", dependencies=[Viewer])
async def read_snapshot(picture_id: str, here: Here) -> Response:
    """A kept picture or sound."""
    kind = PictureKind.EXAMPLE if picture_id.startswith(PictureKind.EXAMPLE) else PictureKind.EVENT
    data, media_type = await asyncio.to_thread(here.pictures[kind].read_file, picture_id)
    return Response(data, media_type=media_type, headers=_HEADERS)


@router.get("/events", dependencies=[Viewer])
async def events(here: Here) -> Response:
    """Results and events as they happen, as server-sent events."""
    return _EventStream(here.broadcast)


class _EventStream(StreamingResponse):
    """Listens only while it is sent, so that a client that has gone leaves nothing behind."""

    def __init__(self, broadcast: Broadcast) -> None:
        super().__init__((), media_type="text/event-stream", headers=_HEADERS)
        self._broadcast = broadcast

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._broadcast.listen() as listener:
            self.body_iterator = listener.messages()
            await super().__call__(scope, receive, send)


def _describe_source(watched: Watched) -> dict[str, Any]:
    source = watched.source
    return {
        "name": watched.name, "kind": source.kind, "state": watched.state, "fault": watched.fault or None,
        "frame_fault": watched.frame_fault or None, "warning": watched.warning or None,
        "frames_per_second": source.frames_per_second, "reconnects": watched.reconnects,
        "last_frame_at": to_rfc3339(watched.last_frame_at) if watched.last_frame_at else None,
        "rules": [rule.name for rule in source.settings.rules],
    }  # fmt: skip


def describe_picture(picture: Picture) -> dict[str, Any]:
    """A kept picture as the lists of this API show it."""
    return {
        **picture.note,
        "id": picture.id,
        "time": to_rfc3339(picture.time),
        "media_type": picture.media_type,
        "bytes": picture.bytes,
    }


def _draw(latest: Latest, boxes: bool) -> bytes:
    return encode_jpeg(draw_boxes(latest.pixels, latest.predictions) if boxes else latest.pixels)
