"""The specification's door to inference: one request in, one typed result out, over `InferenceService`."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from numpy.typing import NDArray

from edge_agent.inference_service import Given, InferenceService, Slots
from edge_agent.work_queue import Priority
from primespark.core.logging import get_logger
from primespark.core.settings import InferenceSettings, load_settings
from primespark.errors import InvalidInputError, NotFoundError
from primespark.inference.catalog import ModelType
from primespark.inference.models import DETECTOR, INPUT_OF, load_bundled
from primespark.inference.onnx_engine import OnnxEngine as CPUInferenceEngine
from primespark.inference.predictions import Prediction

__all__ = [
    "CPUInferenceEngine",
    "EdgeInferenceManager",
    "InferenceRequest",
    "InferenceResult",
    "ModelType",
    "Priority",
    "get_inference_manager",
]

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InferenceRequest:
    """What to look at, an array of the type's kind (see `ServedModel.predict`); its deadline counts from its making."""

    model_name: str
    model_type: ModelType
    input_data: NDArray[Any]
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    priority: Priority = Priority.NORMAL
    deadline_ms: float | None = None
    made_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """What a model answered; `model_name` and `model_digest` are of the one that did."""

    request_id: str
    model_name: str
    model_digest: str
    predictions: list[Prediction]
    latency_ms: float
    device: str


class EdgeInferenceManager:
    """Inference in this process.

    Args:
        settings: Of inference.
    """

    def __init__(self, settings: InferenceSettings) -> None:
        self._settings = settings
        self._service = InferenceService(Slots(), settings)

    async def initialize(self) -> None:
        """Load the detector; other models are loaded when they are first asked for."""
        settings = self._settings
        model = await asyncio.to_thread(load_bundled, DETECTOR, settings.threads, settings.minimum_score)
        self._service.slots.put(model)

    async def infer(self, request: InferenceRequest) -> InferenceResult:
        """The answer of the model of this name; of the one of this type where there is none of the name.

        Raises:
            PrimeSparkError: As `InferenceService.answer`.
        """
        kind = INPUT_OF.get(request.model_type)
        if kind is None:
            raise InvalidInputError(
                "a language model answers conversations", remedy="use LanguageService", code="wrong_input_kind"
            )
        given = Given(kind, lambda: request.input_data)
        deadline = None if request.deadline_ms is None else request.made_at + request.deadline_ms / 1000
        try:
            found = await self._service.answer(given, request.model_name, None, request.priority, deadline)
        except NotFoundError:
            log.warning("another_model_answers", wanted=request.model_name, model_type=request.model_type)
            found = await self._service.answer(given, None, request.model_type, request.priority, deadline)
        return InferenceResult(
            request.request_id, found.model, found.model_digest, found.predictions, found.latency_ms, found.device
        )

    async def shutdown(self) -> None:
        """Let what runs finish."""
        await asyncio.to_thread(self._service.close)


@cache
def get_inference_manager() -> EdgeInferenceManager:
    """The process's manager, with the settings of its environment."""
    return EdgeInferenceManager(load_settings().edge.inference)
