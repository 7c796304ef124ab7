"""The device's HTTP API for people and programs beside it."""

from __future__ import annotations

import base64
import binascii
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from numpy.typing import NDArray
from pydantic import Field, StringConstraints

from edge_agent.connectivity import ConnectivityMonitor
from edge_agent.device_clock import DeviceClock
from edge_agent.documents import Documents
from edge_agent.exchange import Exchange, Phase, SyncState
from edge_agent.hardware import Hardware
from edge_agent.inference_service import Given, InferenceService
from edge_agent.language_service import LanguageService
from edge_agent.priority import Priority
from edge_agent.queue import OfflineQueue
from primespark.core.clock import to_rfc3339
from primespark.core.settings import InferenceSettings
from primespark.core.web import Principal, Role, read_body, read_model, require
from primespark.errors import ConflictError, InvalidInputError, MalformedError, UnsupportedMediaError
from primespark.inference.audio import MEDIA_TYPES as AUDIO_TYPES
from primespark.inference.audio import decode_audio
from primespark.inference.images import MEDIA_TYPES as IMAGE_TYPES
from primespark.inference.images import decode_image
from primespark.inference.models import InputKind
from primespark.inference.tabular import MAX_ROWS
from primespark.sync.records import Message

_Text = Annotated[str, StringConstraints(min_length=1, max_length=128)]
MAX_DEADLINE_MS = 3_600_000
_Row = Annotated[list[float], Field(min_length=1, max_length=10_000, fail_fast=True)]

router = APIRouter(prefix="/api/v1")


@dataclass(frozen=True, slots=True)
class Device:
    """What the routes stand on."""

    device_id: str
    service: InferenceService
    language: LanguageService
    queue: OfflineQueue
    documents: Documents
    exchange: Exchange | None
    hardware: Hardware
    clock: DeviceClock
    monitor: ConnectivityMonitor | None

    @property
    def link(self) -> dict[str, Any] | None:
        """Whether the cloud can be reached; None without one."""
        return None if self.monitor is None else self.monitor.to_json()


def device_of(request: Request) -> Device:
    """The application's device, for use with `Depends`."""
    device: Device = request.app.state.device
    return device


Here = Annotated[Device, Depends(device_of)]
Viewer = Depends(require(Role.VIEWER))
Operator = Annotated[Principal, Depends(require(Role.OPERATOR))]


class InferenceRequest(Message):
    """An inference asked for in JSON: one of `image`, `audio` (files in base64) and `rows`."""

    image: Annotated[str, Field(min_length=1)] | None = None
    audio: Annotated[str, Field(min_length=1)] | None = None
    rows: Annotated[list[_Row], Field(min_length=1, max_length=MAX_ROWS, fail_fast=True)] | None = None
    model: _Text | None = None
    model_type: _Text | None = None
    request_id: _Text | None = None
    priority: Annotated[Priority, Field(strict=False)] | None = None
    deadline_ms: Annotated[int, Field(gt=0, le=MAX_DEADLINE_MS)] | None = None


@router.post("/inference")
async def infer(
    request: Request,
    here: Here,
    _: Operator,
    model: Annotated[str | None, Query(min_length=1, max_length=128)] = None,
    model_type: Annotated[str | None, Query(min_length=1, max_length=128)] = None,
    request_id: Annotated[str | None, Query(min_length=1, max_length=128)] = None,
    priority: Priority = Priority.NORMAL,
    deadline_ms: Annotated[int | None, Query(gt=0, le=MAX_DEADLINE_MS)] = None,
) -> dict[str, Any]:
    """Predictions for an image or a recording, the file itself, or JSON with it in base64 or with rows of numbers."""
    received = time.monotonic()
    settings = here.service.settings
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in IMAGE_TYPES:
        given = _image(await read_body(request), settings)
    elif media_type in AUDIO_TYPES:
        given = _audio(await read_body(request), settings)
    elif media_type == "application/json":
        asked = await read_model(request, InferenceRequest)
        given = _given(asked, settings)
        model, model_type = asked.model or model, asked.model_type or model_type
        request_id, priority = asked.request_id or request_id, asked.priority or priority
        deadline_ms = asked.deadline_ms or deadline_ms
    else:
        raise UnsupportedMediaError(
            f"Content-Type {media_type[:60]!r}",
            remedy=f"send {', '.join((*IMAGE_TYPES, *AUDIO_TYPES))} or application/json",
        )
    deadline = received + deadline_ms / 1000 if deadline_ms is not None else None
    found = await here.service.answer(given, model, model_type, priority, deadline)
    return {"request_id": request_id or uuid.uuid4().hex, **asdict(found)}


