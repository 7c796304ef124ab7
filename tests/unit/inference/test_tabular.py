"""Trained models of tables against scikit-learn's own answers."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_diabetes, load_wine
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from primespark.core.identifiers import sha256_hex
from primespark.core.manifests import Manifest, Variant
from primespark.errors import IntegrityError, InvalidInputError
from primespark.inference.models import load_model
from primespark.inference.tabular import MAX_ROWS

CULTIVARS = ("barolo", "grignolino", "barbera")


def convert(estimator: Any, features: int, **options: Any) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        converted = to_onnx(
            estimator,
            initial_types=[("input", FloatTensorType([None, features]))],
            target_opset={"": 17, "ai.onnx.ml": 3},
            options=options or None,
        )
    return bytes(converted.SerializeToString())


def manifest(file: bytes, labels: tuple[str, ...]) -> Manifest:
    variant = Variant(format="onnx", architecture="any", sha256=sha256_hex(file), size_bytes=len(file))
    return Manifest(
        name="table", version=1, model_type="tabular", created=datetime(2026, 1, 1, tzinfo=UTC), labels=labels,
        variants=(variant,),
    )  # fmt: skip


@pytest.fixture(scope="module")
def wine() -> tuple[bytes, NDArray[np.float32], NDArray[np.float64]]:
    """ONNX of a classifier, its rows, and the probabilities scikit-learn itself gives."""
    rows, cultivar = load_wine(return_X_y=True)
    classifier = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, cultivar)
    return convert(classifier, 13, zipmap=False), rows.astype(np.float32), classifier.predict_proba(rows)


def test_a_classifier_answers_as_scikit_learn(wine: tuple[bytes, Any, Any]) -> None:
    file, rows, probabilities = wine
    found = load_model(manifest(file, CULTIVARS), file, 1, 0.4).predict(rows)
    best = probabilities.argmax(axis=1)
    assert [one["class_id"] for one in found] == best.tolist()
    assert [one["label"] for one in found] == [CULTIVARS[index] for index in best]
    assert [one["score"] for one in found] == pytest.approx(probabilities.max(axis=1), abs=1e-3)


def test_a_regressor_answers_as_scikit_learn() -> None:
    rows, progression = load_diabetes(return_X_y=True)
    regressor = LinearRegression().fit(rows, progression)
    file = convert(regressor, 10)
    found = load_model(manifest(file, ()), file, 1, 0.4).predict(rows.astype(np.float32))
    assert [one["value"] for one in found] == pytest.approx(regressor.predict(rows), rel=1e-3)


def test_fewer_labels_than_classes_are_refused(wine: tuple[bytes, Any, Any]) -> None:
    with pytest.raises(IntegrityError) as caught:
        load_model(manifest(wine[0], CULTIVARS[:2]), wine[0], 1, 0.4).predict(wine[1])
    assert caught.value.code == "bad_model"


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        (np.zeros((2, 12), np.float32), "wrong_model_input"),
        (np.zeros(13, np.float32), "bad_table"),
        (np.zeros((0, 13), np.float32), "bad_table"),
        (np.zeros((2, 13)), "bad_table"),
        (np.zeros((MAX_ROWS + 1, 13), np.float32), "too_many_rows"),
    ],
)
def test_rows_of_another_form_are_refused(wine: tuple[bytes, Any, Any], rows: NDArray[Any], code: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        load_model(manifest(wine[0], CULTIVARS), wine[0], 1, 0.4).predict(rows)
    assert caught.value.code == code
