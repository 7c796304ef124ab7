"""Laws of the detector's candidates and of non-maximum suppression, against naive computations."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from primespark.inference.detection import (
    MAX_CANDIDATES,
    MAX_DETECTIONS,
    Candidate,
    SsdDetector,
    candidates,
    non_maximum_suppression,
    sample_as_graph,
)

COORDINATES = st.integers(0, 12).map(lambda value: value / 12)


@st.composite
def found(draw: st.DrawFn) -> list[Candidate]:
    def one() -> Candidate:
        ys = sorted((draw(COORDINATES), draw(COORDINATES)))
        xs = sorted((draw(COORDINATES), draw(COORDINATES)))
        return Candidate(draw(st.integers(0, 8)) / 8, draw(st.integers(0, 2)), (ys[0], xs[0], ys[1], xs[1]))

    return sorted((one() for _ in range(draw(st.integers(0, 25)))), reverse=True)


def naive_overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """By counting the cells of the grid that the coordinates lie on."""
    cells = [
        {(y, x) for y in range(round(b[0] * 12), round(b[2] * 12)) for x in range(round(b[1] * 12), round(b[3] * 12))}
        for b in (one, other)
    ]
    union = len(cells[0] | cells[1])
    return len(cells[0] & cells[1]) / union if union else 0.0


def naive_suppression(items: list[Candidate], limit: float) -> list[int]:
    """Textbook form: take the best, strike all of its class that overlap it, repeat."""
    alive = list(range(len(items)))
    kept = []
    while alive:
        best = alive.pop(0)
        kept.append(best)
        alive = [
            index
            for index in alive
            if items[index].column != items[best].column or naive_overlap(items[index].box, items[best].box) <= limit
        ]
    return kept


# Not a ratio of small whole numbers, so that rounding cannot decide.
LIMIT = 0.50001


@given(found())
def test_suppression_is_the_textbook_one(items: list[Candidate]) -> None:
    assert non_maximum_suppression(items, LIMIT) == [items[index] for index in naive_suppression(items, LIMIT)]


@given(found())
def test_suppressing_twice_changes_nothing(items: list[Candidate]) -> None:
    kept = non_maximum_suppression(items, LIMIT)
    assert non_maximum_suppression(kept, LIMIT) == kept


@given(found())
def test_classes_do_not_see_each_other(items: list[Candidate]) -> None:
    together = non_maximum_suppression(items, LIMIT)
    for column in range(3):
        alone = [item for item in items if item.column == column]
        assert [item for item in together if item.column == column] == non_maximum_suppression(alone, LIMIT)


def test_an_overlap_of_exactly_the_limit_stays() -> None:
    wide = Candidate(0.9, 0, (0.0, 0.0, 1.0, 1.0))
    half = Candidate(0.8, 0, (0.0, 0.0, 0.5, 1.0))
    assert non_maximum_suppression([wide, half], 0.5) == [wide, half]
    assert non_maximum_suppression([wide, half], 0.49) == [wide]


def test_no_more_than_a_hundred_are_answered() -> None:
    items = [Candidate(0.9, column, (0.0, 0.0, 1.0, 1.0)) for column in range(150)]
    assert non_maximum_suppression(items, 0.5) == items[:MAX_DETECTIONS]


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 0.9, 0.99, 1.0]))
def test_candidates_are_all_that_reach_the_minimum_best_first(seed: int, minimum: float) -> None:
    random = np.random.default_rng(seed)
    scores = random.random((1, 12, 5), dtype=np.float32)
    boxes = random.random((1, 12, 1, 4), dtype=np.float32)
    expected = [
        Candidate(float(scores[0, anchor, column]), column, tuple(float(v) for v in boxes[0, anchor, 0]))
        for anchor in range(12)
        for column in range(5)
        if scores[0, anchor, column] >= np.float32(minimum)
    ]
    answered = candidates(scores, boxes, np.float32(minimum))
    assert sorted(answered) == sorted(expected)
    assert all(one.score >= other.score for one, other in pairwise(answered))


def test_a_score_of_exactly_the_minimum_is_a_candidate() -> None:
    scores = np.array([[[0.4, 0.39]]], np.float32)
    assert len(candidates(scores, np.zeros((1, 1, 1, 4), np.float32), np.float32(0.4))) == 1


def test_of_too_many_candidates_the_best_are_taken() -> None:
    scores = np.random.default_rng(1).random((1, 100, 90), dtype=np.float32)
    answered = candidates(scores, np.zeros((1, 100, 1, 4), np.float32), np.float32(0))
    best = np.sort(scores.ravel())[::-1][:MAX_CANDIDATES]
    assert [one.score for one in answered] == best.tolist()


class FixedAnswer:
    """An engine whose one answer is given; what is tested here begins behind the model."""

    device = "cpu"
    concurrency = 1
    input_names = ("image_tensor:0",)
    input_shapes = ((None, None, None, 3),)
    input_types = (np.dtype(np.uint8),)
    output_names = ("Postprocessor/ExpandDims_1:0", "Postprocessor/Slice:0")
    output_shapes = ((None, None, 1, 4), (None, None, None))
    output_types = (np.dtype(np.float32), np.dtype(np.float32))

    def __init__(self, scores: NDArray[np.float32], boxes: NDArray[np.float32]) -> None:
        self._outputs = [boxes, scores]
        self.given: tuple[int, ...] = ()

    def run(self, inputs: Any) -> list[NDArray[Any]]:
        self.given = inputs["image_tensor:0"].shape
        return self._outputs

    def close(self) -> None: ...


def test_boxes_are_pixels_of_the_given_image_and_stay_inside_it() -> None:
    scores = np.array([[[0.1, 0.75, 0.9]]], np.float32)
    boxes = np.array([[[[-0.1, 0.25, 0.5, 1.2]]]], np.float32)
    detector = SsdDetector(FixedAnswer(scores, boxes), {1: "first", 2: "second"}, 0.5)
    # Class 3 has no name, class 1 is below the minimum.
    assert detector(np.zeros((100, 200, 3), np.uint8)) == [
        {
            "label": "second",
            "class_id": 2,
            "score": 0.75,
            "box": {"x_min": 50.0, "y_min": 0.0, "x_max": 200.0, "y_max": 50.0},
        }
    ]


@pytest.mark.parametrize(("shape", "given"), [((1000, 1000), (1, 1000, 1000, 3)), ((1000, 1001), (1, 300, 300, 3))])
def test_the_graph_is_spared_images_above_a_million_pixels(shape: tuple[int, int], given: tuple[int, ...]) -> None:
    engine = FixedAnswer(np.zeros((1, 1, 1), np.float32), np.zeros((1, 1, 1, 4), np.float32))
    assert SsdDetector(engine, {1: "first"}, 0.5)(np.zeros((*shape, 3), np.uint8)) == []
    assert engine.given == given


@pytest.mark.parametrize("shape", [(1200, 1800), (301, 5000), (10, 200_000), (5000, 1)])
def test_sampling_is_bilinear_at_the_graphs_places(shape: tuple[int, int]) -> None:
    height, width = shape
    image = np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)
    sampled = sample_as_graph(image)
    assert sampled.shape == (300, 300, 3)
    for row, column in [(0, 0), (299, 299), (17, 233), (150, 3), (299, 0)]:
        y, x = row * height / 300, column * width / 300
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        dy, dx = y - top, x - left
        expected = (
            image[top, left] * (1 - dy) * (1 - dx)
            + image[top, right] * (1 - dy) * dx
            + image[bottom, left] * dy * (1 - dx)
            + image[bottom, right] * dy * dx
        )
        # float32 places a sample at 200,000 pixels to about 0.01.
        np.testing.assert_allclose(sampled[row, column], expected, atol=0.51 if width < 10_000 else 4)
