"""How far two answers agree; the expected numbers are counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.slots.comparison import agreement
from primespark.inference.catalog import ModelType

LABELS = st.sampled_from(["cat", "dog", "cup"])
places = st.floats(0, 500, allow_nan=False)


def box(label: str, x: float, y: float, width: float = 10, height: float = 10) -> dict[str, Any]:
    corners = {"x_min": x, "y_min": y, "x_max": x + width, "y_max": y + height}
    return {"label": label, "class_id": 0, "score": 0.9, "box": corners}


def label(name: str, score: float = 0.9) -> dict[str, Any]:
    return {"label": name, "class_id": 0, "score": score}


def speech(start_s: float, end_s: float) -> dict[str, Any]:
    return {"start_s": start_s, "end_s": end_s, "score": 0.9}


def mask(inside: Any) -> dict[str, Any]:
    """Run lengths column by column, outside first, counted pixel by pixel."""
    counts, expected = [0], False
    for pixel in np.asarray(inside, bool).T.ravel():
        if bool(pixel) is not expected:
            counts.append(0)
            expected = not expected
        counts[-1] += 1
    height, width = np.asarray(inside).shape
    return {"width": width, "height": height, "counts": counts}


def pose(*points: tuple[float, float, float]) -> dict[str, Any]:
    named = [{"name": f"p{i}", "x": x, "y": y, "score": score} for i, (x, y, score) in enumerate(points)]
    return {"keypoints": named, "score": 0.9}


boxes = st.lists(st.builds(box, LABELS, places, places, st.floats(0, 200), st.floats(0, 200)), max_size=6)
labels = st.lists(st.builds(label, LABELS), max_size=5)
values = st.lists(st.builds(lambda value: {"value": value}, st.floats(-1e6, 1e6)), min_size=1, max_size=5)
grids = st.integers(1, 6).flatmap(
    lambda side: st.lists(st.lists(st.booleans(), min_size=side, max_size=side), min_size=1, max_size=6)
)
answers = {
    ModelType.CLASSIFICATION: labels,
    ModelType.OBJECT_DETECTION: boxes,
    ModelType.POSE: st.lists(
        st.lists(st.tuples(places, places, st.floats(0, 1)), min_size=3, max_size=3).map(lambda points: pose(*points)),
        max_size=4,
    ),
    ModelType.SEGMENTATION: grids.map(lambda grid: [mask(grid)]),
    ModelType.AUDIO: st.lists(st.tuples(places, st.floats(0.1, 20)), max_size=4).map(
        lambda segments: [speech(start, start + length) for start, length in segments]
    ),
    ModelType.TABULAR: st.one_of(labels, values),
}


@given(st.data(), st.sampled_from(sorted(answers)))
def test_every_measure_is_a_symmetric_ratio_that_is_1_for_the_same_answer(data: Any, model_type: ModelType) -> None:
    ours, theirs = data.draw(answers[model_type]), data.draw(answers[model_type])
    there, back = agreement(model_type, ours, theirs), agreement(model_type, theirs, ours)
    assert 0.0 <= there <= 1.0
    assert there == pytest.approx(back)
    same = [one for one in ours if model_type is not ModelType.OBJECT_DETECTION or has_area(one)]
    assert agreement(model_type, same, same) == pytest.approx(1.0)


def has_area(one: dict[str, Any]) -> bool:
    corners = one["box"]
    return bool((corners["x_max"] - corners["x_min"]) * (corners["y_max"] - corners["y_min"]) > 1e-6)


def test_classification_looks_at_the_first_label() -> None:
    assert agreement(ModelType.CLASSIFICATION, [label("cat"), label("dog")], [label("cat"), label("cup")]) == 1.0
    assert agreement(ModelType.CLASSIFICATION, [label("cat"), label("dog")], [label("dog"), label("cat")]) == 0.0


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ([box("cat", 0, 0), box("dog", 50, 50)], 1.0),
        ([box("dog", 51, 50), box("cat", 0, 1)], 1.0),
        ([box("cat", 0, 0)], 2 / 3),
        ([box("dog", 0, 0), box("cat", 50, 50)], 0.0),
        # 5 of 10 columns in common are a third of the union.
        ([box("cat", 5, 0), box("dog", 50, 50)], 0.5),
        ([box("cat", 0, 0), box("cat", 1, 0), box("dog", 50, 50)], 0.8),
    ],
)
def test_detections_are_matched_one_to_one(theirs: list[Any], expected: float) -> None:
    ours = [box("cat", 0, 0), box("dog", 50, 50)]
    assert agreement(ModelType.OBJECT_DETECTION, ours, theirs) == pytest.approx(expected)


def test_nothing_agrees_with_nothing_and_with_nothing_else() -> None:
    for model_type in answers:
        assert agreement(model_type, [], []) == 1.0
    assert agreement(ModelType.OBJECT_DETECTION, [], [box("cat", 0, 0)]) == 0.0


def test_masks_by_their_overlap() -> None:
    ours, theirs = [[1, 1, 0], [0, 0, 0]], [[0, 1, 1], [0, 0, 0]]
    assert agreement(ModelType.SEGMENTATION, [mask(ours)], [mask(theirs)]) == pytest.approx(1 / 3)
    assert agreement(ModelType.SEGMENTATION, [mask(np.zeros((2, 3)))], [mask(np.zeros((2, 3)))]) == 1.0
    assert agreement(ModelType.SEGMENTATION, [mask(ours)], [mask(np.ones((3, 3)))]) == 0.0


@given(st.data())
def test_masks_as_pixels_count_them(data: Any) -> None:
    grids_ = [
        np.array(data.draw(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=3, max_size=3)))
        for _ in range(2)
    ]
    union = int((grids_[0] | grids_[1]).sum())
    expected = int((grids_[0] & grids_[1]).sum()) / union if union else 1.0
    found = agreement(ModelType.SEGMENTATION, [mask(grids_[0])], [mask(grids_[1])])
    assert found == pytest.approx(expected)


def test_speech_by_its_seconds() -> None:
    assert agreement(ModelType.AUDIO, [speech(0, 2)], [speech(1, 4)]) == pytest.approx(1 / 4)
    assert agreement(ModelType.AUDIO, [speech(0, 1), speech(2, 3)], [speech(0, 3)]) == pytest.approx(2 / 3)


def test_poses_by_their_near_points() -> None:
    ours = pose((0, 0, 0.9), (100, 0, 0.9), (0, 100, 0.9), (50, 50, 0.1))
    theirs = pose((9, 0, 0.9), (112, 0, 0.9), (0, 100, 0.9), (90, 50, 0.1))
    assert agreement(ModelType.POSE, [ours], [theirs]) == pytest.approx(2 / 3)
    small, large = pose((0, 0, 0.9), (0, 0, 0.9)), pose((0, 2, 0.9), (20, 0, 0.9))
    assert agreement(ModelType.POSE, [small], [large]) == agreement(ModelType.POSE, [large], [small]) == 0.5


def test_of_several_bodies_each_is_held_against_the_one_most_like_it() -> None:
    one, other = pose((0, 0, 0.9), (100, 0, 0.9)), pose((500, 500, 0.9), (600, 500, 0.9))
    assert agreement(ModelType.POSE, [one, other], [other, one]) == 1.0
    # Of three bodies in two answers one has no like.
    assert agreement(ModelType.POSE, [one, other], [one]) == pytest.approx(2 / 3)
    assert agreement(ModelType.POSE, [one], [other]) == 0.0
    many = [pose((1000 * i, 0, 0.9), (1000 * i, 90, 0.9)) for i in range(100)]
    assert agreement(ModelType.POSE, many, many[:10]) == 1.0


def test_rows_by_label_or_value() -> None:
    ours = [{"value": 100.0}, {"value": 1.0}, {"value": -8.0}]
    assert agreement(ModelType.TABULAR, ours, [{"value": 104.0}, {"value": 2.0}, {"value": -8.1}]) == pytest.approx(
        2 / 3
    )
    assert agreement(ModelType.TABULAR, ours, ours[:2]) == 0.0
    assert agreement(ModelType.TABULAR, [label("cat"), label("dog")], [label("cat"), label("cup")]) == 0.5
