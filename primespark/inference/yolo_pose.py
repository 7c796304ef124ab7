"""Poses of all people in an image with models in the format of YOLOv8-pose; suppression is ours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from primespark.errors import IntegrityError
from primespark.inference.detection import non_maximum_suppression
from primespark.inference.engine import InferenceEngine
from primespark.inference.letterbox import Letterbox
from primespark.inference.predictions import Pose
from primespark.inference.yolo import YoloNetwork, yolo_candidates

# People stand close: as Ultralytics and the vendor of Hailo's chips, more overlap than between objects.
MAXIMUM_OVERLAP = 0.7
# Of a place: its box in four numbers and the body's score; then for each point x, y and score.
BODY_NUMBERS, POINT_NUMBERS = 5, 3


class YoloPose:
    """Answers the poses in an image, the surest first, their points in pixels of that image.

    Args:
        engine: From float32 [1, 3, height, width], RGB 0..1, letterboxed, to float32 [1, 5 + 3 points, places]: centre
            x and y, width and height in pixels of the input, the body's score, then x, y and score of each point.
        names: Of the points, in the model's order.
        minimum_score: Bodies below it are not answered.

    Raises:
        IntegrityError: Code `bad_model`: the model is not of that form.
    """

    def __init__(self, engine: InferenceEngine, names: tuple[str, ...], minimum_score: float) -> None:
        if not names:
            raise IntegrityError(
                "a model of poses without labels", remedy="its labels are the names of the points", code="bad_model"
            )
        numbers = BODY_NUMBERS + POINT_NUMBERS * len(names)
        self._network = YoloNetwork(engine, numbers, "a model of poses in the format of YOLOv8")
        self._names = names
        self._minimum_score = minimum_score

    def __call__(self, image: NDArray[np.uint8]) -> list[Pose]:
        """The surest first, at most 100; none where nobody is seen."""
        output, letterbox = self._network.look(image)
        return poses(output, letterbox, self._names, self._minimum_score)


def poses(
    output: NDArray[np.float32], letterbox: Letterbox, names: tuple[str, ...], minimum_score: float
) -> list[Pose]:
    """The bodies of an output that reach the minimum, the surest first, each of them once.

    Args:
        output: [5 + 3 points, places], in pixels of the input, as `YoloPose` says.
        letterbox: How the image lies in the input.
        names: Of the points.
        minimum_score: Of a body.
    """
    found = non_maximum_suppression(yolo_candidates(output[:BODY_NUMBERS], minimum_score), MAXIMUM_OVERLAP)
    points = output[BODY_NUMBERS:, [one.place for one in found]].T.reshape(-1, len(names), POINT_NUMBERS)
    places = letterbox.unmap(points[..., :2]).astype(np.float64).round(2).tolist()
    scores = points[..., 2].astype(np.float64).round(4).tolist()
    return [
        {
            "keypoints": [
                {"name": name, "x": x, "y": y, "score": score}
                for name, (x, y), score in zip(names, where, sure, strict=True)
            ],
            "score": round(body.score, 4),
        }
        for body, where, sure in zip(found, places, scores, strict=True)
    ]
