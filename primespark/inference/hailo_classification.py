"""Classification of images with a HEF, as the vendor's zoo has them: the middle of an image in, a value a class out."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from primespark.errors import IntegrityError
from primespark.inference.classification import best_of, middle_of, softmax
from primespark.inference.hailo_engine import HailoInferenceEngine
from primespark.inference.predictions import Classification

# Quantised to 256 steps, a thousand probabilities add up to 1 within this.
_SUM_TOLERANCE = 0.1


class HailoClassifier:
    """Answers the best labels for the middle of an image, the same that `ImageClassifier` looks at.

    Some HEFs end in softmax, others before it, and none says so: what is not negative and adds up to 1 is
    probabilities, all else logits.

    Args:
        engine: From an image, uint8 [1, side, side, 3] RGB, to a value for each class, in any shape of as many.
        labels: Name of each class id.

    Raises:
        IntegrityError: Code `bad_model`: the model is not of that form.
    """

    def __init__(self, engine: HailoInferenceEngine, labels: tuple[str, ...]) -> None:
        takes, gives = [one.shape for one in engine.inputs], [one.shape for one in engine.outputs]
        is_square = len(takes) == 1 and len(takes[0]) == 3 and takes[0][0] == takes[0][1] and takes[0][2] == 3
        if not is_square or engine.nms or [math.prod(shape) for shape in gives] != [len(labels)]:
            raise IntegrityError(
                f"not a classifier of images with {len(labels)} labels: inputs {takes}, outputs {gives}"[:400],
                code="bad_model",
            )
        self._engine = engine
        self._labels = labels
        self._side = takes[0][0]

    def __call__(self, image: NDArray[np.uint8]) -> list[Classification]:
        """The best labels first, with their probabilities."""
        (output,) = self._engine.run({self._engine.input_names[0]: middle_of(image, self._side)[np.newaxis]})
        values = output.reshape(-1)
        return best_of(values.astype(np.float64) if _are_probabilities(values) else softmax(values), self._labels)


def _are_probabilities(values: NDArray[np.float32]) -> bool:
    return bool(values.min() >= 0) and abs(float(values.sum()) - 1) <= _SUM_TOLERANCE
