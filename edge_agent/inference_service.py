"""Inference for the cameras and for callers: models in service, a bounded number of workers, figures."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter, Histogram

from primespark.core.clock import to_rfc3339, utc_now
from primespark.core.settings import InferenceSettings
from primespark.errors import InvalidInputError, NotFoundError, OverloadedError
from primespark.inference.models import ServedModel

DEFAULT_MODEL_TYPE = "object_detection"
MAX_WAITING = 256
_WORKERS = 2
_KEPT_LATENCIES = 2000
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5, 5)

REQUESTS = Counter("primespark_inference_requests_total", "Inferences.", ["model", "device", "outcome"])
DURATION = Histogram("primespark_inference_duration_seconds", "Decoding and inference.", ["model"], buckets=_BUCKETS)

Image = Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Slot:
    """A model in service."""

    model: ServedModel
    since: datetime


@dataclass(frozen=True, slots=True)
class Inference:
    """What a model answered."""

    model: str
    model_version: int
    model_digest: str
    model_type: str
    device: str
    predictions: list[dict[str, Any]]
    latency_ms: float


class Slots:
    """Models in service by name; an exchange is one assignment, and who has taken a model keeps it to the end."""

    def __init__(self) -> None:
        self._by_name: dict[str, Slot] = {}

    def put(self, model: ServedModel) -> Slot:
        """Serve `model` under its name from now on."""
        slot = Slot(model, utc_now())
        self._by_name = {**self._by_name, model.name: slot}
        return slot

    def remove(self, name: str) -> None:
        """Serve nothing under this name."""
        self._by_name = {key: slot for key, slot in self._by_name.items() if key != name}

    def get(self, name: str) -> Slot | None:
        """The model in service under this name."""
        return self._by_name.get(name)

    def items(self) -> list[tuple[str, Slot]]:
        """All, by name."""
        return sorted(self._by_name.items())

    def find(self, name: str | None, model_type: str | None) -> ServedModel:
        """The model of this name, else the live one of this type, else the detector.

        Raises:
            NotFoundError: Code `unknown_model`: none is in service.
            InvalidInputError: Code `wrong_model_type`: the named model is of another type.
        """
        if name is not None:
            slot = self._by_name.get(name)
            if slot is None:
                raise self._unknown(f"no model {name[:64]!r} is in service")
            if model_type is not None and slot.model.model_type != model_type:
                raise InvalidInputError(
                    f"{name} is of type {slot.model.model_type}",
                    remedy="leave out one of the two",
                    code="wrong_model_type",
                )
            return slot.model
        wanted = model_type or DEFAULT_MODEL_TYPE
        for slot in self._by_name.values():
            if slot.model.model_type == wanted:
                return slot.model
        raise self._unknown(f"no model of type {wanted[:64]!r} is in service")

    def _unknown(self, cause: str) -> NotFoundError:
        names = ", ".join(sorted(self._by_name)) or "none yet"
        return NotFoundError(cause, remedy=f"in service: {names}", code="unknown_model")


class InferenceService:
    """Runs models on threads of its own.

    Args:
        slots: Models in service.
        settings: Limits.
    """

    def __init__(self, slots: Slots, settings: InferenceSettings) -> None:
        self.slots = slots
        self.settings = settings
        self.frames = self.requests = 0
        self.first_result_at: datetime | None = None
        self._frame_ms: deque[float] = deque(maxlen=_KEPT_LATENCIES)
        self._request_ms: deque[float] = deque(maxlen=_KEPT_LATENCIES)
        self._waiting = 0
        self._executor = ThreadPoolExecutor(_WORKERS, thread_name_prefix="inference")

    def close(self) -> None:
        """Let what runs finish; start nothing more."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def see(self, image: Image, model: ServedModel) -> Inference:
        """Inference on a frame of a camera."""
        found = await self._run(image, model)
        self.frames += 1
        self._frame_ms.append(found.latency_ms)
        self._note_first()
        return found

    async def answer(self, image: Image, name: str | None, model_type: str | None) -> Inference:
        """Inference for a caller.

        Raises:
            NotFoundError: Code `unknown_model`.
            InvalidInputError: The image, or the model's type.
            OverloadedError: Code `inference_busy`: too many wait.
        """
        found = await self._run(image, self.slots.find(name, model_type))
        self.requests += 1
        self._request_ms.append(found.latency_ms)
        self._note_first()
        return found

    def stats(self) -> dict[str, Any]:
        """Figures since the start; latencies of frames, of requests where there were no frames."""
        latencies = list(self._frame_ms or self._request_ms)
        p50, p95 = (float(x) for x in np.percentile(latencies, (50, 95))) if latencies else (None, None)
        return {
            "frames": self.frames,
            "requests": self.requests,
            "first_result_at": to_rfc3339(self.first_result_at) if self.first_result_at else None,
            "p50_ms": p50,
            "p95_ms": p95,
            "models": {
                name: {
                    "version": slot.model.version, "digest": slot.model.digest, "since": to_rfc3339(slot.since),
                    "model_type": slot.model.model_type, "device": slot.model.device,
                }
                for name, slot in self.slots.items()
            },
        }  # fmt: skip

    def _note_first(self) -> None:
        if self.first_result_at is None:
            self.first_result_at = utc_now()

    async def _run(self, image: Image, model: ServedModel) -> Inference:
        if self._waiting >= MAX_WAITING:
            raise OverloadedError("too many inferences wait", remedy="ask again later", code="inference_busy")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, _infer, image, model)
        finally:
            self._waiting -= 1


def _infer(image: Image, model: ServedModel) -> Inference:
    started = time.perf_counter()
    outcome = "failed"
    try:
        predictions = model.predict(image())
        outcome = "ok"
    finally:
        seconds = time.perf_counter() - started
        REQUESTS.labels(model.name, model.device, outcome).inc()
        DURATION.labels(model.name).observe(seconds)
    return Inference(
        model.name, model.version, model.digest, model.model_type, model.device, predictions, round(seconds * 1000, 3)
    )
