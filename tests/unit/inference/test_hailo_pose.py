"""Poses from the raw heads of a HEF: as the published formulas say, and as the processor's file of the network does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from primespark.errors import IntegrityError
from primespark.inference.hailo_device import HailoDevice
from primespark.inference.hailo_engine import HailoInferenceEngine
from primespark.inference.hailo_pose import HailoPose, count_points, decoded, find_heads
from primespark.inference.images import decode_image
from primespark.inference.letterbox import Letterbox
from primespark.inference.onnx_engine import OnnxEngine
from primespark.inference.samples import sample_images
from primespark.inference.yolo_pose import YoloPose
from tests.colours import hef as detector_hef
from tests.doubles import hailo
from tests.poses import MINIMUM, POINTS, hef, onnx_file

SHAPES = [(20, 20, 64), (20, 20, 1), (20, 20, 51), (40, 40, 64), (40, 40, 1), (40, 40, 51), (80, 80, 64), (80, 80, 1)]
SHAPES.append((80, 80, 51))
IMAGE = [(640, 640, 3)]


def images() -> dict[str, NDArray[np.uint8]]:
    found = {name: decode_image(data, 1_000_000) for name, data in sample_images()}
    return {**found, "tall.png": np.ascontiguousarray(found["china.jpg"].transpose(1, 0, 2))}


@pytest.fixture
def device(tmp_path: Path) -> Iterator[HailoDevice]:
    with hailo.fitted(tmp_path) as machine:
        device = HailoDevice(machine.root)
        yield device
        device.close()


def engine_of(folder: Path, file: bytes, device: HailoDevice) -> HailoInferenceEngine:
    path = folder / "poses.hef"
    path.write_bytes(file)
    return HailoInferenceEngine(path, device, timeout_s=30)


def test_both_paths_see_the_same_bodies(tmp_path: Path, device: HailoDevice) -> None:
    on_chip = HailoPose(engine_of(tmp_path, hef(is_quantised=False), device), POINTS, MINIMUM)
    on_processor = YoloPose(OnnxEngine(onnx_file()), POINTS, MINIMUM)
    seen = 0
    for name, image in images().items():
        there, here = on_chip(image), on_processor(image)
        assert len(there) == len(here), name
        for one, other in zip(there, here, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-3), name
            assert [point["name"] for point in one["keypoints"]] == list(POINTS)
            for ours, theirs in zip(one["keypoints"], other["keypoints"], strict=True):
                assert math.hypot(ours["x"] - theirs["x"], ours["y"] - theirs["y"]) < 0.1, name
                assert ours["score"] == pytest.approx(theirs["score"], abs=1e-3), name
        seen += len(there)
    assert seen > 50


def test_in_the_bits_of_the_chip_each_body_is_one_that_the_processor_sees(tmp_path: Path, device: HailoDevice) -> None:
    """Equal scores of 256 let suppression choose another of two neighbours, so that each is looked for among all."""
    on_chip = HailoPose(engine_of(tmp_path, hef(is_quantised=True), device), POINTS, MINIMUM)
    processor = OnnxEngine(onnx_file())
    for name, image in images().items():
        letterbox = Letterbox(image.shape[1], image.shape[0], 640, 640)
        (output,) = processor.run({"images": letterbox.apply_nchw(image)[np.newaxis]})
        every = output[0, 5:].T.reshape(-1, 17, 3)
        places = letterbox.unmap(every[..., :2])
        for body in on_chip(image):
            points = np.array([[point["x"], point["y"]] for point in body["keypoints"]])
            nearest = int(np.abs(places - points).max(axis=(1, 2)).argmin())
            np.testing.assert_allclose(points, places[nearest], atol=0.3, err_msg=name)
            assert body["score"] == pytest.approx(output[0, 4, nearest], abs=0.003)
            sure = [point["score"] for point in body["keypoints"]]
            assert sure == pytest.approx(every[nearest, :, 2].tolist(), abs=1e-3)


def by_hand(heads: list[NDArray[np.float32]], minimum: float) -> list[list[float]]:
    """The formulas place by place, in Python's numbers."""
    found = []
    for boxes, scores, points in zip(heads[::3], heads[1::3], heads[2::3], strict=True):
        stride = 640 // boxes.shape[1]
        for row in range(boxes.shape[1]):
            for column in range(boxes.shape[2]):
                score = float(scores[0, row, column, 0])
                if score < np.float32(minimum):
                    continue
                sides = []
                for side in range(4):
                    powers = [math.exp(value) for value in boxes[0, row, column, 16 * side : 16 * side + 16].tolist()]
                    sides.append(sum(i * power for i, power in enumerate(powers)) / sum(powers))
                x_min, y_min = (column + 0.5 - sides[0]) * stride, (row + 0.5 - sides[1]) * stride
                x_max, y_max = (column + 0.5 + sides[2]) * stride, (row + 0.5 + sides[3]) * stride
                body = [(x_min + x_max) / 2, (y_min + y_max) / 2, x_max - x_min, y_max - y_min, score]
                for x, y, sure in points[0, row, column].reshape(-1, 3).tolist():
                    body += [(x * 2 - 0.5) * stride + (column + 0.5) * stride]
                    body += [(y * 2 - 0.5) * stride + (row + 0.5) * stride, 1 / (1 + math.exp(-sure))]
                found.append(body)
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 17), st.permutations(range(9)), st.sampled_from([0.5, 0.997, 1.1]))
def test_the_heads_are_decoded_as_published(seed: int, points: int, order: list[int], minimum: float) -> None:
    random = np.random.default_rng(seed)
    shapes = [(*shape[:2], 3 * points if shape[2] == 51 else shape[2]) for shape in SHAPES]
    heads = [random.normal(0, 3, (1, *shape)).astype(np.float32) for shape in shapes]
    for place in (1, 4, 7):
        heads[place] = random.random(heads[place].shape, dtype=np.float32)
    if minimum == 0.5:
        # Few, since the other way is slow.
        for place in (1, 4, 7):
            heads[place] *= random.random(heads[place].shape) > 0.99
    shuffled, given_shapes = [heads[place] for place in order], [shapes[place] for place in order]
    found = find_heads(IMAGE, given_shapes)
    assert found is not None
    assert count_points(found, given_shapes) == points
    ours = decoded(shuffled, found, minimum).T
    theirs = np.array(by_hand(heads, minimum)).reshape(-1, 5 + 3 * points)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.astype(np.float32).T)], atol=2e-2)


