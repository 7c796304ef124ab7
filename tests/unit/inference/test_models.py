"""Served models on real images and real digits."""

from __future__ import annotations

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from primespark.core.identifiers import sha256_hex
from primespark.core.manifests import Manifest, Variant
from primespark.errors import IntegrityError, InvalidInputError, NotFoundError
from primespark.inference import catalog
from primespark.inference.images import decode_image
from primespark.inference.models import ServedModel, load_bundled, load_model
from primespark.inference.onnx_engine import OnnxEngine
from primespark.inference.samples import sample_images

DIGITS = tuple(str(digit) for digit in range(10))


@pytest.fixture(scope="module")
def images() -> dict[str, NDArray[np.uint8]]:
    return {name: decode_image(data, 1_000_000) for name, data in sample_images()}


@pytest.fixture(scope="module")
def detector() -> ServedModel:
    return load_bundled("coco-ssd", threads=1, minimum_score=0.4)


def overlap(box: dict[str, float], other: tuple[float, float, float, float]) -> float:
    x_min, y_min, x_max, y_max = other
    width = min(box["x_max"], x_max) - max(box["x_min"], x_min)
    height = min(box["y_max"], y_max) - max(box["y_min"], y_min)
    both = max(width, 0) * max(height, 0)
    areas = (box["x_max"] - box["x_min"]) * (box["y_max"] - box["y_min"]) + (x_max - x_min) * (y_max - y_min)
    return both / (areas - both)


# Boxes drawn by hand over the photographs: x_min, y_min, x_max, y_max.
@pytest.mark.parametrize(
    ("name", "label", "score", "box"),
    [
        ("coffee.png", "cup", 0.9, (175, 25, 410, 245)),
        ("chelsea.png", "cat", 0.9, (0, 0, 410, 300)),
        ("astronaut.png", "person", 0.6, (20, 0, 390, 512)),
        ("camera.png", "person", 0.8, (20, 70, 320, 512)),
        ("motorcycle_left.png", "motorcycle", 0.9, (100, 60, 690, 455)),
    ],
)
def test_the_detector_sees_what_is_there(
    detector: ServedModel,
    images: dict[str, NDArray[np.uint8]],
    name: str,
    label: str,
    score: float,
    box: tuple[float, float, float, float],
) -> None:
    best = detector.predict(images[name])[0]
    assert best["label"] == label
    assert detector.labels.index(label) >= 0
    assert best["score"] > score
    assert overlap(best["box"], box) > 0.75


def test_the_detector_sees_nothing_where_nothing_is(
    detector: ServedModel, images: dict[str, NDArray[np.uint8]]
) -> None:
    assert detector.predict(images["rocket.jpg"]) == []


def test_detections_are_plain_json_in_order_and_inside(
    detector: ServedModel, images: dict[str, NDArray[np.uint8]]
) -> None:
    found = load_bundled("coco-ssd", threads=1, minimum_score=0.05).predict(images["coffee.png"])
    assert len(found) > 3
    assert json.loads(json.dumps(found)) == found
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    for one in found:
        assert set(one) == {"label", "class_id", "score", "box"}
        assert 0 <= one["box"]["x_min"] <= one["box"]["x_max"] <= 600
        assert 0 <= one["box"]["y_min"] <= one["box"]["y_max"] <= 400
        assert catalog.read_labels("coco90.txt")[one["class_id"]] == one["label"]
    assert found[:2] == detector.predict(images["coffee.png"])


def test_what_it_is(detector: ServedModel) -> None:
    bundled = catalog.find("coco-ssd")
    assert (detector.name, detector.model_type, detector.version) == ("coco-ssd", "object_detection", 1)
    assert (detector.digest, detector.device, len(detector.labels)) == (bundled.sha256, "cpu", 80)


@pytest.mark.parametrize("name", ["coffee.png", "chelsea.png", "motorcycle_left.png", "flower.jpg"])
def test_a_large_image_is_seen_as_the_graph_itself_would(
    detector: ServedModel, images: dict[str, NDArray[np.uint8]], name: str
) -> None:
    small = Image.fromarray(images[name])
    large = np.asarray(small.resize((small.width * 3, small.height * 3), Image.Resampling.BICUBIC))
    assert large.shape[0] * large.shape[1] > 1_000_000
    by_name = dict(zip(detector.engine.output_names, detector.engine.run({"image_tensor:0": large[None]}), strict=True))
    scores = by_name["Postprocessor/Slice:0"][0]
    found = detector.predict(large)
    assert {one["class_id"] - 1 for one in found} == {int(column) for column in np.nonzero(scores >= 0.4)[1]}
    for one in found:
        assert one["score"] == pytest.approx(float(scores[:, one["class_id"] - 1].max()), abs=0.03)
        assert one["box"]["x_max"] <= large.shape[1]


