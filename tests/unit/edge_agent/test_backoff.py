"""Pauses: bounded, doubling, jittered, and cut short when there is reason."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.backoff import Backoff

FLEET = 200


@given(base=st.floats(0.01, 10), longest=st.floats(0.01, 1000), failures=st.integers(0, 80))
def test_no_pause_is_longer_than_its_bound(base: float, longest: float, failures: int) -> None:
    backoff = Backoff(base, longest)
    for count in range(failures):
        assert 0 <= backoff.next_pause_s() <= min(longest, base * 2.0**count)


def test_pauses_spread_over_their_whole_range() -> None:
    pauses = []
    for _ in range(2000):
        backoff = Backoff(1, 100)
        backoff.next_pause_s()
        pauses.append(backoff.next_pause_s())
    assert min(pauses) < 0.1
    assert max(pauses) > 1.9
    assert abs(sum(pauses) / len(pauses) - 1.0) < 0.1


def test_a_success_begins_again_and_a_wish_of_the_other_side_is_honoured_up_to_the_bound() -> None:
    backoff = Backoff(1, 60)
    for _ in range(10):
        backoff.next_pause_s()
    backoff.succeeded()
    assert backoff.next_pause_s() <= 1
    assert backoff.next_pause_s(at_least_s=30) >= 30
    assert 60 <= backoff.next_pause_s(at_least_s=10_000) <= 120


@given(told=st.floats(0.1, 1000), base=st.floats(0.01, 10), longest=st.floats(0.1, 300), failures=st.integers(0, 12))
def test_a_fleet_that_is_told_the_same_does_not_come_back_together(
    told: float, base: float, longest: float, failures: int
) -> None:
    pauses = []
    for _ in range(FLEET):
        backoff = Backoff(base, longest)
        for _ in range(failures):
            backoff.next_pause_s()
        pauses.append(backoff.next_pause_s(at_least_s=told))
    least = min(told, longest)
    assert min(pauses) >= least
    assert max(pauses) <= max(longest, 2 * least)
    # 20 are to be expected in each tenth of the time they were told; more than 50 would be by chance in one of 10^8.
    tenths = Counter(int((pause - least) / (least / 10)) for pause in pauses)
    assert max(tenths.values()) <= FLEET / 4


async def test_wake_ends_a_pause() -> None:
    backoff = Backoff(1000, 1000)
    pause = asyncio.create_task(backoff.pause(at_least_s=1000))
    await asyncio.sleep(0)  # one turn of the loop, in which the pause begins
    backoff.wake()
    await asyncio.wait_for(pause, 5)
