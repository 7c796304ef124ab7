"""The edge: what serving a model costs over running it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.result import Result
from primespark.inference import catalog
from primespark.inference.images import decode_image
from primespark.inference.models import DETECTOR, ServedModel, load_bundled
from primespark.inference.samples import sample_images

_ROUNDS = 120
_WARM_UP = 5
_LIMIT = 1.02
_FRAME = "coffee.png"
_MAX_PIXELS = 1_000_000


def run() -> Iterator[Result]:
    """CPU time of an answer against ONNX Runtime alone, each one thread, on the same frame."""
    image = decode_image(dict(sample_images())[_FRAME], _MAX_PIXELS)
    model = load_bundled(DETECTOR, threads=1, minimum_score=0.4)
    session = _raw_session()
    assert [item["label"] for item in model.predict(image)] == ["cup", "dining table"]
    served, raw = _interleaved(_serve(model, image), _run_raw(session, image))
    ratio = served / raw
    yield Result(
        area="edge",
        name="object detection, CPU time of an answer",
        value=served * 1e3,
        unit="ms",
        against="ONNX Runtime's session.run",
        reference=raw * 1e3,
        ratio=ratio,
        goal=f"< {_LIMIT}",
        ok=ratio < _LIMIT,
    )


def _raw_session() -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(catalog.read(catalog.find(DETECTOR)), options, providers=["CPUExecutionProvider"])


def _serve(model: ServedModel, image: NDArray[np.uint8]) -> Callable[[], object]:
    return lambda: model.predict(image)


def _run_raw(session: Any, image: NDArray[np.uint8]) -> Callable[[], object]:
    batch = image[np.newaxis]
    return lambda: session.run(None, {"image_tensor:0": batch})


def _interleaved(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Median CPU seconds of each; who goes first changes with every round."""
    for _ in range(_WARM_UP):
        first()
        second()
    seconds: dict[Callable[[], object], list[float]] = {first: [], second: []}
    for index in range(_ROUNDS):
        for call in (first, second) if index % 2 else (second, first):
            seconds[call].append(_cpu_seconds(call))
    return median(seconds[first]), median(seconds[second])


def _cpu_seconds(call: Callable[[], object]) -> float:
    started = time.thread_time()
    call()
    return time.thread_time() - started
