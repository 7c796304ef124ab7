"""Inference by typed requests: one in, one typed result out."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from edge_agent.inference_service import Given, InferenceService
from edge_agent.priority import Priority
from primespark.core.logging import get_logger
from primespark.errors import InvalidInputError, NotFoundError
from primespark.inference.catalog import ModelType
from primespark.inference.models import INPUT_OF
from primespark.inference.predictions import Prediction

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


async def answer_request(service: InferenceService, request: InferenceRequest) -> InferenceResult:
    """The answer of the model of the request's name; of the one of its type where there is none of the name.

    Raises:
        InvalidInputError: Code `wrong_input_kind`: a language model's.
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
        found = await service.answer(given, request.model_name, None, request.priority, deadline)
    except NotFoundError:
        log.warning("another_model_answers", wanted=request.model_name, model_type=request.model_type)
        found = await service.answer(given, None, request.model_type, request.priority, deadline)
    return InferenceResult(
        request.request_id, found.model, found.model_digest, found.predictions, found.latency_ms, found.device
    )
