"""Which frames are worth a person's label: uncertain ones, new ones, some by chance; pure, time comes by argument."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from primespark.core.capture_settings import HardExampleSettings
from primespark.inference.predictions import Prediction

_GRID = 8
_SAMPLES_PER_CELL = 8
_REMEMBERED = 32

Signature = NDArray[np.float32]


class Reason(StrEnum):
    """Why a frame is kept."""

    UNCERTAINTY = "uncertainty"
    NOVELTY = "novelty"
    CHANCE = "chance"


class HardExamples:
    """Chooses frames of one source.

    Args:
        settings: Thresholds and pace.
        minimum_score: Below it the model's answers are dropped.
        source: Its name, so that two sources do not draw the same chances.
    """

    def __init__(self, settings: HardExampleSettings, minimum_score: float, source: str) -> None:
        self._settings = settings
        self._minimum_score = minimum_score
        self._random = random.Random(f"{settings.seed}/{source}")  # noqa: S311 (a sample is no secret)
        self._kept: deque[Signature] = deque(maxlen=_REMEMBERED)
        self._kept_s: float | None = None

    def choose(self, pixels: NDArray[np.uint8], predictions: Sequence[Prediction], now_s: float) -> Reason | None:
        """Why to keep this frame, if at all; remembers that it was chosen.

        Args:
            pixels: uint8 [height, width, 3].
            predictions: The model's answer.
            now_s: Monotonic time.
        """
        is_lucky = self._random.random() < self._settings.chance
        if self._kept_s is not None and now_s - self._kept_s < self._settings.minimum_interval_s:
            return None
        seen = signature(pixels)
        reason = None
        if self._is_uncertain(predictions):
            reason = Reason.UNCERTAINTY
        elif self._is_new(seen):
            reason = Reason.NOVELTY
        elif is_lucky:
            reason = Reason.CHANCE
        if reason is not None:
            self._kept.append(seen)
            self._kept_s = now_s
        return reason

    def _is_uncertain(self, predictions: Sequence[Prediction]) -> bool:
        limit = self._minimum_score + self._settings.uncertainty_margin
        return any(self._minimum_score <= prediction.get("score", 1.0) < limit for prediction in predictions)

    def _is_new(self, seen: Signature) -> bool:
        return all(distance(seen, kept) >= self._settings.novelty_distance for kept in self._kept)


def signature(pixels: NDArray[np.uint8]) -> Signature:
    """Mean colours of an 8 x 8 grid over an image, from 64 samples a cell: float32 [8, 8, 3], 0..255."""
    side = _GRID * _SAMPLES_PER_CELL
    rows = (np.arange(side) * pixels.shape[0]) // side
    columns = (np.arange(side) * pixels.shape[1]) // side
    cells = pixels[rows[:, None], columns].reshape(_GRID, _SAMPLES_PER_CELL, _GRID, _SAMPLES_PER_CELL, 3)
    means: Signature = cells.mean(axis=(1, 3), dtype=np.float32)
    return means


def distance(one: Signature, other: Signature) -> float:
    """Mean absolute difference of two signatures, 0..255."""
    return float(np.abs(one - other).mean())
