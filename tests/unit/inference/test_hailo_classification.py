"""A classifier on the (double) chip sees what the one on the processor sees, whether its HEF ends in softmax or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from primespark.errors import IntegrityError
from primespark.inference.classification import ImageClassifier
from primespark.inference.hailo_classification import HailoClassifier, is_classifier
from primespark.inference.hailo_device import HailoDevice
from primespark.inference.hailo_engine import HailoInferenceEngine
from primespark.inference.images import decode_image
from primespark.inference.onnx_engine import OnnxEngine
from primespark.inference.samples import sample_images
from tests.colours import hef as detector_hef
from tests.doubles import hailo
from tests.doubles.hailo import Hef, Stream
from tests.photographs import LABELS, classifier, hef

EXPECTED = {"chelsea.png": "tiger cat", "coffee.png": "espresso"}


@pytest.fixture
def device(tmp_path: Path) -> Iterator[HailoDevice]:
    with hailo.fitted(tmp_path) as machine:
        device = HailoDevice(machine.root)
        yield device
        device.close()


def unsure(bits: int, scale: float) -> bytes:
    """A HEF that gives one class a half and the others the rest, whatever it is shown."""
    shares = np.full((1, 1000), 0.5 / 999, np.float32)
    shares[0, 7] = 0.5
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["float"], ["most"], keepdims=0),
            helper.make_node("Mul", ["most", "zero"], ["nothing"]),
            helper.make_node("Add", ["shares", "nothing"], ["out"]),
        ],
        "unsure",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 224, 224, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 1000])],
        [numpy_helper.from_array(shares, "shares"), numpy_helper.from_array(np.array(0, np.float32), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    kind = {8: "UINT8", 32: "FLOAT32"}[bits]
    streams = Stream("in", (224, 224, 3), "image"), Stream("out", (1000,), "out", kind, scale)
    return Hef("unsure", streams[:1], streams[1:], onnx=model.SerializeToString()).to_bytes()


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


def test_shares_whose_many_small_ones_are_lost_stay_shares(tmp_path: Path, device: HailoDevice) -> None:
    """On the chip 0.0005 is nothing: an unsure answer of a thousand classes adds up to a good half."""
    on_chip = HailoClassifier(engine_of(tmp_path, unsure(bits=8, scale=1 / 255), device), LABELS)
    best, second = on_chip(np.zeros((224, 224, 3), np.uint8))[:2]
    assert best["label"] == LABELS[7]
    assert best["score"] == pytest.approx(0.5, abs=0.003)
    assert second["score"] == 0.0


def test_shares_of_a_softmax_that_the_host_computes_are_taken_as_they_are(tmp_path: Path, device: HailoDevice) -> None:
    on_chip = HailoClassifier(engine_of(tmp_path, unsure(bits=32, scale=0.0), device), LABELS)
    best, second = on_chip(np.zeros((224, 224, 3), np.uint8))[:2]
    assert best["score"] == pytest.approx(0.5, abs=1e-4)
    assert second["score"] == pytest.approx(0.0005, abs=1e-4)


@pytest.mark.parametrize(
    ("takes", "gives"),
    [
        ([(224, 224, 3)], [(1000,), (1000,)]),
        ([(224, 224, 3)], []),
        ([(224, 224, 3)], [(7, 7, 1000)]),
        ([(224, 224, 3)], [(1, 1, 1)]),
        ([(224, 224, 3)], [()]),
        ([(256, 224, 3)], [(1000,)]),
        ([(224, 224, 1)], [(1000,)]),
        ([(1000,)], [(1000,)]),
        ([], [(1000,)]),
    ],
)
def test_other_shapes_are_no_classifier(takes: list[tuple[int, ...]], gives: list[tuple[int, ...]]) -> None:
    assert not is_classifier(takes, gives)
    assert is_classifier([(224, 224, 3)], [(1000,)])
    assert is_classifier([(224, 224, 3)], [(1, 1, 1000)])


def test_logits_that_are_all_positive_are_no_probabilities(tmp_path: Path, device: HailoDevice) -> None:
    answers = HailoClassifier(engine_of(tmp_path, hef(ends_in_softmax=False), device), LABELS)(
        np.full((300, 200, 3), 128, np.uint8)
    )
    assert 0 < sum(answer["score"] for answer in answers) <= 1.001
