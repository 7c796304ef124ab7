"""The specification's usage example, as printed but for the module path; and what it leaves open."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.inference_manager import EdgeInferenceManager, InferenceRequest, ModelType, get_inference_manager
from primespark.core.settings import BatchingSettings, InferenceSettings
from primespark.errors import DeadlineExceededError, InvalidInputError
from primespark.inference.images import decode_image
from primespark.inference.models import ServedModel, load_bundled
from primespark.inference.samples import sample_images


@pytest.fixture(scope="module")
def image_array() -> NDArray[np.uint8]:
    return decode_image(dict(sample_images())["coffee.png"], 1_000_000)


async def test_the_usage_example(image_array: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]) -> None:
    manager = get_inference_manager()
    await manager.initialize()

    request = InferenceRequest(
        request_id="req-001",
        model_name="yolov8n",
        model_type=ModelType.OBJECT_DETECTION,
        input_data=image_array,
    )

    result = await manager.infer(request)
    print(f"Predictions: {result.predictions}")
    print(f"Latency: {result.latency_ms}ms")
    await manager.shutdown()

    assert get_inference_manager() is manager
    assert "'label': 'cup'" in capsys.readouterr().out
    assert (result.request_id, result.model_name, result.device) == ("req-001", "coco-ssd", "cpu")
    assert result.latency_ms > 0


@pytest.fixture
async def manager() -> AsyncIterator[EdgeInferenceManager]:
    manager = EdgeInferenceManager(InferenceSettings())
    yield manager
    await manager.shutdown()


@pytest.mark.parametrize(
    ("model_type", "given", "model"),
    [
        (ModelType.POSE, np.zeros((48, 64, 3), np.uint8), "movenet-lightning"),
        (ModelType.AUDIO, np.zeros(16_000, np.float32), "silero-vad"),
    ],
)
async def test_each_type_takes_its_kind(
    manager: EdgeInferenceManager, model_type: ModelType, given: NDArray[np.generic], model: str
) -> None:
    result = await manager.infer(InferenceRequest(model_name=model, model_type=model_type, input_data=given))
    assert result.model_name == model
    with pytest.raises(InvalidInputError):
        await manager.infer(InferenceRequest(model_name=model, model_type=model_type, input_data=given.astype("f8")))


async def test_a_conversation_is_sent_elsewhere(manager: EdgeInferenceManager) -> None:
    request = InferenceRequest(model_name="smollm2", model_type=ModelType.LLM, input_data=np.zeros(1))
    with pytest.raises(InvalidInputError) as caught:
        await manager.infer(request)
    assert caught.value.code == "wrong_input_kind"


async def test_a_deadline_is_kept(manager: EdgeInferenceManager, image_array: NDArray[np.uint8]) -> None:
    request = InferenceRequest(
        model_name="efficientnet-lite0", model_type=ModelType.CLASSIFICATION, input_data=image_array, deadline_ms=0.01
    )
    with pytest.raises(DeadlineExceededError):
        await manager.infer(request)


async def test_a_deadline_is_kept_while_the_model_is_loaded(
    manager: EdgeInferenceManager, image_array: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load goes on for whoever comes next; the one who could not wait is told at the deadline."""
    may_load = threading.Event()

    def slow(*limits: Any) -> ServedModel:
        assert may_load.wait(20)
        return load_bundled(*limits)

    monkeypatch.setattr("edge_agent.bundled_models.load_bundled", slow)
    urgent = InferenceRequest(
        model_name="movenet-lightning", model_type=ModelType.POSE, input_data=image_array, deadline_ms=20
    )
    with pytest.raises(DeadlineExceededError):
        await manager.infer(urgent)
    may_load.set()
    patient = InferenceRequest(model_name="movenet-lightning", model_type=ModelType.POSE, input_data=image_array)
    assert (await manager.infer(patient)).predictions


async def test_requests_that_share_a_batch_get_what_they_would_get_alone(image_array: NDArray[np.uint8]) -> None:
    images = [np.ascontiguousarray(np.roll(image_array, 40 * number, axis=1)) for number in range(6)]

    async def answers(size: int) -> list[list[tuple[str, float]]]:
        manager = EdgeInferenceManager(InferenceSettings(batching=BatchingSettings(size=size, wait_ms=20)))
        requests = [
            InferenceRequest(model_name="efficientnet-lite0", model_type=ModelType.CLASSIFICATION, input_data=image)
            for image in images
        ]
        found = await asyncio.gather(*map(manager.infer, requests))
        await manager.shutdown()
        return [[(one["label"], one["score"]) for one in result.predictions] for result in found]

    alone, together = await answers(1), await answers(4)
    for one, other in zip(alone, together, strict=True):
        assert dict(other) == pytest.approx(dict(one), abs=2e-4)
