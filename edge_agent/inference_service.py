"""Inference for the cameras and for callers: models in service, a bounded number of workers, figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_agent.bundled_models import BundledModels
from edge_agent.inference_figures import InferenceFigures, count_run
from edge_agent.models_at_hand import ModelsAtHand
from edge_agent.priority import Priority
from edge_agent.result_cache import ResultCache
from edge_agent.slots.in_service import Slots
from edge_agent.work_queue import WorkQueue, by_deadline
from primespark.core.settings import InferenceSettings
from primespark.errors import InvalidInputError
from primespark.inference.catalog import ModelType
from primespark.inference.models import DETECTOR, Answered, Computed, InputKind, Model, RawInputs, ServedModel
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

Reply = TypeVar("Reply", Answered, Computed)


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
        self._models = ModelsAtHand(slots, self.bundled)
        self._results = ResultCache(settings.result_cache_entries)
        self.figures = InferenceFigures()
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
        self.figures.frame_seen(found.latency_ms)
        return found

    async def hear(self, samples: NDArray[np.float32]) -> Inference:
        """Inference on a window of a microphone, float32 [n] of -1..1 at 16 kHz, by the live model for sounds.

        Raises:
            OverloadedError: Code `inference_busy`: too many wait.
        """
        model = await self._models.get(None, ModelType.AUDIO)
        found = await self._run(lambda: samples, model)
        self.figures.sound_heard()
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
        model = await by_deadline(self._models.get(name, wanted), deadline)
        if model.input_kind is not given.kind:
            raise InvalidInputError(
                f"{model.name} takes {model.input_kind}, not {given.kind}",
                remedy="name another model or type",
                code="wrong_input_kind",
            )
        key = await self._results.key(given.content)
        current = model.current
        known = self._results.get(current.digest, key)
        self.figures.request_came()
        if known is not None:
            return _inference(current, known, 0.0, cached=True)
        found = await self._run(given.decode, model, priority, deadline)
        self._results.put(found.model_digest, key, found.predictions)
        self.figures.request_answered(found.latency_ms)
        return found

    async def model(self, name: str, deadline: float | None = None) -> Model:
        """What answers under a name now, loaded if it was not.

        Raises:
            DeadlineExceededError: Not by then.
            NotFoundError: Code `unknown_model`.
        """
        return await by_deadline(self._models.get(name, None), deadline)

    async def compute(
        self, model: Model, asked: RawInputs, priority: Priority = Priority.NORMAL, deadline: float | None = None
    ) -> Computed:
        """The outputs of a model's network, with nothing before or behind it; in turn with all other inferences.

        Raises:
            DeadlineExceededError: No answer by then; what did not run yet never does.
            PrimeSparkError: As `Model.computed` and `WorkQueue.run`.
        """
        self.figures.request_came()
        job = partial(_measured, partial(model.computed, asked), asked.variant)
        found, seconds = await self._work.run(job, priority, deadline)
        self.figures.request_answered(round(seconds * 1000, 3))
        return found

    def stats(self) -> dict[str, Any]:
        """Figures since the start, and the models in memory."""
        return {
            **self.figures.describe(),
            "models": self._models.describe(),
        }

    async def _run(
        self,
        decode: Callable[[], NDArray[Any]],
        model: Model,
        priority: Priority = Priority.NORMAL,
        deadline: float | None = None,
    ) -> Inference:
        return await self._work.run(partial(_infer, decode, model), priority, deadline)


def _infer(decode: Callable[[], NDArray[Any]], model: Model) -> Inference:
    answered, seconds = _measured(lambda: model.answered(decode()), model.current)
    return _inference(answered.by, answered.predictions, seconds)


def _measured(ask: Callable[[], Reply], expected: ServedModel) -> tuple[Reply, float]:
    """The reply and its seconds, counted for the variant that gave it; a failure for the one expected to."""
    started = time.perf_counter()
    outcome, by = "failed", expected
    try:
        reply = ask()
        outcome, by = "ok", reply.by
    finally:
        seconds = count_run(by, outcome, started)
    return reply, seconds


def _inference(model: ServedModel, predictions: list[Prediction], seconds: float, cached: bool = False) -> Inference:
    return Inference(
        model.name, model.version, model.digest, model.model_type, model.device, predictions,
        round(seconds * 1000, 3), cached,
    )  # fmt: skip
