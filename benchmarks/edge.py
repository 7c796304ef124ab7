"""The edge: what serving a model costs over running it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import mean, median
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.result import Result
from primespark.inference import catalog
from primespark.inference.images import decode_image
from primespark.inference.models import DETECTOR, ServedModel, load_bundled
from primespark.inference.samples import sample_images

# Where a session's weights happen to lie shifts its time by a percent or two, so the mean over several of each is
# compared.
_SESSIONS = 6
_ROUNDS = 60
_WARM_UP_ROUNDS = 3
_SEED = 7
_LIMIT = 1.02
_FRAME = "coffee.png"
_MAX_PIXELS = 1_000_000

Call = Callable[[], object]


def run() -> Iterator[Result]:
    """CPU time of an answer against ONNX Runtime alone, each one thread, on the same frame."""
    image = decode_image(dict(sample_images())[_FRAME], _MAX_PIXELS)
    pairs = [(load_bundled(DETECTOR, threads=1, minimum_score=0.4), _raw_session()) for _ in range(_SESSIONS)]
    assert [found["label"] for found in pairs[0][0].predict(image)] == ["cup", "dining table"]
    served, raw = _interleaved(
        [_answer(model, image) for model, _ in pairs], [_session_run(session, image) for _, session in pairs]
    )
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


def _answer(model: ServedModel, image: NDArray[np.uint8]) -> Call:
    return lambda: model.predict(image)


def _session_run(session: Any, image: NDArray[np.uint8]) -> Call:
    batch = image[np.newaxis]
    return lambda: session.run(None, {"image_tensor:0": batch})


def _interleaved(first: Sequence[Call], second: Sequence[Call]) -> tuple[float, float]:
    """Mean over each kind of the calls' median CPU seconds; every round calls all of both in a new order."""
    taken: list[list[list[float]]] = [[[] for _ in kind] for kind in (first, second)]
    calls = [(call, taken[kind][place]) for kind, of in enumerate((first, second)) for place, call in enumerate(of)]
    shuffle = random.Random(_SEED).shuffle  # noqa: S311 (an order, not a secret)
    for index in range(_WARM_UP_ROUNDS + _ROUNDS):
        shuffle(calls)
        for call, seconds in calls:
            spent = _cpu_seconds(call)
            if index >= _WARM_UP_ROUNDS:
                seconds.append(spent)
    served, raw = (mean(median(seconds) for seconds in kind) for kind in taken)
    return served, raw


def _cpu_seconds(call: Call) -> float:
    started = time.thread_time()
    call()
    return time.thread_time() - started
