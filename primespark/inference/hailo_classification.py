"""Classification of images with a HEF, as the vendor's zoo has them: the middle of an image in, a value a class out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from primespark.errors import IntegrityError
from primespark.inference.classification import best_of, middle_of, softmax
from primespark.inference.hailo_engine import HailoInferenceEngine
from primespark.inference.predictions import Classification

# Of what HailoRT computes in float, and of a scale that is not a round number.
_TOLERANCE = 0.01


class HailoClassifier:
    """Answers the best labels for the middle of an image, the same that `ImageClassifier` looks at.

    Some HEFs end in softmax on the chip, some in HailoRT's, others before it. The chip's has an output that can tell
    values from 0 to 1 only: the many small ones are lost in its 256 steps, so that their sum says nothing. HailoRT's is
    told by its values, which are not negative and add up to 1. All else are logits.

    Args:
        engine: From an image, uint8 [1, side, side, 3] RGB, to a value for each class.
        labels: Name of each class id.

    Raises:
        IntegrityError: Code `bad_model`: the model is not of that form.
    """

    def __init__(self, engine: HailoInferenceEngine, labels: tuple[str, ...]) -> None:
        takes, gives = [one.shape for one in engine.inputs], [one.shape for one in engine.outputs]
        if engine.nms or not is_classifier(takes, gives) or max(gives[0]) != len(labels):
            raise IntegrityError(
                f"not a classifier of images with {len(labels)} labels: inputs {takes}, outputs {gives}"[:400],
                code="bad_model",
            )
        self._engine = engine
        self._labels = labels
        self._side = takes[0][0]
        span = engine.outputs[0].span
        self._tells_shares = span is not None and span[0] >= 0 and span[1] <= 1 + _TOLERANCE

    def __call__(self, image: NDArray[np.uint8]) -> list[Classification]:
        """The best labels first, with their probabilities."""
        (output,) = self._engine.run({self._engine.input_names[0]: middle_of(image, self._side)[np.newaxis]})
        values = output.reshape(-1)
        if self._tells_shares or _are_probabilities(values):
            return best_of(values.astype(np.float64), self._labels)
        return best_of(softmax(values), self._labels)


def is_classifier(takes: Sequence[tuple[int, ...]], gives: Sequence[tuple[int, ...]]) -> bool:
    """Whether a model of these shapes, without the batch, takes one square image and gives one vector for it."""
    if len(takes) != 1 or len(gives) != 1 or len(takes[0]) != 3 or not gives[0]:
        return False
    height, width, channels = takes[0]
    return height == width and channels == 3 and math.prod(gives[0]) == max(gives[0]) > 1


def _are_probabilities(values: NDArray[np.float32]) -> bool:
    return bool(values.min() >= 0) and abs(float(values.sum()) - 1) <= _TOLERANCE
