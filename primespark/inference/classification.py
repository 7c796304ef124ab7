"""The digit reader: a classifier over 64 grey values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from primespark.errors import IntegrityError, InvalidInputError
from primespark.inference.digits import FEATURES, digit_features_of
from primespark.inference.engine import InferenceEngine

BEST = 5
_INPUT = "input"


class DigitReader:
    """Answers the best labels for an image.

    Scores are the model's decision values, comparable within one answer; the first answer is the model's own label.

    Args:
        engine: A model from float32 `input` [n, 64] to label int64 [n] and scores float32 [n, number of labels].
        labels: Name of each class id.

    Raises:
        IntegrityError: Code `bad_model`: the model is not of that form, seen by running it once.
    """

    def __init__(self, engine: InferenceEngine, labels: tuple[str, ...]) -> None:
        self._engine = engine
        self._labels = labels
        self._check()

    def __call__(self, image: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """The best labels first, as `{label, class_id, score}`."""
        decided, scores = self._engine.run({_INPUT: digit_features_of(image)[np.newaxis]})
        first = int(decided[0])
        if not 0 <= first < len(self._labels):
            raise IntegrityError(f"the model answers class {first}, which has no label", code="bad_model")
        by_score = [int(index) for index in np.argsort(-scores[0], kind="stable")]
        # A support vector machine decides by votes of pairs, rarely another class than the one of the highest score.
        best = [first, *(index for index in by_score if index != first)][:BEST]
        return [
            {"label": self._labels[index], "class_id": index, "score": round(float(scores[0, index]), 4)}
            for index in best
        ]

    def _check(self) -> None:
        if self._engine.input_names != (_INPUT,) or len(self._engine.output_names) != 2:
            raise _other_form(f"inputs {self._engine.input_names}, outputs {self._engine.output_names}")
        try:
            decided, scores = self._engine.run({_INPUT: np.zeros((1, FEATURES), dtype=np.float32)})
        except InvalidInputError as error:
            raise _other_form(error.message) from None
        shapes = (np.shape(decided), np.shape(scores))
        if shapes != ((1,), (1, len(self._labels))) or not np.issubdtype(decided.dtype, np.integer):
            raise _other_form(f"{len(self._labels)} labels, outputs of shape {shapes[0]} and {shapes[1]}")


def _other_form(found: str) -> IntegrityError:
    return IntegrityError(f"not a classifier of {FEATURES} grey values: {found}"[:400], code="bad_model")
