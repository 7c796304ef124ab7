"""The pace of the last minute, on a virtual clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.pace import WINDOW_S, Pace


@given(steps=st.lists(st.tuples(st.floats(0, 40), st.integers(1, 1000)), max_size=50))
def test_it_is_what_came_in_the_last_minute(steps: list[tuple[float, int]]) -> None:
    now, came = 100.0, []
    pace = Pace(lambda: now)
    for passed_s, units in steps:
        now += passed_s
        pace.add(units)
        came.append((now, units))
    passed_s = min(max(now - 100, 1.0), WINDOW_S)
    # What came within a second is counted as of its beginning.
    least = sum(units for at, units in came if at > now - WINDOW_S + 1) / passed_s
    most = sum(units for at, units in came if at > now - WINDOW_S) / passed_s
    assert least - 1e-9 <= pace.per_s() <= most + 1e-9


def test_who_stands_still_has_none() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    pace.add(600)
    now = 30.0
    assert pace.per_s() == pytest.approx(20)
    now = 61.0
    assert pace.per_s() == 0
