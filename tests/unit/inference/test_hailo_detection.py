"""Boxes from the accelerator and from the processor, of one network on real photographs: they must be the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from primespark.errors import IntegrityError
from primespark.inference.hailo_detection import HailoDetector
from primespark.inference.hailo_device import HailoDevice
from primespark.inference.hailo_engine import HailoInferenceEngine
from primespark.inference.images import decode_image
from primespark.inference.onnx_engine import OnnxEngine
from primespark.inference.predictions import Box
from primespark.inference.samples import sample_images
from primespark.inference.yolo import YoloDetector
from tests.colours import LABELS, MINIMUM, colours, hef
from tests.doubles import hailo
from tests.doubles.hailo import Stream


@pytest.fixture(params=[(version, by_score) for version in hailo.VERSIONS for by_score in (False, True)], ids=str)
def on_chip(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HailoInferenceEngine]:
    version, by_score = request.param
    if by_score and version < "4.21":
        # The first release that has this layout; below, both cases are by class.
        by_score = False
    with hailo.fitted(tmp_path, version):
        path = tmp_path / "colours.hef"
        path.write_bytes(hef(by_score))
        device = HailoDevice(tmp_path)
        engine = HailoInferenceEngine(path, device)
        yield engine
        engine.close()
        device.close()


def overlap(one: Box, other: Box) -> float:
    width = min(one["x_max"], other["x_max"]) - max(one["x_min"], other["x_min"])
    height = min(one["y_max"], other["y_max"]) - max(one["y_min"], other["y_min"])
    both = max(width, 0) * max(height, 0)
    areas = [(box["x_max"] - box["x_min"]) * (box["y_max"] - box["y_min"]) for box in (one, other)]
    return both / (sum(areas) - both)


def photographs() -> dict[str, NDArray[np.uint8]]:
    found = {name: decode_image(data, 1_000_000) for name, data in sample_images()}
    return {**found, "tall.png": np.ascontiguousarray(found["china.jpg"].transpose(1, 0, 2))}


def test_both_paths_see_the_same_boxes(on_chip: HailoInferenceEngine) -> None:
    accelerator = HailoDetector(on_chip, LABELS, MINIMUM)
    processor = YoloDetector(OnnxEngine(colours(on_chip=False)), LABELS, MINIMUM)
    seen = 0
    for name, image in photographs().items():
        there, here = accelerator(image), processor(image)
        assert len(there) == len(here), name
        for one in there:
            same = max(here, key=lambda other: (other["label"] == one["label"], overlap(one["box"], other["box"])))
            assert same["label"] == one["label"], name
            assert same["score"] == pytest.approx(one["score"], abs=2e-3), name
            assert overlap(one["box"], same["box"]) >= 0.99, name
            seen += 1
    assert seen > 50


def test_an_answer_has_nothing_of_other_frames(on_chip: HailoInferenceEngine) -> None:
    grey = {"colours/input_layer1": np.full((1, 640, 640, 3), 128, np.uint8)}
    red = {"colours/input_layer1": np.tile(np.array([255, 0, 0], np.uint8), (1, 640, 640, 1))}
    # More frames than the ring has buffers, so that each one has had boxes in it.
    (first,) = on_chip.run(grey)
    for _ in range(2 * on_chip.concurrency):
        assert on_chip.run(red)[0].any()
    (again,) = on_chip.run(grey)
    np.testing.assert_array_equal(again, first)
    assert not again.any()


@pytest.mark.parametrize("labels", [LABELS[:2], (*LABELS, "white")])
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: tuple[str, ...]) -> None:
    with hailo.fitted(tmp_path):
        (tmp_path / "colours.hef").write_bytes(hef(by_score=False))
        engine = HailoInferenceEngine(tmp_path / "colours.hef", HailoDevice(tmp_path))
        with pytest.raises(IntegrityError) as caught:
            HailoDetector(engine, labels, MINIMUM)
        assert caught.value.code == "bad_model"


def test_a_model_without_suppression_is_refused(tmp_path: Path) -> None:
    with hailo.fitted(tmp_path):
        plain = hailo.Hef(
            "plain", (Stream("in", (4, 4, 3), "in"),), (Stream("out", (4, 4, 3), "out"),), function="add_one"
        )
        (tmp_path / "plain.hef").write_bytes(plain.to_bytes())
        engine = HailoInferenceEngine(tmp_path / "plain.hef", HailoDevice(tmp_path))
        with pytest.raises(IntegrityError):
            HailoDetector(engine, LABELS, MINIMUM)
