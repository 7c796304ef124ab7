"""Poses in the format of YOLOv8: known bodies in, the same bodies out, through a real ONNX file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from primespark.core.clock import utc_now
from primespark.core.identifiers import sha256_hex
from primespark.core.manifests import Manifest, Variant
from primespark.errors import IntegrityError
from primespark.inference.models import load_model
from primespark.inference.onnx_engine import OnnxEngine
from primespark.inference.yolo_pose import YoloPose
from tests.unit.inference.test_yolo import detector_file

NAMES = ("nose", "left_hand", "right_hand")
PLACES = 8400

Body = tuple[float, list[tuple[float, float, float]]]


def output_for(bodies: list[Body], boxes: list[tuple[float, float, float, float]]) -> Any:
    """The raw output of a network that sees these bodies (score and points, in pixels of its input) in these boxes."""
    output = np.zeros((1, 5 + 3 * len(NAMES), PLACES), dtype=np.float32)
    for place, ((score, points), (x_min, y_min, x_max, y_max)) in enumerate(zip(bodies, boxes, strict=True)):
        box = [(x_min + x_max) / 2, (y_min + y_max) / 2, x_max - x_min, y_max - y_min]
        output[0, :, place * 7] = [*box, score, *np.ravel(points)]
    return output


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (640, 640), (300, 900), (4000, 3)])
def test_known_bodies_come_back_in_pixels_of_the_image(width: int, height: int) -> None:
    # Where the image lies in the input, worked out here on its own.
    scale = 640 / max(width, height)
    left, top = (640 - width * scale) / 2, (640 - height * scale) / 2
    inside = [[(0.1, 0.2, 0.9), (0.5, 0.9, 0.8), (0.3, 0.4, 0.1)], [(0.6, 0.0, 0.7), (1.0, 0.3, 0.2), (0.9, 0.2, 1.0)]]
    bodies: list[Body] = [
        (score, [(left + x * width * scale, top + y * height * scale, sure) for x, y, sure in points])
        for score, points in zip((0.6, 0.8), inside, strict=True)
    ]
    boxes = [(50.0, 50.0, 250.0, 250.0), (300.0, 300.0, 400.0, 400.0)]
    found: list[Any] = YoloPose(OnnxEngine(detector_file(output_for(bodies, boxes))), NAMES, 0.4)(
        np.zeros((height, width, 3), np.uint8)
    )
    assert [one["score"] for one in found] == pytest.approx([0.8, 0.6])
    # Letterboxing rounds the borders to whole pixels of the input.
    for one, points in zip(found, reversed(inside), strict=True):
        assert [point["name"] for point in one["keypoints"]] == list(NAMES)
        for point, (x, y, sure) in zip(one["keypoints"], points, strict=True):
            assert (point["x"], point["y"]) == pytest.approx((x * width, y * height), abs=1.01 / scale)
            assert point["score"] == pytest.approx(sure)


def test_points_outside_are_moved_to_the_edge_of_the_image() -> None:
    body = (0.9, [(-50.0, 10.0, 0.9), (700.0, 10.0, 0.9), (320.0, 900.0, 0.9)])
    (found,) = YoloPose(OnnxEngine(detector_file(output_for([body], [(0, 0, 600, 600)]))), NAMES, 0.4)(
        np.zeros((640, 640, 3), np.uint8)
    )
    assert [(point["x"], point["y"]) for point in found["keypoints"]] == [(0, 10), (640, 10), (320, 640)]


def test_each_body_once_and_none_below_the_minimum() -> None:
    points = [(10.0, 10.0, 0.9)] * 3
    bodies: list[Body] = [(0.6, points), (0.9, points), (0.8, points), (0.39, points)]
    # The second overlaps the first by 0.9 and the third by 0.6: people stand close.
    boxes = [(0.0, 0.0, 95.0, 100.0), (0.0, 0.0, 100.0, 100.0), (25.0, 0.0, 125.0, 100.0), (300.0, 0.0, 400.0, 100.0)]
    found: Any = YoloPose(OnnxEngine(detector_file(output_for(bodies, boxes))), NAMES, 0.4)(
        np.zeros((640, 640, 3), np.uint8)
    )
    assert [one["score"] for one in found] == pytest.approx([0.9, 0.8])


@pytest.mark.parametrize("names", [(), NAMES[:2], (*NAMES, "tail")])
def test_other_points_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(IntegrityError) as caught:
        YoloPose(OnnxEngine(detector_file(output_for([], []))), names, 0.4)
    assert caught.value.code == "bad_model"


def test_a_manifest_of_poses_is_served() -> None:
    file = detector_file(output_for([(0.9, [(10.0, 10.0, 0.5)] * 3)], [(0, 0, 50, 50)]))
    variant = Variant(format="onnx", architecture="any", sha256=sha256_hex(file), size_bytes=len(file))
    manifest = Manifest(
        name="people", version=3, model_type="pose", created=utc_now(), labels=NAMES, variants=(variant,)
    )
    model = load_model(manifest, file, 1, 0.4)
    (found,) = model.predict(np.zeros((640, 640, 3), np.uint8))
    assert found == {
        "keypoints": [{"name": name, "x": 10.0, "y": 10.0, "score": 0.5} for name in NAMES], "score": 0.9,
    }  # fmt: skip
