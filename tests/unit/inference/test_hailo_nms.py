"""Laws of the parsers: what is written in a layout is read back, in each layout, and damage is told."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from primespark.errors import UnavailableError
from primespark.inference.detection import Candidate
from primespark.inference.hailo_nms import NmsLayout, from_class_lists, parse, parse_by_class, parse_by_score

CLASSES = 5
MAX_BOXES = 6
SHARE = st.integers(0, 64).map(lambda value: value / 64)
GARBAGE = st.floats(width=32)


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    """Values that float32 holds exactly, at most MAX_BOXES a class."""
    found = []
    for column in range(CLASSES):
        boxes = draw(st.lists(st.tuples(SHARE, SHARE, SHARE, SHARE, SHARE), max_size=MAX_BOXES))
        found += [Candidate(score, column, tuple(box)) for *box, score in boxes]
    return sorted(found, reverse=True)


def lists(found: list[Candidate]) -> list[NDArray[np.float32]]:
    of_class = [[(*one.box, one.score) for one in found if one.column == column] for column in range(CLASSES)]
    # As the vendor's package: without boxes it is of another type.
    return [np.array(rows, np.float32) if rows else np.empty([0, 5]) for rows in of_class]  # type: ignore[misc]


def by_class(found: list[Candidate], behind: float) -> NDArray[np.float32]:
    flat = [value for rows in lists(found) for value in (len(rows), *rows.reshape(-1).tolist())]
    length = CLASSES * (1 + 5 * MAX_BOXES)
    return np.array(flat + [behind] * (length - len(flat)), np.float32)


def by_score(found: list[Candidate], behind: int) -> NDArray[np.uint8]:
    data = struct.pack("<H", len(found)) + b"".join(struct.pack("<5fH", *f.box, f.score, f.column) for f in found)
    return np.frombuffer(data + bytes([behind]) * 50, np.uint8)


@given(candidates(), GARBAGE)
def test_boxes_by_class_are_read_back_whatever_lies_behind(found: list[Candidate], behind: float) -> None:
    assert parse(by_class(found, behind)[np.newaxis], NmsLayout(CLASSES, MAX_BOXES, by_score=False)) == found


@given(candidates(), st.integers(0, 255))
def test_boxes_by_score_are_read_back_whatever_lies_behind(found: list[Candidate], behind: int) -> None:
    assert parse(by_score(found, behind)[np.newaxis], NmsLayout(CLASSES, 99, by_score=True)) == found


@given(candidates())
def test_lists_are_read_flat_and_wrapped(found: list[Candidate]) -> None:
    assert from_class_lists(lists(found)) == found
    assert from_class_lists([lists(found)]) == found


@given(candidates())
def test_a_single_class_is_no_wrapped_list(found: list[Candidate]) -> None:
    only = [one for one in found if one.column == 0]
    assert from_class_lists(lists(only)[:1]) == only
    assert from_class_lists([lists(only)[:1]]) == only


@given(candidates(), SHARE)
def test_the_minimum_is_a_filter(found: list[Candidate], minimum: float) -> None:
    kept = [one for one in found if one.score >= minimum]
    assert parse_by_class(by_class(found, 0), CLASSES, minimum) == kept
    assert parse_by_score(by_score(found, 0), minimum) == kept
    assert from_class_lists(lists(found), minimum) == kept


def boxes_or_damage(read: Callable[[], list[Candidate]]) -> int:
    """Number of boxes; 0 where it is told as damaged. Anything else fails the test."""
    try:
        return len(read())
    except UnavailableError as error:
        return 0 if error.code == "inference_failed" else 1 << 30


@given(st.lists(GARBAGE, max_size=40))
def test_any_floats_are_boxes_or_told_as_damaged(values: list[float]) -> None:
    assert boxes_or_damage(lambda: parse_by_class(np.array(values, np.float32), CLASSES)) * 5 <= len(values)


@given(st.binary(max_size=80))
def test_any_bytes_are_boxes_or_told_as_damaged(data: bytes) -> None:
    assert boxes_or_damage(lambda: parse_by_score(np.frombuffer(data, np.uint8))) * 22 <= len(data)


def test_a_count_beyond_the_buffer_is_told() -> None:
    with pytest.raises(UnavailableError, match="3 boxes of class 0 in a buffer of 11"):
        parse_by_class(np.array([3, *[0.5] * 10], np.float32), 1)
