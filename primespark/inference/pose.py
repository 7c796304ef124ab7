"""A person's pose with MoveNet: 17 points of one body."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from primespark.inference.engine import InferenceEngine
from primespark.inference.predictions import Keypoint, Pose

KEYPOINTS = 17
_INPUT = "input:0"


class MoveNet:
    """Answers one pose for an image, its points in pixels of that image.

    Args:
        engine: From int32 `input:0` [1, side, side, 3] RGB 0..255 to [1, 1, 17, 3] of y, x (0..1) and score.
        names: Of the points, in COCO's order.
        side: Of the square input, in pixels.
    """

    def __init__(self, engine: InferenceEngine, names: tuple[str, ...], side: int = 192) -> None:
        self._engine = engine
        self._names = names
        self._side = side

    def __call__(self, image: NDArray[np.uint8]) -> list[Pose]:
        """The pose, also where there is no person: its score then is low."""
        height, width = image.shape[:2]
        (points,) = self._engine.run({_INPUT: self._padded_square(image)[np.newaxis]})
        # The square holds the image in its middle, so that a point's place is taken from the middle, too.
        longest = max(height, width)
        found: list[Keypoint] = []
        for name, (y, x, score) in zip(self._names, points.reshape(KEYPOINTS, 3).tolist(), strict=True):
            found.append(
                {
                    "name": name,
                    "x": _clipped((x - 0.5) * longest + width / 2, width),
                    "y": _clipped((y - 0.5) * longest + height / 2, height),
                    "score": round(score, 4),
                }
            )
        return [{"keypoints": found, "score": round(float(points[..., 2].mean()), 4)}]

    def _padded_square(self, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        """The whole image in a black square, as the network was trained."""
        height, width = image.shape[:2]
        ratio = self._side / max(height, width)
        size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        left, top = (self._side - size[0]) // 2, (self._side - size[1]) // 2
        square = np.zeros((self._side, self._side, 3), dtype=np.int32)
        resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
        square[top : top + size[1], left : left + size[0]] = np.asarray(resized)
        return square


def _clipped(place: float, size: int) -> float:
    return round(min(max(place, 0.0), float(size)), 2)
