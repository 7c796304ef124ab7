"""Each reason by itself, their order, and the pace that holds for all."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.capture.hard_examples import HardExamples, Reason, distance, signature
from primespark.core.capture_settings import HardExampleSettings

CLEAR = [{"label": "cat", "score": 0.95}]
UNSURE = [{"label": "cat", "score": 0.95}, {"label": "dog", "score": 0.41}]


def grey(level: int) -> NDArray[np.uint8]:
    return np.full((40, 60, 3), level, np.uint8)


def chooser(**settings: float) -> HardExamples:
    defaults: dict[str, float] = {"chance": 0.0, "minimum_interval_s": 0.0}
    return HardExamples(HardExampleSettings.model_validate(defaults | settings), 0.4, "door")


def test_the_first_frame_is_new_and_the_same_again_is_not() -> None:
    examples = chooser()
    assert examples.choose(grey(10), CLEAR, 0.0) is Reason.NOVELTY
    assert examples.choose(grey(10), CLEAR, 1.0) is None
    assert examples.choose(grey(33), CLEAR, 2.0) is None
    assert examples.choose(grey(34), CLEAR, 3.0) is Reason.NOVELTY
    assert examples.choose(grey(10), [], 4.0) is None


def test_a_score_just_above_the_minimum_is_uncertain() -> None:
    examples = chooser()
    examples.choose(grey(10), CLEAR, 0.0)
    assert examples.choose(grey(10), UNSURE, 1.0) is Reason.UNCERTAINTY
    assert examples.choose(grey(10), [{"label": "dog", "score": 0.5}], 2.0) is None


def test_chance_takes_its_share_and_is_the_same_for_the_same_seed() -> None:
    def taken(**settings: float) -> list[int]:
        examples = chooser(novelty_distance=255.0, **settings)
        examples.choose(grey(0), UNSURE, 0.0)
        return [n for n in range(2000) if examples.choose(grey(0), CLEAR, float(n)) is Reason.CHANCE]

    first = taken(chance=0.1)
    assert 140 < len(first) < 260  # 200 expected, more than four deviations to each side
    assert taken(chance=0.1) == first
    assert taken(chance=0.1, seed=1) != first
    assert taken(chance=0.0) == []


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 255)), max_size=50))
def test_two_of_one_source_are_never_closer_than_the_interval(frames: list[tuple[float, int]]) -> None:
    examples, now_s, kept = chooser(minimum_interval_s=10.0, chance=0.5), 0.0, []
    for pause_s, level in frames:
        now_s += pause_s
        if examples.choose(grey(level), UNSURE, now_s) is not None:
            kept.append(now_s)
    assert all(later - earlier >= 10.0 for earlier, later in pairwise(kept))


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_a_signature_is_the_mean_of_its_cells_whatever_the_size(height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    rows, columns = (np.arange(64) * height) // 64, (np.arange(64) * width) // 64
    sampled = pixels[np.ix_(rows, columns)].astype(float)
    cell = sampled[:8, 56:].mean(axis=(0, 1))
    found = signature(pixels)
    assert found.shape == (8, 8, 3)
    assert np.allclose(found[0, 7], cell, atol=1e-3)


def test_distance_is_in_levels() -> None:
    assert distance(signature(grey(10)), signature(grey(30))) == 20
