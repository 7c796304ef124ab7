"""What the way through the manager costs over running the model, and what stands around a detector's network.

CPU time of the whole process: the manager runs models on threads of its own.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.result import Result
from benchmarks.yolo_shaped import CLASSES, SIDE, yolo_shaped
from edge_agent.inference_manager import EdgeInferenceManager, InferenceRequest
from primespark.core.settings import InferenceSettings
from primespark.inference.catalog import ModelType
from primespark.inference.images import decode_image
from primespark.inference.models import DETECTOR, ServedModel, load_bundled
from primespark.inference.onnx_engine import OnnxEngine
from primespark.inference.samples import sample_images
from primespark.inference.yolo import YoloDetector

_ROUNDS = 60
_WARM_UP_ROUNDS = 3
_SEED = 7
_FRAME = "coffee.png"
_MAX_PIXELS = 1_000_000
_HEIGHT, _WIDTH = 720, 1280
# Trained weights find some dozens of places before suppression; random ones find as many at the right score.
_PLACES_FOUND = 50
_LIMIT, _LIMIT_MS = 1.02, 1.0
_DETECTION_LIMIT = 1.10

Call = Callable[[], Awaitable[object]]


def run() -> Iterator[Result]:
    """Both detectors through the manager; then from a decoded frame of 720p to boxes."""
    yield from asyncio.run(_run())


async def _run() -> list[Result]:
    image = decode_image(dict(sample_images())[_FRAME], _MAX_PIXELS)
    bundled = load_bundled(DETECTOR, 1, 0.4)
    shaped, frame = _shaped(), _frame(image)
    results = [await _overhead("coco-ssd", bundled, image), await _overhead("YOLOv8n's shape", shaped, frame)]
    planes = np.zeros((1, 3, SIDE, SIDE), np.float32)
    boxes, raw = await _interleaved(_calls(shaped.predict, frame), _calls(shaped.engine.run, {"images": planes}))
    ratio = boxes / raw
    results.append(
        Result(
            area="manager",
            name="from a decoded frame of 720p to boxes, YOLOv8n's shape",
            value=boxes * 1e3,
            unit="ms",
            against="the network alone",
            reference=raw * 1e3,
            ratio=ratio,
            goal=f"<= {_DETECTION_LIMIT}",
            ok=ratio <= _DETECTION_LIMIT,
        )
    )
    return results


async def _overhead(name: str, model: ServedModel, image: NDArray[np.uint8]) -> Result:
    manager = EdgeInferenceManager(InferenceSettings())
    # The door has no other way to be given a model.
    manager._service.slots.put(model)
    request = InferenceRequest(model_name=model.name, model_type=model.model_type, input_data=image)
    through, bare = await _interleaved(lambda: manager.infer(request), _calls(model.predict, image))
    await manager.shutdown()
    ratio, more_ms = through / bare, (through - bare) * 1e3
    return Result(
        area="manager",
        name=f"{name} through the manager",
        value=through * 1e3,
        unit="ms",
        against="the model called directly",
        reference=bare * 1e3,
        ratio=ratio,
        goal=f"< {_LIMIT} and < {_LIMIT_MS:g} ms more",
        ok=ratio < _LIMIT and more_ms < _LIMIT_MS,
    )


def _shaped() -> ServedModel:
    engine = OnnxEngine(yolo_shaped(), 1)
    noise = np.random.default_rng(_SEED).random((1, 3, SIDE, SIDE), dtype=np.float32)
    (output,) = engine.run({"images": noise})
    minimum_score = float(np.sort(output[0, 4:].max(axis=0))[-_PLACES_FOUND])
    labels = tuple(str(number) for number in range(CLASSES))
    answer = YoloDetector(engine, labels, minimum_score)
    return ServedModel("shaped", ModelType.OBJECT_DETECTION, 1, "0" * 64, labels, engine, answer)


def _frame(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A photograph, repeated to 720p."""
    times = (-(-_HEIGHT // image.shape[0]), -(-_WIDTH // image.shape[1]), 1)
    return np.ascontiguousarray(np.tile(image, times)[:_HEIGHT, :_WIDTH])


def _calls(function: Callable[[Any], object], argument: Any) -> Call:
    async def call() -> object:
        return function(argument)

    return call


async def _interleaved(first: Call, second: Call) -> tuple[float, float]:
    """Median CPU seconds of each; every round calls both in a new order."""
    taken: dict[int, list[float]] = {0: [], 1: []}
    shuffle = random.Random(_SEED).shuffle  # noqa: S311 (an order, not a secret)
    order = [0, 1]
    for index in range(_WARM_UP_ROUNDS + _ROUNDS):
        shuffle(order)
        for which in order:
            started = time.process_time()
            await (first, second)[which]()
            if index >= _WARM_UP_ROUNDS:
                taken[which].append(time.process_time() - started)
    return median(taken[0]), median(taken[1])
