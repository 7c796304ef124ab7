"""Boxes and zones; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle, in pixels or in fractions."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float

    @classmethod
    def of(cls, box: Mapping[str, float]) -> Box:
        """The box of a prediction."""
        return cls(box["x_min"], box["y_min"], box["x_max"], box["y_max"])

    @property
    def area(self) -> float:
        """Width times height; 0 where one is negative."""
        return max(self.x_max - self.x_min, 0.0) * max(self.y_max - self.y_min, 0.0)

    @property
    def foot(self) -> Point:
        """The middle of the lower edge: where what stands on the ground stands."""
        return (self.x_min + self.x_max) / 2, self.y_max

    def scaled(self, width: float, height: float) -> Box:
        """The box with its coordinates multiplied."""
        return Box(self.x_min * width, self.y_min * height, self.x_max * width, self.y_max * height)


def iou(one: Box, other: Box) -> float:
    """Intersection over union, 0..1; 0 for boxes without area."""
    common = Box(
        max(one.x_min, other.x_min),
        max(one.y_min, other.y_min),
        min(one.x_max, other.x_max),
        min(one.y_max, other.y_max),
    ).area
    union = one.area + other.area - common
    return min(common / union, 1.0) if union > 0 else 0.0


def contains(polygon: Sequence[Point], point: Point) -> bool:
    """Whether `point` is inside `polygon` (corners in order, closed by itself; even-odd rule) or on its edge."""
    is_inside = False
    for index, (x1, y1) in enumerate(polygon):
        x0, y0 = polygon[index - 1]
        if _is_on_edge(point, (x0, y0), (x1, y1)):
            return True
        if (y0 > point[1]) != (y1 > point[1]) and point[0] < x0 + (point[1] - y0) * (x1 - x0) / (y1 - y0):
            is_inside = not is_inside
    return is_inside


def _is_on_edge(point: Point, start: Point, end: Point) -> bool:
    (x, y), (x0, y0), (x1, y1) = point, start, end
    if not (min(x0, x1) <= x <= max(x0, x1) and min(y0, y1) <= y <= max(y0, y1)):
        return False
    return (x1 - x0) * (y - y0) == (y1 - y0) * (x - x0)
