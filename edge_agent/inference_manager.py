"""The specification's door to inference: one request in, one typed result out, over `InferenceService`."""

from __future__ import annotations

import asyncio
from functools import cache

from edge_agent.inference_service import InferenceService
from edge_agent.priority import Priority
from edge_agent.slots.in_service import Slots
from edge_agent.typed_requests import InferenceRequest, InferenceResult, answer_request
from primespark.core.settings import InferenceSettings, load_settings
from primespark.inference.catalog import ModelType
from primespark.inference.hailo_engine import HailoInferenceEngine
from primespark.inference.models import DETECTOR, load_bundled
from primespark.inference.onnx_engine import OnnxEngine as CPUInferenceEngine

__all__ = [
    "CPUInferenceEngine",
    "EdgeInferenceManager",
    "HailoInferenceEngine",
    "InferenceRequest",
    "InferenceResult",
    "ModelType",
    "Priority",
    "get_inference_manager",
]


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
            PrimeSparkError: As `answer_request`.
        """
        return await answer_request(self._service, request)

    async def shutdown(self) -> None:
        """Let what runs finish."""
        await asyncio.to_thread(self._service.close)


@cache
def get_inference_manager() -> EdgeInferenceManager:
    """The process's manager, with the settings of its environment."""
    return EdgeInferenceManager(load_settings().edge.inference)