@pytest.mark.parametrize(
    "shapes",
    [
        SHAPES[:-1],
        [*SHAPES, (80, 80, 51)],
        [*SHAPES[:-1], (80, 80, 48)],
        [*SHAPES[:-1], (80, 80, 1)],
        [*SHAPES[:-1], (80, 40, 51)],
        [(*shape[:2], 50 if shape[2] == 51 else shape[2]) for shape in SHAPES],
        [(*shape[:2], 60 if shape[2] == 64 else shape[2]) for shape in SHAPES],
        [shape[:2] for shape in SHAPES],
        [(1000,)] * 9,
    ],
)
def test_other_shapes_are_no_heads(shapes: list[tuple[int, ...]]) -> None:
    assert find_heads(IMAGE, shapes) is None
    assert find_heads(IMAGE, SHAPES) is not None
    for takes in ([(640, 640, 1)], [(644, 644, 3)], IMAGE * 2, [(640,)], []):
        assert find_heads(takes, SHAPES) is None


def test_what_is_no_model_of_these_points_is_refused(tmp_path: Path, device: HailoDevice) -> None:
    def refused(file: bytes, names: tuple[str, ...]) -> None:
        engine = engine_of(tmp_path, file, device)
        with pytest.raises(IntegrityError) as caught:
            HailoPose(engine, names, MINIMUM)
        assert caught.value.code == "bad_model"
        engine.close()

    for names in (POINTS[:-1], ()):
        refused(hef(is_quantised=True), names)
    refused(hef(is_quantised=True, names={"points": "boxes"}), POINTS)
    refused(hef(is_quantised=True, has_sigmoid=False), POINTS)
    refused(detector_hef(by_score=False), POINTS)


def test_nobody_is_an_empty_answer(tmp_path: Path, device: HailoDevice) -> None:
    answers: Any = HailoPose(engine_of(tmp_path, hef(is_quantised=True), device), POINTS, 0.99)
    assert answers(np.full((300, 200, 3), 128, np.uint8)) == []
