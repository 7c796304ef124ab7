"""Poses with a HEF of YOLOv8-pose, as the vendor's zoo has them: it ends in nine heads, and what follows runs here.

For each of the strides 8, 16 and 32 a HEF gives three outputs [input height / stride, input width / stride, channels],
in any order and told apart by their channels:

| channels | |
|---|---|
| 64 | of the left, upper, right and lower side: 16 logits for a distance of 0 to 15 strides from the cell's middle |
| 1 | score of a body, its sigmoid compiled in |
| 3 points | x and y of each point as half the distance, in strides, from the corner of the cell; logit of its score |

The expected distance is the one meant, after softmax; a point is `(2 * x + column) * stride`. So Ultralytics decodes
the head (`DFL`, `dist2bbox`, `kpts_decode`) inside its ONNX files, so that both give the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primespark.errors import IntegrityError
from primespark.inference.hailo_engine import HailoInferenceEngine
from primespark.inference.letterbox import Letterbox
from primespark.inference.predictions import Pose
from primespark.inference.yolo_pose import BODY_NUMBERS, POINT_NUMBERS, poses

_STRIDES = (8, 16, 32)
_SIDES, _STEPS = 4, 16
# The 256 steps of a sigmoid reach from 0 to 1; those of logits much further.
_BEYOND = 0.5
_Shape = tuple[int, ...]
_STEPS_AWAY = np.arange(_STEPS, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Heads:
    """The outputs of one stride, by their places in the model's order."""

    stride: int
    boxes: int
    scores: int
    points: int


class HailoPose:
    """Answers the poses in an image, the surest first, their points in pixels of that image.

    The letterbox, the suppression and the answer are those of `YoloPose`.

    Args:
        engine: From an image, uint8 [1, height, width, 3] RGB, to the nine heads.
        names: Of the points, in the model's order.
        minimum_score: Bodies below it are not answered.

    Raises:
        IntegrityError: Code `bad_model`: the model is not of that form.
    """

    def __init__(self, engine: HailoInferenceEngine, names: tuple[str, ...], minimum_score: float) -> None:
        takes, gives = [one.shape for one in engine.inputs], [one.shape for one in engine.outputs]
        heads = None if engine.nms else find_heads(takes, gives)
        if heads is None or count_points(heads, gives) != len(names):
            raise IntegrityError(
                f"not the heads of YOLOv8-pose with {len(names)} points: inputs {takes}, outputs {gives}"[:400],
                code="bad_model",
            )
        if any(_reaches_beyond_shares(engine.outputs[head.scores].span) for head in heads):
            raise IntegrityError(
                "its scores of bodies are logits, before the sigmoid",
                remedy="compile it with `change_output_activation(..., sigmoid)`, as the vendor does",
                code="bad_model",
            )
        self._engine = engine
        self._names = names
        self._minimum_score = minimum_score
        self._heads = heads
        self._height, self._width = takes[0][:2]

    def __call__(self, image: NDArray[np.uint8]) -> list[Pose]:
        """The surest first, at most 100; none where nobody is seen."""
        letterbox = Letterbox(image.shape[1], image.shape[0], self._width, self._height)
        outputs = self._engine.run({self._engine.input_names[0]: letterbox.apply(image)[np.newaxis]})
        return poses(decoded(outputs, self._heads, self._minimum_score), letterbox, self._names, self._minimum_score)


def _reaches_beyond_shares(span: tuple[float, float] | None) -> bool:
    return span is not None and (span[0] < -_BEYOND or span[1] > 1 + _BEYOND)


def find_heads(takes: Sequence[_Shape], gives: Sequence[_Shape]) -> tuple[Heads, ...] | None:
    """Which output is which head, from the shapes [height, width, channels]; None where the model has others."""
    if len(takes) != 1 or len(takes[0]) != 3 or takes[0][2] != 3 or len(gives) != 3 * len(_STRIDES):
        return None
    height, width = takes[0][:2]
    found: list[Heads] = []
    for stride in _STRIDES:
        places = [place for place, shape in enumerate(gives) if shape[:2] == (height // stride, width // stride)]
        by_channels = {gives[place][-1]: place for place in places if len(gives[place]) == 3}
        boxes, scores = by_channels.pop(_SIDES * _STEPS, None), by_channels.pop(1, None)
        if boxes is None or scores is None or len(by_channels) != 1 or height % stride or width % stride:
            return None
        found.append(Heads(stride, boxes, scores, next(iter(by_channels.values()))))
    return tuple(found) if count_points(found, gives) else None


def count_points(heads: Sequence[Heads], gives: Sequence[_Shape]) -> int:
    """Points of a body; 0 where the heads do not agree."""
    channels = {gives[head.points][-1] for head in heads}
    points, rest = divmod(channels.pop(), POINT_NUMBERS)
    return 0 if channels or rest else points


def decoded(outputs: Sequence[NDArray[Any]], heads: Sequence[Heads], minimum_score: float) -> NDArray[np.float32]:
    """The places whose body reaches the minimum, [5 + 3 points, places], as `yolo_pose.poses` takes them.

    Args:
        outputs: Float32 [1, height, width, channels], in the model's order.
        heads: Which is which.
        minimum_score: Of a body.
    """
    return np.concatenate([_decoded_stride(outputs, head, minimum_score) for head in heads], axis=1)


def _decoded_stride(outputs: Sequence[NDArray[Any]], head: Heads, minimum_score: float) -> NDArray[np.float32]:
    scores = outputs[head.scores][0, :, :, 0]
    rows, columns = np.nonzero(scores >= np.float32(minimum_score))
    cells = np.stack((columns, rows), axis=1).astype(np.float32)
    before, behind = np.split(_distances(outputs[head.boxes][0, rows, columns]), 2, axis=1)
    channels = outputs[head.points].shape[-1]
    points = outputs[head.points][0, rows, columns].reshape(rows.size, channels // POINT_NUMBERS, POINT_NUMBERS)
    numbers = np.empty((rows.size, BODY_NUMBERS + channels), dtype=np.float32)
    numbers[:, :2] = (cells + np.float32(0.5) + (behind - before) / 2) * head.stride
    numbers[:, 2:4] = (before + behind) * head.stride
    numbers[:, 4] = scores[rows, columns]
    of_points = numbers[:, BODY_NUMBERS:].reshape(points.shape)
    of_points[..., :2] = (2 * points[..., :2] + cells[:, np.newaxis]) * head.stride
    of_points[..., 2] = _sigmoid(points[..., 2])
    return numbers.T


def _distances(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each side from the middle, [places, 4] in strides, from [places, 64]."""
    by_side = logits.reshape(-1, _SIDES, _STEPS)
    weights = np.exp(by_side - by_side.max(axis=-1, keepdims=True))
    expected: NDArray[np.float32] = (weights @ _STEPS_AWAY) / weights.sum(axis=-1)
    return expected


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    # As 1 / (1 + exp(-x)), which overflows for large ones.
    half = np.float32(0.5)
    shares: NDArray[np.float32] = half * np.tanh(half * logits) + half
    return shares
