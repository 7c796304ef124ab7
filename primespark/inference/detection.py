"""Object detection with a single-shot detector: sampling, candidates, non-maximum suppression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from primespark.inference.engine import InferenceEngine
from primespark.inference.predictions import Detection

MAXIMUM_OVERLAP = 0.5
MAX_DETECTIONS = 100
# Only a very low minimum score has more; the best are taken.
MAX_CANDIDATES = 400
# Above this the graph's own resizing costs more than the network: 1.2 s and 1 GB at 18 million pixels.
_SAMPLED_ABOVE_PIXELS = 1_000_000
_INPUT = "image_tensor:0"
_SCORES = "Postprocessor/Slice:0"
_BOXES = "Postprocessor/ExpandDims_1:0"
_GRAPH_SIDE = 300


Box = tuple[float, ...]


class Candidate(NamedTuple):
    """One class seen in one place; the box is y_min, x_min, y_max, x_max.

    Where more than a box is told of it, `place` says where in the model's output.
    """

    score: float
    column: int
    box: Box
    place: int = 0


class SsdDetector:
    """Answers the objects in an image, the surest first, their boxes in pixels of that image.

    Args:
        engine: The model: uint8 [1, h, w, 3] to scores [1, anchors, classes] and boxes [1, anchors, 1, 4]
            (y1, x1, y2, x2 in 0..1).
        labels: Names by class id (column + 1); columns without a name are not answered.
        minimum_score: Objects below it are not answered.
    """

    def __init__(self, engine: InferenceEngine, labels: dict[int, str], minimum_score: float) -> None:
        self._engine = engine
        self._labels = labels
        self._minimum_score = np.float32(minimum_score)
        self._scores_at = engine.output_names.index(_SCORES)
        self._boxes_at = engine.output_names.index(_BOXES)

    def __call__(self, image: NDArray[np.uint8]) -> list[Detection]:
        """The surest first."""
        height, width = image.shape[:2]
        seen = sample_as_graph(image) if height * width > _SAMPLED_ABOVE_PIXELS else image
        outputs = self._engine.run({_INPUT: seen[np.newaxis]})
        found = candidates(outputs[self._scores_at], outputs[self._boxes_at], self._minimum_score)
        named = [candidate for candidate in found if candidate.column + 1 in self._labels]
        return [self._detection(one, width, height) for one in non_maximum_suppression(named, MAXIMUM_OVERLAP)]

    def _detection(self, found: Candidate, width: int, height: int) -> Detection:
        y_min, x_min, y_max, x_max = found.box
        return {
            "label": self._labels[found.column + 1],
            "class_id": found.column + 1,
            "score": round(found.score, 4),
            "box": {
                "x_min": _pixels(x_min, width),
                "y_min": _pixels(y_min, height),
                "x_max": _pixels(x_max, width),
                "y_max": _pixels(y_max, height),
            },
        }


def candidates(scores: NDArray[np.float32], boxes: NDArray[np.float32], minimum_score: np.float32) -> list[Candidate]:
    """What reaches the minimum, best first, at most 400; scores [1, anchors, classes], boxes [1, anchors, 1, 4]."""
    classes = scores.shape[-1]
    flat = scores.reshape(-1)
    chosen = (flat >= minimum_score).nonzero()[0]
    if not chosen.size:
        return []
    if chosen.size > MAX_CANDIDATES:
        chosen = chosen[np.argpartition(-flat[chosen], MAX_CANDIDATES)[:MAX_CANDIDATES]]
    places = boxes.reshape(-1, 4)[chosen // classes].tolist()
    rows = zip(flat[chosen].tolist(), chosen.tolist(), places, strict=True)
    # Scores come first in a candidate, so that no key function is called: it is felt at this scale.
    return sorted((Candidate(score, place % classes, tuple(box)) for score, place, box in rows), reverse=True)


def non_maximum_suppression(found: Sequence[Candidate], maximum_overlap: float) -> list[Candidate]:
    """The candidates that no surer kept one of their class overlaps by more, at most 100.

    A frame has some tens of candidates, for which plain numbers take a third of the time of arrays.

    Args:
        found: By falling score.
        maximum_overlap: Intersection over union up to which both boxes stay.
    """
    kept: list[Candidate] = []
    for candidate in found:
        rivals = (one.box for one in kept if one.column == candidate.column)
        if not any(_overlap(candidate.box, rival) > maximum_overlap for rival in rivals):
            kept.append(candidate)
            if len(kept) == MAX_DETECTIONS:
                break
    return kept


def _overlap(one: Box, other: Box) -> float:
    """Intersection over union; 0 for boxes that do not meet."""
    height = min(one[2], other[2]) - max(one[0], other[0])
    width = min(one[3], other[3]) - max(one[1], other[1])
    if height <= 0 or width <= 0:
        return 0.0
    intersection = height * width
    areas = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return intersection / (areas - intersection)


def _pixels(share: float, size: int) -> float:
    return round(min(max(share, 0.0), 1.0) * size, 2)


def sample_as_graph(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The 300 x 300 pixels the graph itself takes from a larger image: bilinear, `x = i * width / 300`, no averaging.

    Smoother reductions change the scores by up to 0.6, since the network was trained on this one; this changes them
    by the rounding of a pixel (0.024 at most over the sample images, three times enlarged).
    """
    top, bottom, down = _positions(image.shape[0])
    left, right, across = _positions(image.shape[1])
    down, across = down[:, np.newaxis, np.newaxis], across[np.newaxis, :, np.newaxis]
    above = _between(image[np.ix_(top, left)], image[np.ix_(top, right)], across)
    below = _between(image[np.ix_(bottom, left)], image[np.ix_(bottom, right)], across)
    return np.rint(_between(above, below, down)).astype(np.uint8)


def _positions(size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    places = np.arange(_GRAPH_SIDE, dtype=np.float32) * np.float32(size / _GRAPH_SIDE)
    before = np.minimum(places.astype(np.intp), size - 1)
    return before, np.minimum(before + 1, size - 1), (places - before).astype(np.float32)


def _between(start: NDArray[Any], end: NDArray[Any], share: NDArray[np.float32]) -> NDArray[np.float32]:
    first = start.astype(np.float32)
    return first + (end.astype(np.float32) - first) * share
