"""The stages as functions, on the scanned digits of scikit-learn."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from primespark.core.manifests import GoldenInput, SigningKey
from primespark.errors import ConflictError, IntegrityError, InvalidInputError
from primespark.inference.digits import digit_features, encode_digit_png
from primespark.ml import digits_model, digits_pipeline
from primespark.ml.arrays import unpack
from primespark.ml.datasets import LabelledFeatures, held_back_digits, held_back_split
from primespark.ml.deployment import deploy
from primespark.ml.outputs import Evaluated, Ingested, Judged, Trained
from primespark.ml.registry import Registry
from tests.unit.ml.data import SEED, MemoryBlobs, Row, digit_rows

MINIMUM_ACCURACY = 0.7
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class ServedVersion:
    version: int
    artifact: str


def learn(rows: list[Row], blobs: MemoryBlobs) -> Trained:
    validated = digits_pipeline.validate(digits_pipeline.ingest(rows, blobs), blobs)
    featured = digits_pipeline.engineer_features(digits_pipeline.preprocess(validated, blobs), blobs, SEED)
    return digits_pipeline.train(featured, blobs)


def test_sixty_labels_make_a_fair_model_and_all_labels_a_good_one_that_beats_it() -> None:
    blobs = MemoryBlobs()
    first = digits_pipeline.evaluate(learn(digit_rows(60), blobs), None, blobs, SEED)
    assert 0.8 <= first.accuracy <= 0.93
    assert digits_pipeline.judge(first, MINIMUM_ACCURACY).passed
    champion = ServedVersion(1, first.artifact)
    second = digits_pipeline.evaluate(learn(digit_rows(1078), blobs), champion, blobs, SEED)
    assert second.accuracy >= 0.97
    assert second.champion_accuracy == first.accuracy
    assert digits_pipeline.judge(second, MINIMUM_ACCURACY).passed
    third = digits_pipeline.evaluate(learn(digit_rows(60), blobs), ServedVersion(2, second.artifact), blobs, SEED)
    assert not digits_pipeline.judge(third, MINIMUM_ACCURACY).passed


def test_accuracy_is_that_of_scikit_learn_on_the_raw_digits() -> None:
    """Neither PNG nor ONNX changes what the model reads."""
    pixels, labels = load_digits(return_X_y=True)
    sent, held_back = held_back_split(SEED)
    classifier = SVC(C=10).fit(pixels[sent] / 16, labels[sent])
    expected = (classifier.predict(pixels[held_back] / 16) == labels[held_back]).mean()
    blobs = MemoryBlobs()
    found = digits_pipeline.evaluate(learn(digit_rows(1078), blobs), None, blobs, SEED)
    assert found.held_back == 719
    assert found.accuracy == pytest.approx(expected, abs=1.5 / 719)


def test_the_golden_digit_is_one_the_model_reads() -> None:
    blobs = MemoryBlobs()
    evaluated = digits_pipeline.evaluate(learn(digit_rows(60), blobs), None, blobs, SEED)
    features = digit_features(base64.b64decode(evaluated.golden.image_png_base64))
    label = digits_model.predict(blobs.get(evaluated.artifact), features[np.newaxis])[0]
    assert str(label) == evaluated.golden.label


def test_the_same_labels_give_the_same_file_in_every_process() -> None:
    """A retry after a kill finds the registered version by its digest; string hashes differ between processes."""
    program = (
        "from tests.unit.ml.data import MemoryBlobs, digit_rows\n"
        "from tests.unit.ml.test_digits_pipeline import learn\n"
        "print(learn(digit_rows(60), MemoryBlobs()).artifact)"
    )
    # With these seeds of the string hash the converter's set of domains comes out in both orders.
    digests = set()
    for seed in ("0", "116"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        outcome = subprocess.run(
            [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
        )
        digests.add(outcome.stdout.strip())
    assert len(digests) == 1


def test_the_graph_has_the_shape_that_serves() -> None:
    blobs = MemoryBlobs()
    session = onnxruntime.InferenceSession(blobs.get(learn(digit_rows(60), blobs).artifact))
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape[1]) == ("input", "tensor(float)", 64)
    labels, scores = session.run(None, {"input": np.zeros((3, 64), np.float32)})
    assert (labels.dtype, labels.shape) == (np.int64, (3,))
    assert (scores.dtype, scores.shape) == (np.float32, (3, 10))


def test_bad_labels_are_set_aside_by_name() -> None:
    blobs = MemoryBlobs()
    good = digit_rows(60)
    bad = [
        Row("a-cut", "3", good[0].image_png[:40]),
        Row("b-html", "3", b"<html>"),
        Row("c-empty", "3", b""),
        Row("d-class", "eleven", good[0].image_png),
    ]
    validated = digits_pipeline.validate(digits_pipeline.ingest([*bad, *good], blobs), blobs)
    assert (validated.labels, validated.usable, validated.rejected) == (64, 60, 4)
    assert [(entry.sample, entry.code) for entry in validated.rejected_samples] == [
        ("a-cut", "undecodable_image"),
        ("b-html", "undecodable_image"),
        ("c-empty", "undecodable_image"),
        ("d-class", "unknown_class"),
    ]
    assert validated.counts == {str(digit): 6 for digit in range(10)}
    assert digits_pipeline.preprocess(validated, blobs).samples == 60


def test_a_missing_class_is_named() -> None:
    blobs = MemoryBlobs()
    ingested = digits_pipeline.ingest([row for row in digit_rows(60) if row.label not in "37"], blobs)
    with pytest.raises(InvalidInputError, match="no usable image of 3, 7 among 48") as raised:
        digits_pipeline.validate(ingested, blobs)
    assert raised.value.code == "missing_classes"


def test_no_labels_are_no_data_set() -> None:
    with pytest.raises(InvalidInputError) as raised:
        digits_pipeline.ingest([], MemoryBlobs())
    assert raised.value.code == "no_labels"


def test_pixels_are_those_that_were_scanned() -> None:
    images, _ = load_digits(return_X_y=True)
    blobs = MemoryBlobs()
    rows = digit_rows(60)
    validated = digits_pipeline.validate(digits_pipeline.ingest(rows, blobs), blobs)
    preprocessed = digits_pipeline.preprocess(validated, blobs)
    expected = [images[int(row.sample.removeprefix("digit-"))] for row in rows]
    np.testing.assert_array_equal(unpack(blobs.get(preprocessed.pixels))["pixels"], expected)


def test_what_judges_the_model_never_trains_it() -> None:
    images, labels = load_digits(return_X_y=True)
    _, held_back = held_back_split(SEED)
    leaked = [
        Row(f"leak-{index}", str(labels[index]), encode_digit_png(images[index].reshape(8, 8)))
        for index in held_back[:25]
    ]
    blobs = MemoryBlobs()
    validated = digits_pipeline.validate(digits_pipeline.ingest([*digit_rows(60), *leaked], blobs), blobs)
    featured = digits_pipeline.engineer_features(digits_pipeline.preprocess(validated, blobs), blobs, SEED)
    assert (featured.labels, featured.samples, featured.withheld) == (85, 60, 25)
    held = {row.tobytes() for row in held_back_digits(SEED).features}
    assert not held & {row.tobytes() for row in unpack(blobs.get(featured.features))["features"]}


def test_only_the_evaluation_set_is_too_little_to_learn_from() -> None:
    images, labels = load_digits(return_X_y=True)
    _, held_back = held_back_split(SEED)
    rows = [Row(str(i), str(labels[i]), encode_digit_png(images[i].reshape(8, 8))) for i in held_back[:100]]
    blobs = MemoryBlobs()
    validated = digits_pipeline.validate(digits_pipeline.ingest(rows, blobs), blobs)
    preprocessed = digits_pipeline.preprocess(validated, blobs)
    with pytest.raises(InvalidInputError) as raised:
        digits_pipeline.engineer_features(preprocessed, blobs, SEED)
    assert raised.value.code == "missing_classes"


@pytest.mark.parametrize(
    ("accuracy", "champion", "is_champion", "passed"),
    [
        (0.70, None, False, True),
        (0.69, None, False, False),
        (0.90, 0.89, False, True),
        (0.90, 0.90, False, False),
        (0.90, 0.95, False, False),
        (0.60, 0.50, False, False),
        # The same file again, after a kill between the alias and the record of it.
        (0.90, 0.90, True, True),
    ],
)
def test_the_verdict(accuracy: float, champion: float | None, is_champion: bool, passed: bool) -> None:
    evaluated = _evaluated(accuracy, champion, is_champion)
    judged = digits_pipeline.judge(evaluated, MINIMUM_ACCURACY)
    assert judged.passed is passed
    assert judged.reason


def test_a_conversion_that_reads_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = held_back_digits(SEED)
    few = LabelledFeatures(data.features[:60], data.labels[:60])
    monkeypatch.setattr(digits_model, "predict", lambda _onnx, features: np.full(len(features), 3))
    with pytest.raises(IntegrityError) as raised:
        digits_model.train(few)
    assert raised.value.code == "conversion_differs"


def test_outputs_survive_json_and_refuse_what_they_are_not() -> None:
    output = Judged(labels=60, artifact="0" * 64, passed=True, reason="x", accuracy=0.9, champion_accuracy=None)
    assert Judged.from_stored(output.model_dump(mode="json")) == output
    for stored in ({}, {"labels": 60}, None, {**output.model_dump(), "accuracy": float("nan")}):
        with pytest.raises(IntegrityError) as raised:
            Judged.from_stored(stored)
        assert raised.value.code == "bad_stage_output"
    with pytest.raises(IntegrityError):
        Ingested.from_stored({"labels": 1, "dataset": "../../etc/passwd"})


def test_a_model_that_did_not_pass_is_not_deployed() -> None:
    evaluated = _evaluated(0.5, 0.9, False)
    judged = digits_pipeline.judge(evaluated, MINIMUM_ACCURACY)
    with pytest.raises(ConflictError) as raised:
        deploy(judged, evaluated, Registry(), MemoryBlobs(), SigningKey(Ed25519PrivateKey.generate()))
    assert raised.value.code == "not_better"


def _evaluated(accuracy: float, champion: float | None, is_champion: bool) -> Evaluated:
    return Evaluated(
        labels=60,
        artifact="0" * 64,
        held_back=719,
        accuracy=accuracy,
        champion_version=None if champion is None else 1,
        champion_accuracy=champion,
        is_champion=is_champion,
        golden=GoldenInput(image_png_base64="", label="0"),
    )
