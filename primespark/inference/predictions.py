"""What models answer, one shape per type; coordinates are those of the input as it was given, scores are 0..1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict


class Box(TypedDict):
    """A rectangle in pixels of the given image."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


class Detection(TypedDict):
    """An object and where it is."""

    label: str
    class_id: int
    score: float
    box: Box


class Classification(TypedDict):
    """What the input shows; of a table, what a row is."""

    label: str
    class_id: int
    score: float


class Value(TypedDict):
    """The number a model of a table gives for a row."""

    value: float


class Keypoint(TypedDict):
    """A point of a body, in pixels of the given image."""

    name: str
    x: float
    y: float
    score: float


class Pose(TypedDict):
    """A body; its score is the network's, and the mean of its points' where the network gives none."""

    keypoints: list[Keypoint]
    score: float


class Mask(TypedDict):
    """A region as COCO's run lengths: of pixels column by column, alternately outside and inside, outside first."""

    width: int
    height: int
    counts: list[int]


class SpeechSegment(TypedDict):
    """Seconds from the start of the recording; the score is the mean probability of speech."""

    start_s: float
    end_s: float
    score: float


class Completion(TypedDict):
    """What a language model wrote, and what was counted."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str


# Any of these, where the type is known only as the model's.
Prediction = Mapping[str, Any]
