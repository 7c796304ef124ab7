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

_ROUNDS = 200
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
    results = [*await _overhead("coco-ssd", bundled, image), *await _overhead("YOLOv8n's shape", shaped, frame)]
    planes = np.zeros((1, 3, SIDE, SIDE), np.float32)
    boxes, raw = await _interleaved(_calls(shaped.predict, frame), _calls(shaped.engine.run, {"images": planes}))
    ratio = _ratio(boxes, raw)
    results.append(
        Result(
            area="manager",
            name="from a decoded frame of 720p to boxes, YOLOv8n's shape",
            value=median(boxes) * 1e3,
            unit="ms",
            against="the network alone",
            reference=median(raw) * 1e3,
            ratio=ratio,
            goal=f"<= {_DETECTION_LIMIT}",
            ok=ratio <= _DETECTION_LIMIT,
        )
    )
    return results


async def _overhead(name: str, model: ServedModel, image: NDArray[np.uint8]) -> list[Result]:
    manager = EdgeInferenceManager(InferenceSettings())
    # The door has no other way to be given a model.
    manager._service.slots.put(model)
    request = InferenceRequest(model_name=model.name, model_type=model.model_type, input_data=image)
    through, bare, on_a_thread = await _interleaved(
        lambda: manager.infer(request),
        _calls(model.predict, image),
        lambda: asyncio.to_thread(model.predict, image),
    )
    await manager.shutdown()
    ratio, more_ms = _ratio(through, bare), _difference(through, bare) * 1e3
    return [
        Result(
            area="manager",
            name=f"{name} through the manager",
            value=median(through) * 1e3,
            unit="ms",
            against="the model called directly",
            reference=median(bare) * 1e3,
            ratio=ratio,
            goal=f"< {_LIMIT} and < {_LIMIT_MS:g} ms more",
            ok=ratio < _LIMIT and more_ms < _LIMIT_MS,
        ),
        Result(
            area="manager",
            name=f"{name} through the manager",
            value=median(through) * 1e3,
            unit="ms",
            against="the model called by asyncio.to_thread",
            reference=median(on_a_thread) * 1e3,
            # Whoever serves more than one caller hands work to a thread: what the standard library takes for that.
            ratio=_ratio(through, on_a_thread),
            goal="none",
            ok=True,
        ),
    ]


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


async def _interleaved(*calls: Call) -> list[list[float]]:
    """CPU seconds of each call by round; every round makes all of them, in a new order."""
    taken: list[list[float]] = [[] for _ in calls]
    shuffle = random.Random(_SEED).shuffle  # noqa: S311 (an order, not a secret)
    order = list(range(len(calls)))
    for index in range(_WARM_UP_ROUNDS + _ROUNDS):
        shuffle(order)
        for which in order:
            started = time.process_time()
            await calls[which]()
            if index >= _WARM_UP_ROUNDS:
                taken[which].append(time.process_time() - started)
    return taken


def _ratio(first: list[float], second: list[float]) -> float:
    """The median of the rounds' ratios: a machine's pace changes over seconds, less within a round."""
    return median(a / b for a, b in zip(first, second, strict=True))


def _difference(first: list[float], second: list[float]) -> float:
    return median(a - b for a, b in zip(first, second, strict=True))