def test_threads_share_a_served_model(detector: ServedModel, images: dict[str, NDArray[np.uint8]]) -> None:
    names = ["coffee.png", "chelsea.png", "rocket.jpg"]
    alone = {name: detector.predict(images[name]) for name in names}
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda name: (name, detector.predict(images[name])), names * 4))
    assert all(answer == alone[name] for name, answer in together)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_an_array_that_is_no_image_is_refused(detector: ServedModel, image: NDArray[Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        detector.predict(image)
    assert caught.value.code == "bad_image_array"


def test_tiny_and_long_images_are_answered(detector: ServedModel) -> None:
    for shape in [(1, 1, 3), (1, 3000, 3), (2000, 2, 3)]:
        assert isinstance(detector.predict(np.zeros(shape, np.uint8)), list)


def test_a_model_that_is_not_there_is_told() -> None:
    with pytest.raises(NotFoundError):
        load_bundled("absent", 1, 0.4)


# ------------------------------------------------------------------------------------------------ the digit reader


@pytest.fixture(scope="module")
def trained() -> tuple[bytes, NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """ONNX of a classifier, held-back pixels, their labels, and what scikit-learn itself answers."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    pixels, labels = load_digits(return_X_y=True)
    sent, held_back = train_test_split(np.arange(len(labels)), test_size=0.4, random_state=1, stratify=labels)
    classifier = SVC(C=10).fit(pixels[sent] / 16, labels[sent])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        converted = to_onnx(
            classifier,
            initial_types=[("input", FloatTensorType([None, 64]))],
            options={"zipmap": False},
            target_opset={"": 17, "ai.onnx.ml": 3},
        )
    rows = pixels[held_back]
    return converted.SerializeToString(), rows, labels[held_back], classifier.predict(rows / 16)


def manifest(onnx_file: bytes, **changes: Any) -> Manifest:
    variant = Variant(format="onnx", architecture="any", sha256=sha256_hex(onnx_file), size_bytes=len(onnx_file) or 1)
    fields = {
        "name": "digits",
        "version": 3,
        "model_type": "classification",
        "created": datetime(2026, 1, 1, tzinfo=UTC),
        "labels": DIGITS,
        "variants": (variant,),
    }
    return Manifest(**{**fields, **changes})


def frame(row: NDArray[np.float64]) -> NDArray[np.uint8]:
    grey = (row.reshape(8, 8) * 15).astype(np.uint8)
    return np.stack([grey] * 3, axis=2)


def test_the_digit_reader_answers_as_scikit_learn(
    trained: tuple[bytes, NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]],
) -> None:
    file, rows, labels, expected = trained
    model = load_model(manifest(file), file, 1, 0.4)
    assert (model.name, model.version, model.digest, model.labels) == ("digits", 3, sha256_hex(file), DIGITS)
    answers = [model.predict(frame(row)) for row in rows]
    assert [answer[0]["class_id"] for answer in answers] == expected.tolist()
    accuracy = np.mean([answer[0]["label"] == str(label) for answer, label in zip(answers, labels, strict=True)])
    assert accuracy > 0.97
    for answer in answers:
        assert json.loads(json.dumps(answer)) == answer
        assert len({one["class_id"] for one in answer}) == len(answer) == 5
        others = [one["score"] for one in answer[1:]]
        assert others == sorted(others, reverse=True)


def test_only_the_file_of_the_manifest_is_loaded(
    trained: tuple[bytes, NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]],
) -> None:
    file = trained[0]
    with pytest.raises(IntegrityError) as caught:
        load_model(manifest(b"another"), file, 1, 0.4)
    assert caught.value.code == "wrong_artifact"
    hef = Variant(format="hef", architecture="hailo8", sha256=sha256_hex(file), size_bytes=len(file))
    with pytest.raises(IntegrityError):
        load_model(manifest(file, variants=(hef,)), file, 1, 0.4)


@pytest.mark.parametrize("changes", [{"labels": DIGITS[:9]}, {"labels": ()}, {"model_type": "pose"}])
def test_a_manifest_that_says_something_else_is_refused(
    trained: tuple[bytes, NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]], changes: dict[str, Any]
) -> None:
    with pytest.raises(IntegrityError) as caught:
        load_model(manifest(trained[0], **changes), trained[0], 1, 0.4)
    assert caught.value.code == "bad_model"


@pytest.mark.parametrize("model_type", sorted(set(catalog.ModelType) - set(catalog.DEPLOYABLE)))
def test_what_cannot_be_deployed_is_refused_with_what_can(model_type: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        load_model(manifest(b"a graph", model_type=model_type), b"a graph", 1, 0.4)
    assert set(caught.value.remedy.removeprefix("there is ").split(", ")) == set(catalog.DEPLOYABLE)


def other_model(inputs: str = "input", width: int = 64) -> bytes:
    """A classifier of as many classes as it has inputs."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [inputs], ["scores"]), helper.make_node("ArgMax", [inputs], ["label"], axis=1)],
        "other",
        [helper.make_tensor_value_info(inputs, TensorProto.FLOAT, ["n", width])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["n", 1]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", width]),
        ],
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(whole)
    return bytes(whole.SerializeToString())


@pytest.mark.parametrize("file", [other_model(), other_model("x"), other_model(width=10)])
def test_a_sound_model_of_another_form_is_refused_when_it_is_loaded(file: bytes) -> None:
    OnnxEngine(file, 1)
    with pytest.raises(IntegrityError) as caught:
        load_model(manifest(file), file, 1, 0.4)
    assert caught.value.code == "bad_model"


def test_the_detectors_file_is_no_digit_reader() -> None:
    file = catalog.read_bytes(catalog.find("coco-ssd"))
    with pytest.raises(IntegrityError) as caught:
        load_model(manifest(file), file, 1, 0.4)
    assert caught.value.code == "bad_model"
