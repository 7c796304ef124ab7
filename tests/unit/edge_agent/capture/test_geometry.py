"""Overlap and zones against counting pixels, which knows no formula."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.capture.geometry import Box, contains, iou
from tests.unit.edge_agent.capture.strategies import boxes, fractions


def cells(box: Box) -> set[tuple[int, int]]:
    """The cells of a 32 x 32 grid that a box covers."""
    columns = range(int(box.x_min * 32), int(box.x_max * 32))
    rows = range(int(box.y_min * 32), int(box.y_max * 32))
    return {(column, row) for column in columns for row in rows}


@given(boxes(), boxes())
def test_the_overlap_is_what_counting_cells_gives(one: Box, other: Box) -> None:
    counted = len(cells(one) & cells(other)) / len(cells(one) | cells(other))
    assert math.isclose(iou(one, other), counted, abs_tol=1e-12)
    assert iou(one, other) == iou(other, one)


def test_boxes_without_area_overlap_nothing() -> None:
    flat = Box(0.5, 0.5, 0.5, 0.5)
    assert iou(flat, flat) == 0
    assert iou(Box(0.6, 0, 0.4, 1), Box(0, 0, 1, 1)) == 0


@given(boxes(), fractions, fractions)
def test_a_rectangle_as_a_polygon_contains_what_lies_between_its_sides(box: Box, x: float, y: float) -> None:
    polygon = [(box.x_min, box.y_min), (box.x_max, box.y_min), (box.x_max, box.y_max), (box.x_min, box.y_max)]
    is_between = box.x_min <= x <= box.x_max and box.y_min <= y <= box.y_max
    assert contains(polygon, (x, y)) is is_between
    assert contains(polygon[::-1], (x, y)) is is_between


@given(st.lists(st.tuples(fractions, fractions), min_size=3, max_size=8), fractions, fractions, st.integers(0, 7))
def test_where_a_polygon_begins_does_not_matter(
    polygon: list[tuple[float, float]], x: float, y: float, start: int
) -> None:
    turned = polygon[start % len(polygon) :] + polygon[: start % len(polygon)]
    assert contains(turned, (x, y)) is contains(polygon, (x, y))


@pytest.mark.parametrize(("point", "is_inside"), [((0.2, 0.8), True), ((0.5, 0.3), False), ((0.5, 0.9), True)])
def test_a_zone_may_be_concave(point: tuple[float, float], is_inside: bool) -> None:
    horseshoe = [(0.1, 0.1), (0.3, 0.1), (0.3, 0.7), (0.7, 0.7), (0.7, 0.1), (0.9, 0.1), (0.9, 1.0), (0.1, 1.0)]
    assert contains(horseshoe, point) is is_inside
