"""Classifiers of images: one of photographs, and the digit reader over 64 grey values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from primespark.errors import IntegrityError
from primespark.inference.digits import FEATURES, digit_features_of
from primespark.inference.engine import InferenceEngine, try_model
from primespark.inference.predictions import Classification

BEST = 5
_INPUT = "input"
# EfficientNet-Lite was evaluated on the middle of the image, seven eighths of its shorter side.
_MIDDLE = 0.875
_IMAGE_FORM = "a classifier of images"
_DIGIT_FORM = f"a classifier of {FEATURES} grey values"
_MEAN, _SCALE = np.float32(127), np.float32(128)


class ImageClassifier:
    """Answers the best labels for the middle of an image.

    Args:
        engine: From float32 [1, 3, side, side], RGB as (value - 127) / 128, to logits [1, classes].
        labels: Name of each class id.
        side: Of the square input, in pixels.

    Raises:
        IntegrityError: Code `bad_model`: the model is not of that form, seen by running it once.
    """

    def __init__(self, engine: InferenceEngine, labels: tuple[str, ...], side: int = 224) -> None:
        self._engine = engine
        self._labels = labels
        self._side = side
        self._input = engine.input_names[0]
        outputs = try_model(engine, {self._input: np.zeros((1, 3, side, side), np.float32)}, _IMAGE_FORM)
        if [output.shape for output in outputs] != [(1, len(labels))]:
            raise IntegrityError(
                f"not {_IMAGE_FORM}: {len(labels)} labels, {[output.shape for output in outputs]}"[:400],
                code="bad_model",
            )

    def __call__(self, image: NDArray[np.uint8]) -> list[Classification]:
        """The best labels first, with their probabilities."""
        (logits,) = self._engine.run({self._input: self._prepare(image)[np.newaxis]})
        return best_of(softmax(logits[0]), self._labels)

    def _prepare(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        return ((middle_of(image, self._side).astype(np.float32) - _MEAN) / _SCALE).transpose(2, 0, 1)


def middle_of(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """What a classifier of photographs looks at, uint8 [side, side, 3]: the middle of the image, scaled."""
    height, width = image.shape[:2]
    middle = max(1, round(min(height, width) * _MIDDLE))
    left, top = (width - middle) // 2, (height - middle) // 2
    seen = Image.fromarray(image).resize(
        (side, side), Image.Resampling.BICUBIC, box=(left, top, left + middle, top + middle)
    )
    return np.asarray(seen, dtype=np.uint8)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities, float64 [classes], of logits."""
    powers = np.exp(logits.astype(np.float64) - float(logits.max()))
    probabilities: NDArray[np.float64] = powers / powers.sum()
    return probabilities


def best_of(
    probabilities: NDArray[np.float64], labels: tuple[str, ...], decided: int | None = None
) -> list[Classification]:
    """The five most probable classes, the best first; before them the one that was decided on."""
    by_score = np.argsort(-probabilities, kind="stable").tolist()
    best = sorted(by_score, key=lambda index: index != decided)[:BEST]
    return [
        {"label": labels[index], "class_id": index, "score": round(float(probabilities[index]), 4)} for index in best
    ]


class DigitReader:
    """Answers the best labels for an image.

    Scores are the softmax of the model's decision values; the first answer is the model's own label.

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

    def __call__(self, image: NDArray[np.uint8]) -> list[Classification]:
        """The best labels first."""
        decided, decision_values = self._engine.run({_INPUT: digit_features_of(image)[np.newaxis]})
        first = int(decided[0])
        if not 0 <= first < len(self._labels):
            raise IntegrityError(f"the model answers class {first}, which has no label", code="bad_model")
        # A support vector machine decides by votes of pairs, rarely another class than the one of the highest score.
        return best_of(softmax(decision_values[0]), self._labels, first)

    def _check(self) -> None:
        if self._engine.input_names != (_INPUT,) or len(self._engine.output_names) != 2:
            raise _other_form(f"inputs {self._engine.input_names}, outputs {self._engine.output_names}")
        row = np.zeros((1, FEATURES), dtype=np.float32)
        decided, scores = try_model(self._engine, {_INPUT: row}, _DIGIT_FORM)
        shapes = (np.shape(decided), np.shape(scores))
        if shapes != ((1,), (1, len(self._labels))) or not np.issubdtype(decided.dtype, np.integer):
            raise _other_form(f"{len(self._labels)} labels, outputs of shape {shapes[0]} and {shapes[1]}")


def _other_form(found: str) -> IntegrityError:
    return IntegrityError(f"not {_DIGIT_FORM}: {found}"[:400], code="bad_model")
