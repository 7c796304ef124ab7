"""Inference for the cameras and for callers: models in service, a bounded number of workers, figures."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter, Histogram

from edge_agent.bundled_models import BundledModels
from edge_agent.result_cache import ResultCache
from edge_agent.work_queue import Priority, WorkQueue, by_deadline
from primespark.core.clock import to_rfc3339, utc_now
from primespark.core.settings import InferenceSettings
from primespark.errors import InvalidInputError, NotFoundError
from primespark.inference import catalog
from primespark.inference.catalog import ModelType
from primespark.inference.engine import Tensor
from primespark.inference.models import DETECTOR, InputKind, Model, ServedModel
from primespark.inference.predictions import Prediction

DEFAULT_MODEL_TYPES = {
    InputKind.IMAGE: ModelType.OBJECT_DETECTION,
    InputKind.AUDIO: ModelType.AUDIO,
    InputKind.TABLE: ModelType.TABULAR,
}
MAX_WAITING = 256
_WORKERS = 2
# Of these most wait for the accelerator, which is busy with some of them at once.
_WORKERS_WITH_ACCELERATOR = 8
_KEPT_LATENCIES = 2000
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5, 5)

REQUESTS = Counter("primespark_inference_requests_total", "Inferences.", ["model", "device", "outcome"])
DURATION = Histogram("primespark_inference_duration_seconds", "Decoding and inference.", ["model"], buckets=_BUCKETS)


@dataclass(frozen=True, slots=True)
class Given:
    """What a model is to look at.

    Attributes:
        kind: Which models take it.
        decode: Makes the array; called on a worker's thread.
        content: The file it is made of, by which an answer is known again; None: it is not kept.
    """

    kind: InputKind
    decode: Callable[[], NDArray[Any]]
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Slot:
    """A model in service."""

    model: Model
    since: datetime


@dataclass(frozen=True, slots=True)
class Inference:
    """What a model answered; name, version, digest and device are of the variant that did."""

    model: str
    model_version: int
    model_digest: str
    model_type: str
    device: str
    predictions: list[Prediction]
    latency_ms: float
    cached: bool = False


class Slots:
    """Models in service by name; an exchange is one assignment, and who has taken a model keeps it to the end."""

    def __init__(self) -> None:
        self._by_name: dict[str, Slot] = {}

    def put(self, model: Model, since: datetime | None = None) -> Slot:
        """Serve `model` under its name from now on; `since` is told of one that served before in another form."""
        slot = Slot(model, since or utc_now())
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

    def find(self, name: str | None, model_type: str | None) -> Model | None:
        """The model of this name, else the live one of this type."""
        if name is not None:
            slot = self._by_name.get(name)
            return slot.model if slot is not None else None
        return next((slot.model for slot in self._by_name.values() if slot.model.model_type == model_type), None)

    def close(self) -> None:
        """Release all models, once nobody asks them any more."""
        for slot in self._by_name.values():
            slot.model.close()


class InferenceService:
    """Runs models on threads of its own.

    Args:
        slots: Models in service.
        settings: Limits.
        elsewhere: Bundled models that somebody else puts into the slots; the others are loaded when first asked for.
        has_accelerator: Models may wait for one.
    """

    def __init__(
        self,
        slots: Slots,
        settings: InferenceSettings,
        elsewhere: frozenset[str] = frozenset({DETECTOR}),
        has_accelerator: bool = False,
    ) -> None:
        self.slots = slots
        self.settings = settings
        self.bundled = BundledModels(settings, elsewhere)
        self._results = ResultCache(settings.result_cache_entries)
        self.frames = self.requests = 0
        self.first_result_at: datetime | None = None
        self._frame_ms: deque[float] = deque(maxlen=_KEPT_LATENCIES)
        self._request_ms: deque[float] = deque(maxlen=_KEPT_LATENCIES)
        self.workers = max(_WORKERS_WITH_ACCELERATOR if has_accelerator else _WORKERS, settings.batching.size)
        self._work = WorkQueue("inference", self.workers, MAX_WAITING)

    @property
    def depth(self) -> int:
        """Requests that wait or run."""
        return self._work.depth

    def close(self) -> None:
        """Let what runs finish; start nothing more."""
        self._work.close()

    def is_idle(self) -> bool:
        """Whether no work waits."""
        return not self._work.waiting

    async def see(self, image: Callable[[], NDArray[np.uint8]], model: Model) -> Inference:
        """Inference on a frame of a camera."""
        found = await self._run(image, model)
        self.frames += 1
        self._frame_ms.append(found.latency_ms)
        self._note_first()
        return found

    async def hear(self, samples: NDArray[np.float32]) -> Inference:
        """Inference on a window of a microphone, float32 [n] of -1..1 at 16 kHz, by the live model for sounds.

        Raises:
            OverloadedError: Code `inference_busy`: too many wait.
        """
        model = await self._model(None, ModelType.AUDIO)
        found = await self._run(lambda: samples, model)
        self._note_first()
        return found

    async def answer(
        self,
        given: Given,
        name: str | None,
        model_type: str | None,
        priority: Priority = Priority.NORMAL,
        deadline: float | None = None,
    ) -> Inference:
        """Inference for a caller.

        Args:
            given: What to look at.
            name: Of the model; without it the live one of the type, else the bundled one.
            model_type: Of the model; without it and without a name, the one for what is given.
            priority: Against others that wait; the cameras' frames are of normal priority.
            deadline: In `time.monotonic()` seconds.

        Raises:
            DeadlineExceededError: No answer by then; what did not run yet never does.
            NotFoundError: Code `unknown_model`.
            InvalidInputError: Code `wrong_model_type` or `wrong_input_kind`, or what is given is not sound.
            OverloadedError: Code `inference_busy`: too many wait.
        """
        wanted = model_type or (DEFAULT_MODEL_TYPES[given.kind] if name is None else None)
        model = await by_deadline(self._model(name, wanted), deadline)
        if model.input_kind is not given.kind:
            raise InvalidInputError(
                f"{model.name} takes {model.input_kind}, not {given.kind}",
                remedy="name another model or type",
                code="wrong_input_kind",
            )
        key = await self._results.key(given.content)
        current = model.current
        known = self._results.get(current.digest, key)
        self.requests += 1
        if known is not None:
            return _inference(current, known, 0.0, cached=True)
        found = await self._run(given.decode, model, priority, deadline)
        self._results.put(found.model_digest, key, found.predictions)
        self._request_ms.append(found.latency_ms)
        self._note_first()
        return found

    async def served(self, name: str, deadline: float | None = None) -> ServedModel:
        """The variant that answers under a name now, loaded if it was not.

        Raises:
            DeadlineExceededError: Not by then.
            NotFoundError: Code `unknown_model`.
        """
        return (await by_deadline(self._model(name, None), deadline)).current

    async def run_tensors(
        self,
        model: ServedModel,
        inputs: Mapping[str, Tensor],
        priority: Priority = Priority.NORMAL,
        deadline: float | None = None,
    ) -> list[NDArray[Any]]:
        """The outputs of a model's engine, with nothing before or behind it; in turn with all other inferences.

        Raises:
            DeadlineExceededError: No answer by then; what did not run yet never does.
            PrimeSparkError: As `InferenceEngine.run` and `WorkQueue.run`.
        """
        self.requests += 1
        outputs, seconds = await self._work.run(partial(_run_engine, model, inputs), priority, deadline)
        self._request_ms.append(round(seconds * 1000, 3))
        self._note_first()
        return outputs

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
                **{model.name: _describe(model, None) for model in self.bundled.loaded()},
                **{name: _describe(slot.model, slot.since) for name, slot in self.slots.items()},
            },
        }

    async def _model(self, name: str | None, model_type: str | None) -> Model:
        model = self.slots.find(name, model_type)
        if model is None:
            bundled = self.bundled.find(name, model_type)
            if bundled is None:
                raise self._unknown(name, model_type)
            model = await self.bundled.get(bundled)
        if model_type is not None and model.model_type != model_type:
            raise InvalidInputError(
                f"{model.name} is of type {model.model_type}",
                remedy="leave out one of the two",
                code="wrong_model_type",
            )
        return model

    def _unknown(self, name: str | None, model_type: str | None) -> NotFoundError:
        what = f"model {name[:64]!r}" if name is not None else f"model of type {str(model_type)[:64]!r}"
        names = sorted({slot for slot, _ in self.slots.items()} | {model.name for model in catalog.BUNDLED})
        return NotFoundError(f"no {what} is in service", remedy=f"there is {', '.join(names)}", code="unknown_model")

    def _note_first(self) -> None:
        if self.first_result_at is None:
            self.first_result_at = utc_now()

    async def _run(
        self,
        decode: Callable[[], NDArray[Any]],
        model: Model,
        priority: Priority = Priority.NORMAL,
        deadline: float | None = None,
    ) -> Inference:
        return await self._work.run(partial(_infer, decode, model), priority, deadline)


def _infer(decode: Callable[[], NDArray[Any]], model: Model) -> Inference:
    started = time.perf_counter()
    outcome, by = "failed", model.current
    try:
        answered = model.answered(decode())
        outcome, by = "ok", answered.by
    finally:
        seconds = _count(by, outcome, started)
    return _inference(by, answered.predictions, seconds)


def _run_engine(model: ServedModel, inputs: Mapping[str, Tensor]) -> tuple[list[NDArray[Any]], float]:
    started = time.perf_counter()
    outcome = "failed"
    try:
        outputs = model.engine.run(inputs)
        outcome = "ok"
    finally:
        seconds = _count(model, outcome, started)
    return outputs, seconds


def _count(by: ServedModel, outcome: str, started: float) -> float:
    """Seconds since `started`, told to the metrics."""
    seconds = time.perf_counter() - started
    REQUESTS.labels(by.name, by.device, outcome).inc()
    DURATION.labels(by.name).observe(seconds)
    return seconds


def _inference(model: ServedModel, predictions: list[Prediction], seconds: float, cached: bool = False) -> Inference:
    return Inference(
        model.name, model.version, model.digest, model.model_type, model.device, predictions,
        round(seconds * 1000, 3), cached,
    )  # fmt: skip


def _describe(model: Model, since: datetime | None) -> dict[str, Any]:
    current = model.current
    return {
        "version": current.version, "digest": current.digest, "since": to_rfc3339(since) if since else None,
        "model_type": model.model_type, "device": current.device, "fault": model.fault,
    }  # fmt: skip
