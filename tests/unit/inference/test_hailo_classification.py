"""A classifier on the (double) chip sees what the one on the processor sees, whether its HEF ends in softmax or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from primespark.errors import IntegrityError
from primespark.inference.classification import ImageClassifier
from primespark.inference.hailo_classification import HailoClassifier
from primespark.inference.hailo_device import HailoDevice
from primespark.inference.hailo_engine import HailoInferenceEngine
from primespark.inference.images import decode_image
from primespark.inference.onnx_engine import OnnxEngine
from primespark.inference.samples import sample_images
from tests.colours import hef as detector_hef
from tests.doubles import hailo
from tests.photographs import LABELS, classifier, hef

EXPECTED = {"chelsea.png": "tiger cat", "coffee.png": "espresso"}


@pytest.fixture
def device(tmp_path: Path) -> Iterator[HailoDevice]:
    with hailo.fitted(tmp_path) as machine:
        device = HailoDevice(machine.root)
        yield device
        device.close()


def engine_of(folder: Path, file: bytes, device: HailoDevice) -> HailoInferenceEngine:
    path = folder / "model.hef"
    path.write_bytes(file)
    return HailoInferenceEngine(path, device, timeout_s=30)


@pytest.mark.parametrize("ends_in_softmax", [False, True])
def test_both_paths_see_the_same(tmp_path: Path, device: HailoDevice, ends_in_softmax: bool) -> None:
    on_chip = HailoClassifier(engine_of(tmp_path, hef(ends_in_softmax), device), LABELS)
    on_processor = ImageClassifier(OnnxEngine(classifier(), 1), LABELS)
    images = dict(sample_images())
    for name, label in EXPECTED.items():
        image = decode_image(images[name], 10_000_000)
        ours, theirs = on_chip(image), on_processor(image)
        assert (ours[0]["label"], theirs[0]["label"]) == (label, label)
        assert ours[0]["score"] == pytest.approx(theirs[0]["score"], abs=0.05)
        assert len(ours) == len(theirs) == 5


def test_what_is_no_classifier_with_these_labels_is_refused(tmp_path: Path, device: HailoDevice) -> None:
    engine = engine_of(tmp_path, hef(ends_in_softmax=False), device)
    for labels in (LABELS[:-1], ()):
        with pytest.raises(IntegrityError) as caught:
            HailoClassifier(engine, labels)
        assert caught.value.code == "bad_model"
    engine.close()
    with pytest.raises(IntegrityError):
        HailoClassifier(engine_of(tmp_path, detector_hef(by_score=False), device), LABELS)


def test_logits_that_are_all_positive_are_no_probabilities(tmp_path: Path, device: HailoDevice) -> None:
    answers = HailoClassifier(engine_of(tmp_path, hef(ends_in_softmax=False), device), LABELS)(
        np.full((300, 200, 3), 128, np.uint8)
    )
    assert 0 < sum(answer["score"] for answer in answers) <= 1.001
