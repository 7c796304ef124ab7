"""How far two versions of a model agree on one input: 0 (not at all) to 1, by the type of model; pure.

| type | agreement |
|---|---|
| classification | 1 where the first labels are the same, else 0 |
| object_detection | F1 of boxes of one label that overlap by half or more (greedy, the largest overlap first) |
| pose | of each body and the one of the other answer that is most like it, on average: share of the key points, sure in
  either, that lie within a tenth of the larger body's size; of the ten surest bodies |
| segmentation | overlap of the masks |
| audio | overlap of the seconds that are speech |
| tabular | share of the rows with the same label, or with values within 5 % |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from primespark.inference.catalog import ModelType
from primespark.inference.predictions import Prediction

Predictions = Sequence[Prediction]

_LEAST_OVERLAP = 0.5
_MAX_BODIES = 10
_SURE_POINT = 0.3
_POINT_TOLERANCE = 0.1
_VALUE_TOLERANCE = 0.05


def agreement(model_type: ModelType, live: Predictions, candidate: Predictions) -> float:
    """How far two answers to one input agree, 0..1; two empty ones agree."""
    if not live and not candidate:
        return 1.0
    if not live or not candidate:
        return 0.0
    return _MEASURES[model_type](live, candidate)


def _same_first_label(live: Predictions, candidate: Predictions) -> float:
    return float(live[0]["label"] == candidate[0]["label"])


def _matched_boxes(live: Predictions, candidate: Predictions) -> float:
    overlaps = _box_overlaps(_boxes(live), _boxes(candidate))
    same = np.array([[one["label"] == other["label"] for other in candidate] for one in live])
    overlaps[~same] = 0.0
    matched = 0
    while (best := float(overlaps.max())) >= _LEAST_OVERLAP:
        row, column = np.argwhere(overlaps == best)[0]
        overlaps[row, :] = 0.0
        overlaps[:, column] = 0.0
        matched += 1
    return 2 * matched / (len(live) + len(candidate))


def _boxes(predictions: Predictions) -> NDArray[np.float64]:
    corners = ("x_min", "y_min", "x_max", "y_max")
    return np.array([[one["box"][corner] for corner in corners] for one in predictions], dtype=np.float64)


def _box_overlaps(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of each pair, [ours, theirs]; a pair without area overlaps by 0."""
    low = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    high = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (ours, theirs)]
    union = areas[0][:, None] + areas[1][None, :] - common
    overlaps: NDArray[np.float64] = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return overlaps


def _alike_bodies(live: Predictions, candidate: Predictions) -> float:
    alike = np.array([[_near_points(one, other) for other in candidate[:_MAX_BODIES]] for one in live[:_MAX_BODIES]])
    return float(np.concatenate((alike.max(axis=0), alike.max(axis=1))).mean())


def _near_points(one_body: Prediction, other_body: Prediction) -> float:
    ours, theirs = ({point["name"]: point for point in body["keypoints"]} for body in (one_body, other_body))
    sure = [
        (ours[name], theirs[name])
        for name in sorted(ours.keys() & theirs.keys())
        if max(ours[name]["score"], theirs[name]["score"]) >= _SURE_POINT
    ]
    if not sure:
        return 1.0
    # Of two bodies the larger, and at least a pixel, so that a body whose points fall together is near itself.
    reach = max(1.0, *(_POINT_TOLERANCE * _extent(body) for body in zip(*sure, strict=True)))
    near = [np.hypot(one["x"] - other["x"], one["y"] - other["y"]) <= reach for one, other in sure]
    return float(np.mean(near))


def _extent(points: Predictions) -> float:
    return max(float(np.ptp([point[axis] for point in points])) for axis in ("x", "y"))


def _mask_overlap(live: Predictions, candidate: Predictions) -> float:
    ours, theirs = live[0], candidate[0]
    if (ours["width"], ours["height"]) != (theirs["width"], theirs["height"]):
        return 0.0
    # Ends of the runs cut the pixels into stretches in which both masks are constant.
    ends = [np.cumsum(mask["counts"]) for mask in (ours, theirs)]
    cuts = np.unique(np.concatenate(ends))
    lengths = np.diff(cuts, prepend=0)
    inside = [np.searchsorted(end, cuts, side="left") % 2 == 1 for end in ends]
    return _ratio(float(lengths[inside[0] & inside[1]].sum()), float(lengths[inside[0] | inside[1]].sum()))


def _speech_overlap(live: Predictions, candidate: Predictions) -> float:
    cuts = sorted({one[end] for answer in (live, candidate) for one in answer for end in ("start_s", "end_s")})
    common = union = 0.0
    for start, end in pairwise(cuts):
        speaking = [any(one["start_s"] <= start and end <= one["end_s"] for one in said) for said in (live, candidate)]
        common += (end - start) * all(speaking)
        union += (end - start) * any(speaking)
    return _ratio(common, union)


def _same_rows(live: Predictions, candidate: Predictions) -> float:
    if len(live) != len(candidate):
        return 0.0
    return sum(_is_same_row(one, other) for one, other in zip(live, candidate, strict=True)) / len(live)


def _is_same_row(one: Prediction, other: Prediction) -> bool:
    if "value" in one and "value" in other:
        scale = max(abs(one["value"]), abs(other["value"]))
        return bool(abs(one["value"] - other["value"]) <= _VALUE_TOLERANCE * scale)
    return "label" in one and one["label"] == other.get("label")


def _ratio(common: float, union: float) -> float:
    return common / union if union else 1.0


_MEASURES: dict[ModelType, Callable[[Predictions, Predictions], float]] = {
    ModelType.CLASSIFICATION: _same_first_label,
    ModelType.OBJECT_DETECTION: _matched_boxes,
    ModelType.POSE: _alike_bodies,
    ModelType.SEGMENTATION: _mask_overlap,
    ModelType.AUDIO: _speech_overlap,
    ModelType.TABULAR: _same_rows,
}
