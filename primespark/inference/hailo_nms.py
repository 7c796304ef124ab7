"""Boxes from the outputs of a Hailo model that ends in non-maximum suppression.

Two layouts exist. By class (float32): for each class its count, then as many rows y_min, x_min, y_max, x_max, score,
the next class directly behind. By score (bytes, little endian): a uint16 count, then rows of 22 bytes without padding:
the same five as float32 and the class as uint16. Coordinates are shares of the model's input, which may be letterboxed.
HailoRT does not clear what lies behind the last row, so nothing there is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primespark.errors import UnavailableError
from primespark.inference.detection import Candidate

_ROW = 5
_BY_SCORE_ROW = np.dtype([("box", "<f4", (4,)), ("score", "<f4"), ("column", "<u2")])
_COUNT = np.dtype("<u2")


@dataclass(frozen=True, slots=True)
class NmsLayout:
    """How a model's boxes lie in its output.

    Attributes:
        classes: Number of classes.
        max_boxes: Most boxes, of a class or, by score, in all.
        by_score: Whether by score, else by class.
    """

    classes: int
    max_boxes: int
    by_score: bool


def parse(buffer: NDArray[Any], layout: NmsLayout, minimum_score: float = 0.0) -> list[Candidate]:
    """The boxes of an output, of any of the two layouts, that reach the minimum, best first.

    Raises:
        UnavailableError: Code `inference_failed`: the buffer is damaged.
    """
    if layout.by_score:
        return parse_by_score(buffer, minimum_score)
    return parse_by_class(buffer, layout.classes, minimum_score)


def parse_by_class(buffer: NDArray[np.float32], classes: int, minimum_score: float = 0.0) -> list[Candidate]:
    """The boxes of a by-class buffer that reach the minimum, best first.

    Args:
        buffer: Float32, of any shape, at least as long as its rows need.
        classes: Number of classes of the model.
        minimum_score: Boxes below it are left out.

    Raises:
        UnavailableError: Code `inference_failed`: the counts do not fit the buffer.
    """
    flat = buffer.reshape(-1)
    found: list[Candidate] = []
    at = 0
    for column in range(classes):
        count = _count(flat, at)
        rows = flat[at + 1 : at + 1 + _ROW * count]
        if rows.size < _ROW * count:
            raise _damaged(f"{count} boxes of class {column} in a buffer of {flat.size}")
        found.extend(_of_rows(rows.reshape(count, _ROW), column, minimum_score))
        at += 1 + _ROW * count
    return sorted(found, reverse=True)


def parse_by_score(buffer: NDArray[np.uint8], minimum_score: float = 0.0) -> list[Candidate]:
    """The boxes of a by-score buffer that reach the minimum, best first.

    Raises:
        UnavailableError: Code `inference_failed`: the count does not fit the buffer.
    """
    data = np.ascontiguousarray(buffer).reshape(-1)
    if data.size < _COUNT.itemsize:
        raise _damaged(f"a buffer of {data.size} bytes")
    count = int(data[: _COUNT.itemsize].view(_COUNT)[0])
    end = _COUNT.itemsize + count * _BY_SCORE_ROW.itemsize
    if data.size < end:
        raise _damaged(f"{count} boxes in a buffer of {data.size} bytes")
    rows = data[_COUNT.itemsize : end].view(_BY_SCORE_ROW)
    rows = rows[rows["score"] >= np.float32(minimum_score)]
    columns, boxes = rows["column"].tolist(), rows["box"].tolist()
    pairs = zip(rows["score"].tolist(), columns, boxes, strict=True)
    return sorted((Candidate(score, column, tuple(box)) for score, column, box in pairs), reverse=True)


def from_class_lists(lists: Sequence[Any], minimum_score: float = 0.0) -> list[Candidate]:
    """The boxes of the vendor's `get_buffer()`, best first: one array [n, 5] a class, in 4.18 inside one more list.

    A model of a single class is told from a wrapped list by the type of the element, never by the length.
    """
    if len(lists) == 1 and isinstance(lists[0], list):
        lists = lists[0]
    found = (_of_rows(np.asarray(rows, np.float32), column, minimum_score) for column, rows in enumerate(lists))
    return sorted((one for of_class in found for one in of_class), reverse=True)


def _of_rows(rows: NDArray[np.float32], column: int, minimum_score: float) -> list[Candidate]:
    kept = rows[rows[:, 4] >= np.float32(minimum_score)].tolist()
    return [Candidate(row[4], column, tuple(row[:4])) for row in kept]


def _count(flat: NDArray[np.float32], at: int) -> int:
    if at >= flat.size:
        raise _damaged(f"a buffer of {flat.size} ends before its last class")
    value = float(flat[at])
    if not 0 <= value <= flat.size or value != int(value):
        raise _damaged(f"a count of {value}")
    return int(value)


def _damaged(what: str) -> UnavailableError:
    return UnavailableError(
        f"the accelerator's boxes cannot be read: {what}", remedy="run it again", code="inference_failed"
    )