@router.get("/inference/stats", dependencies=[Viewer])
async def inference_stats(here: Here) -> dict[str, Any]:
    """Frames and requests since the start, latencies, models in service; how the hardware is."""
    return {**here.service.stats(), "hardware": here.hardware.report()}


@router.get("/offline/status", dependencies=[Viewer])
async def offline_status(here: Here) -> dict[str, Any]:
    """What waits for the cloud."""
    status = await here.queue.status()
    is_online = here.exchange is not None and here.exchange.state.phase is Phase.ONLINE
    return {"online": is_online, "link": here.link, **asdict(status)}


@router.get("/offline/queue", dependencies=[Viewer])
async def offline_queue(
    here: Here,
    cursor: Annotated[int, Query(ge=0, lt=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """Operations that wait, oldest first."""
    items = await here.queue.waiting(cursor, limit)
    return {"items": [asdict(item) for item in items], "next_cursor": items[-1].id if len(items) == limit else None}


@router.get("/sync/status", dependencies=[Viewer])
async def sync_status(here: Here) -> dict[str, Any]:
    """Both directions."""
    state = here.exchange.state if here.exchange is not None else SyncState(Phase.ALONE)
    status, position = await here.queue.status(), await here.documents.position()
    pace = state.pace.per_s()
    return {
        "phase": state.phase, "online": state.phase is Phase.ONLINE, "code": state.code or None,
        "cause": state.cause or None, "remedy": state.remedy or None, "epoch": status.epoch,
        "push": {"pending": status.pending, "records": state.pushed_records, "last_at": _when(state.last_push_at),
                 "records_per_s": pace, "eta_s": status.pending / pace if pace else None},
        "pull": {"cursor": position.cursor, "groups": position.groups, "last_at": _when(state.last_pull_at)},
        "last_contact_at": _when(state.last_contact_at), "clock_offset_s": here.clock.offset_s,
        "link": here.link, "cloud_restored_at": status.cloud_restored_at,
    }  # fmt: skip


@router.post("/sync/run", status_code=202)
async def synchronise(here: Here, _: Operator) -> dict[str, Any]:
    """Push and pull now; how it went is in `/api/v1/sync/status`."""
    if here.exchange is None:
        raise ConflictError("this device has no cloud", remedy="set network.cloud_url", code="no_cloud")
    await here.exchange.look_again()
    here.exchange.synchronise_now()
    return {"started": True}


def _given(asked: InferenceRequest, settings: InferenceSettings) -> Given:
    match asked:
        case InferenceRequest(image=str(image), audio=None, rows=None):
            return _image(_decode_base64("image", image), settings)
        case InferenceRequest(image=None, audio=str(audio), rows=None):
            return _audio(_decode_base64("audio", audio), settings)
        case InferenceRequest(image=None, audio=None, rows=[*rows]):
            return Given(InputKind.TABLE, partial(_table, rows))
    raise InvalidInputError("give one of image, audio and rows", code="wrong_inputs")


def _image(data: bytes, settings: InferenceSettings) -> Given:
    return Given(InputKind.IMAGE, partial(decode_image, data, settings.max_image_pixels), data)


def _audio(data: bytes, settings: InferenceSettings) -> Given:
    return Given(InputKind.AUDIO, partial(decode_audio, data, settings.max_audio_s), data)


def _table(rows: list[list[float]]) -> NDArray[np.float32]:
    if len({len(row) for row in rows}) > 1:
        raise InvalidInputError("rows of different lengths", remedy="give each as many numbers", code="bad_table")
    with np.errstate(over="ignore"):
        table = np.array(rows, dtype=np.float32)
    if not np.isfinite(table).all():
        raise InvalidInputError("numbers beyond 3.4e38", remedy="give smaller ones", code="bad_table")
    return table


def _decode_base64(field: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError(f"`{field}` is not base64", remedy="encode the file's bytes", code="bad_base64") from None


_when: Callable[[Any], str | None] = lambda moment: to_rfc3339(moment) if moment else None  # noqa: E731
