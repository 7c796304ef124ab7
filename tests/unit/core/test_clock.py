"""Laws of the hybrid logical clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primespark.core.clock import HybridLogicalClock, Timestamp
from primespark.errors import InvalidInputError


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 5), st.integers(0, 0xFFFF)), max_size=40))
def test_stamps_only_grow_whatever_the_wall_clock_does(steps: list[tuple[int, bool, int, int]]) -> None:
    now = 0
    clock = HybridLogicalClock("a", lambda: now)
    last = (-1, 0)
    for now, observes, unix_ms, counter in steps:
        if observes:
            clock.observe(Timestamp(unix_ms, counter, "b"))
            last = max(last, (unix_ms, counter))
        stamp = clock.stamp()
        assert (stamp.unix_ms, stamp.counter) > last
        assert stamp.unix_ms >= now
        last = (stamp.unix_ms, stamp.counter)


def test_a_full_counter_carries_into_the_milliseconds() -> None:
    clock = HybridLogicalClock("a", lambda: 7, Timestamp(7, 0xFFFF, "b"))
    assert clock.stamp() == Timestamp(8, 0, "a")


@given(st.integers(0, 10**13 - 1), st.integers(0, 0xFFFF))
def test_text_is_reversible_and_ordered_as_time(unix_ms: int, counter: int) -> None:
    stamp = Timestamp(unix_ms, counter, "edge-1")
    assert Timestamp.parse(str(stamp)) == stamp
    assert (str(stamp) < str(Timestamp(5, 5, "edge-1"))) == ((unix_ms, counter) < (5, 5))


@pytest.mark.parametrize("text", ["", "1-2-3", "0000000000001-000g-a", "0000000000001-0001-", "0000000000001-0001-A"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        Timestamp.parse(text)
