"""Models of tables, as scikit-learn's, converted: one answer for each row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from primespark.errors import IntegrityError, InvalidInputError
from primespark.inference.engine import InferenceEngine
from primespark.inference.predictions import Classification, Value

MAX_ROWS = 10_000
_CLASSIFIER_OUTPUTS = 2


class TableClassifier:
    """Answers the class of each row, with the model's probability of it.

    Args:
        engine: From float32 [n, features] to class id int64 [n] and probabilities float32 [n, classes].
        labels: Name of each class id.
    """

    def __init__(self, engine: InferenceEngine, labels: tuple[str, ...]) -> None:
        self._engine = engine
        self._labels = labels
        if len(engine.output_names) != _CLASSIFIER_OUTPUTS:
            raise IntegrityError(f"a classifier of rows has two outputs, not {engine.output_names}", code="bad_model")

    def __call__(self, rows: NDArray[np.float32]) -> list[Classification]:
        """One class per row."""
        classes, probabilities = self._engine.run({self._engine.input_names[0]: _checked(rows)})
        expected = ((len(rows),), (len(rows), len(self._labels)))
        if (classes.shape, probabilities.shape) != expected or not np.isin(classes, range(len(self._labels))).all():
            raise IntegrityError(f"the model does not answer with one of {len(self._labels)} labels", code="bad_model")
        return [
            {"label": self._labels[class_id], "class_id": class_id, "score": round(row[class_id], 4)}
            for class_id, row in zip(classes.tolist(), probabilities.tolist(), strict=True)
        ]


class TableRegressor:
    """Answers a number for each row.

    Args:
        engine: From float32 [n, features] to float32 [n, 1] or [n].
    """

    def __init__(self, engine: InferenceEngine) -> None:
        self._engine = engine

    def __call__(self, rows: NDArray[np.float32]) -> list[Value]:
        """One number per row."""
        (values,) = self._engine.run({self._engine.input_names[0]: _checked(rows)})
        return [{"value": value} for value in values.reshape(-1).tolist()]


def _checked(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    if len(rows) > MAX_ROWS:
        raise InvalidInputError(
            f"{len(rows)} rows, limit {MAX_ROWS}", remedy="send fewer at once", code="too_many_rows"
        )
    return rows
