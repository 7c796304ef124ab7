"""Preprocessing: what a model's input costs, against the usual way of making it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.result import Result
from edge_agent.preprocessing import AudioPreprocessor, ImagePreprocessor, PreprocessingConfig
from primespark.inference.images import decode_image
from primespark.inference.samples import sample_images

_BATCH = 32
_BATCH_GOAL = 8.0
_DECODE_GOAL = 2.0
_AUDIO_GOAL = 0.01
_AUDIO_SECONDS = 10
_RATE_HZ = 16_000
_ROUNDS = 15
_WARM_UP_ROUNDS = 2
_PHOTOGRAPH = "china.jpg"
_JPEG_QUALITY = 90
_MAX_PIXELS = 25_000_000
_SIDE = 640
_PAD = (114, 114, 114)

Pixels = NDArray[np.uint8]
Call = Callable[[], object]


def run() -> Iterator[Result]:
    """One JPEG file, a batch of images and ten seconds of sound."""
    cv2.setNumThreads(1)
    yield _decoding()
    yield from _batch()
    yield _audio()


def _batch() -> Iterator[Result]:
    # Frames of their own, as a camera gives them: one frame 32 times would stay in the processor's cache.
    frames = [np.roll(_photograph(1280, 720), 17 * index, axis=1) for index in range(_BATCH)]
    images, config = ImagePreprocessor(), PreprocessingConfig()
    made, usual = images.process_batch(frames, config).tensor, _usual_batch(frames)
    assert np.abs(made - usual).max() < 1e-6
    del made, usual
    ours, theirs = _interleaved(partial(images.process_batch, frames, config), partial(_usual_batch, frames))
    name = "batch of 32 frames of 720p, CPU time"
    yield _result(name, ours, "resize, border, transpose, astype, concatenate (OpenCV, NumPy)", theirs, _BATCH_GOAL)
    # As many bytes are read and written: 1280 x 720 levels of one byte become 640 x 360 of four.
    source = np.concatenate([frame.ravel() for frame in frames])
    target = np.zeros_like(source)
    ours, copying = _interleaved(partial(images.process_batch, frames, config), partial(np.copyto, target, source))
    yield Result(
        area="preprocessing",
        name=name,
        value=ours * 1e3,
        unit="ms",
        against="copying as many bytes",
        reference=copying * 1e3,
        ratio=ours / copying,
        goal="none",
        ok=True,
    )


def _decoding() -> Result:
    file = io.BytesIO()
    Image.fromarray(_photograph(1920, 1080)).save(file, "JPEG", quality=_JPEG_QUALITY)
    data = file.getvalue()
    assert np.array_equal(decode_image(data, _MAX_PIXELS), _pillow(data))
    ours, theirs = _interleaved(partial(decode_image, data, _MAX_PIXELS), partial(_pillow, data))
    return _result("JPEG of 1080p into an array, CPU time", ours, "Pillow", theirs, _DECODE_GOAL)


def _audio() -> Result:
    noise = np.random.default_rng(7).standard_normal(_AUDIO_SECONDS * _RATE_HZ)
    samples = (0.1 * noise).astype(np.float32)
    preprocess = partial(AudioPreprocessor().process, samples, PreprocessingConfig())
    seconds, _ = _interleaved(preprocess, preprocess)
    ratio = seconds / _AUDIO_SECONDS
    return Result(
        area="preprocessing",
        name="noise gate and log-mel features of 10 s of sound, CPU time",
        value=seconds * 1e3,
        unit="ms",
        against="the sound's duration",
        reference=_AUDIO_SECONDS * 1e3,
        ratio=ratio,
        goal=f"<= {_AUDIO_GOAL}",
        ok=ratio <= _AUDIO_GOAL,
    )


def _usual_batch(frames: Sequence[Pixels]) -> NDArray[np.float32]:
    """As it stands in countless scripts."""
    made = []
    for frame in frames:
        height, width = frame.shape[:2]
        scale = min(_SIDE / height, _SIDE / width)
        resized = cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_LINEAR)
        below, right = _SIDE - resized.shape[0], _SIDE - resized.shape[1]
        padded = cv2.copyMakeBorder(
            resized, below // 2, below - below // 2, right // 2, right - right // 2, cv2.BORDER_CONSTANT, value=_PAD
        )
        made.append((padded.transpose(2, 0, 1).astype(np.float32) / 255.0)[np.newaxis])
    return np.concatenate(made)


def _pillow(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _photograph(width: int, height: int) -> Pixels:
    image = Image.open(io.BytesIO(dict(sample_images())[_PHOTOGRAPH])).convert("RGB")
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _interleaved(first: Call, second: Call) -> tuple[float, float]:
    """Median CPU seconds, of all threads, of each of two calls, taken in turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for index in range(_WARM_UP_ROUNDS + _ROUNDS):
        for place, call in enumerate((first, second)):
            started = time.process_time()
            call()
            if index >= _WARM_UP_ROUNDS:
                seconds[place].append(time.process_time() - started)
    return median(seconds[0]), median(seconds[1])


def _result(name: str, ours: float, against: str, theirs: float, goal: float) -> Result:
    ratio = theirs / ours
    fields: dict[str, Any] = {"value": ours * 1e3, "reference": theirs * 1e3, "unit": "ms"}
    return Result(area="preprocessing", name=name, against=against, ratio=ratio, goal=f">= {goal:g} times as fast",
                  ok=ratio >= goal, **fields)  # fmt: skip
