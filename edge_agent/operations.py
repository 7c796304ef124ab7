"""Operations as the specification names them, as facts of the queue."""

from __future__ import annotations

import base64
from enum import StrEnum
from typing import Any

import numpy as np

from edge_agent.capture.pictures import encode_png
from edge_agent.priority import Priority
from edge_agent.queue import NewFact
from primespark.core.settings import OfflineSettings, StreamSettings
from primespark.sync.records import DataClass

# In base64 it still fits into a fact that the cloud takes.
_MAX_IMAGE_BYTES = 64 * 1024


class OperationType(StrEnum):
    """What an operation brings to the cloud."""

    INFERENCE = "inference_results"
    TELEMETRY = "telemetry"
    METRICS = "metrics"


def with_operations(settings: OfflineSettings) -> OfflineSettings:
    """The settings and, unless they say otherwise, a stream for operations of each type and priority."""
    known = {entry.stream for entry in settings.streams}
    pairs = [(_stream(kind, priority), priority) for kind in OperationType for priority in Priority]
    ours = [StreamSettings(stream=name, priority=priority.value) for name, priority in pairs if name not in known]
    return settings.model_copy(update={"streams": (*settings.streams, *ours)})


def operation_fact(kind: OperationType, payload: dict[str, Any], priority: Priority) -> NewFact:
    """The fact of an operation; bytes become `{"base64"}`, images (uint8 [height, width, 3]) `{"png_base64"}`."""
    value = {name: _plain(part) for name, part in payload.items()}
    return NewFact(DataClass(kind.value), value, stream=_stream(kind, priority))


def _stream(kind: OperationType, priority: Priority) -> str:
    return f"operations.{kind}.{priority}"


def _plain(part: Any) -> Any:
    if isinstance(part, np.ndarray):
        if part.dtype != np.uint8 or part.ndim != 3 or part.shape[2] != 3:
            return part.tolist()
        return {"png_base64": base64.b64encode(encode_png(part, _MAX_IMAGE_BYTES)).decode()}
    return {"base64": base64.b64encode(part).decode()} if isinstance(part, bytes) else part
