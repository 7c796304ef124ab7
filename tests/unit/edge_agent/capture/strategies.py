"""Boxes and frames as hypothesis makes them, on a grid of fractions that floats hold exactly."""

from __future__ import annotations

from hypothesis import strategies as st

from edge_agent.capture.geometry import Box
from edge_agent.capture.tracking import Detection

fractions = st.integers(0, 32).map(lambda number: number / 32)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """A box with an area."""
    x_min, x_max = sorted(draw(st.lists(fractions, min_size=2, max_size=2, unique=True)))
    y_min, y_max = sorted(draw(st.lists(fractions, min_size=2, max_size=2, unique=True)))
    return Box(x_min, y_min, x_max, y_max)


detections = st.builds(Detection, st.sampled_from(["cat", "person"]), fractions, boxes())
# Seconds since the frame before, and what the frame shows.
histories = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]), st.lists(detections, max_size=4)), max_size=25
)
