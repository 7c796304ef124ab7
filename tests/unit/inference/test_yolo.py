"""Detectors in the format of YOLOv8: known boxes in, the same boxes out, through a real ONNX file."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from primespark.errors import IntegrityError
from primespark.inference.onnx_engine import OnnxEngine
from primespark.inference.yolo import YoloDetector, yolo_candidates

LABELS = ("cat", "dog", "cup")
PLACES = 8400


def detector_file(output: NDArray[np.float32], side: int | str = 640) -> bytes:
    """A model that answers `output` [1, 4 + classes, places], whatever it is shown, plus nothing times the image."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
            helper.make_node("Add", ["known", "nothing"], ["output0"]),
        ],
        "known boxes",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, list(output.shape))],
        [numpy_helper.from_array(output, "known"), numpy_helper.from_array(np.array(0, np.float32), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def output_for(boxes: list[tuple[float, float, float, float]], classes: list[int], places: int = PLACES) -> Any:
    """The raw output of a network that sees these boxes (x_min, y_min, x_max, y_max in pixels of its input)."""
    output = np.zeros((1, 4 + len(LABELS), places), dtype=np.float32)
    for place, ((x_min, y_min, x_max, y_max), class_id) in enumerate(zip(boxes, classes, strict=True)):
        output[0, :4, place * 7] = [(x_min + x_max) / 2, (y_min + y_max) / 2, x_max - x_min, y_max - y_min]
        output[0, 4 + class_id, place * 7] = 0.9 - place * 0.05
    return output


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (640, 640), (300, 900), (1, 1), (4000, 3)])
def test_known_boxes_come_back_in_pixels_of_the_image(width: int, height: int) -> None:
    # Where the image lies in the input, worked out here on its own.
    scale = 640 / max(width, height)
    left, top = (640 - width * scale) / 2, (640 - height * scale) / 2
    inside = [(0.1, 0.2, 0.5, 0.9), (0.6, 0.0, 1.0, 0.3)]
    placed = [
        (left + a * width * scale, top + b * height * scale, left + c * width * scale, top + d * height * scale)
        for a, b, c, d in inside
    ]
    detector = YoloDetector(OnnxEngine(detector_file(output_for(placed, [2, 0]))), LABELS, 0.4)
    found: list[Any] = detector(np.zeros((height, width, 3), np.uint8))
    assert [(one["label"], one["class_id"]) for one in found] == [("cup", 2), ("cat", 0)]
    assert [one["score"] for one in found] == pytest.approx([0.9, 0.85], abs=1e-3)
    # Letterboxing rounds the borders to whole pixels of the input.
    for one, (a, b, c, d) in zip(found, inside, strict=True):
        expected = {"x_min": a * width, "y_min": b * height, "x_max": c * width, "y_max": d * height}
        assert one["box"] == pytest.approx(expected, abs=1.01 / scale)


def test_of_two_that_overlap_the_surer_one_stays_unless_they_are_of_two_classes() -> None:
    boxes = [(100.0, 100.0, 200.0, 200.0), (105.0, 100.0, 205.0, 200.0), (100.0, 100.0, 200.0, 200.0)]
    detector = YoloDetector(OnnxEngine(detector_file(output_for(boxes, [1, 1, 0]))), LABELS, 0.4)
    found: list[Any] = detector(np.zeros((640, 640, 3), np.uint8))
    assert [(one["label"], one["box"]["x_min"]) for one in found] == [("dog", 100.0), ("cat", 100.0)]


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 900), st.floats(0.05, 0.95))
def test_candidates_are_the_places_that_reach_the_minimum(seed: int, places: int, minimum: float) -> None:
    output = np.random.default_rng(seed).random((4 + len(LABELS), places), dtype=np.float32)
    found = yolo_candidates(output, minimum)
    scores = [float(column.max()) for column in output[4:].T]
    expected = sorted((score for score in scores if score >= np.float32(minimum)), reverse=True)
    assert [one.score for one in found] == expected[:400]
    for one in found:
        # Two places may have the same score.
        matching = np.flatnonzero(output[4:].max(axis=0) == np.float32(one.score))
        assert any(
            one.column == int(output[4:, place].argmax()) and one.box == corners(output, place) for place in matching
        )


def corners(output: NDArray[np.float32], place: np.intp) -> Any:
    x, y, width, height = output[:4, place].astype(float)
    return pytest.approx((y - height / 2, x - width / 2, y + height / 2, x + width / 2))


def test_a_size_of_its_own_is_kept() -> None:
    engine = OnnxEngine(detector_file(output_for([(10.0, 10.0, 60.0, 60.0)], [1], places=100), side=320))
    [found] = YoloDetector(engine, LABELS, 0.4)(np.zeros((320, 320, 3), np.uint8))
    assert found["box"] == {"x_min": 10.0, "y_min": 10.0, "x_max": 60.0, "y_max": 60.0}


def test_an_empty_street_is_empty() -> None:
    detector = YoloDetector(OnnxEngine(detector_file(output_for([], []), side="any")), LABELS, 0.4)
    assert detector(np.zeros((100, 200, 3), np.uint8)) == []


def test_another_number_of_classes_is_told() -> None:
    engine = OnnxEngine(detector_file(output_for([], [])))
    with pytest.raises(IntegrityError) as caught:
        YoloDetector(engine, ("cat",), 0.4)
    assert caught.value.code == "bad_model"
