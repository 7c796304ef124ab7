"""The circuit breaker on a clock of the test."""

from __future__ import annotations

from itertools import pairwise

from edge_agent.cache.breaker import FAILURES_TO_OPEN, CircuitBreaker


class Clock:
    """Seconds that pass when the test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def broken(clock: Clock) -> CircuitBreaker:
    breaker = CircuitBreaker(clock)
    assert [breaker.failed() for _ in range(FAILURES_TO_OPEN)] == [False] * (FAILURES_TO_OPEN - 1) + [True]
    return breaker


def test_failures_with_successes_between_them_open_nothing() -> None:
    breaker = CircuitBreaker(Clock())
    for _ in range(10):
        for _ in range(FAILURES_TO_OPEN - 1):
            assert breaker.admits()
            assert not breaker.failed()
        breaker.succeeded()
    assert not breaker.is_open


def test_open_it_admits_one_attempt_after_each_pause_and_pauses_grow_to_a_minute() -> None:
    clock = Clock()
    breaker, pauses = broken(clock), []
    for _ in range(12):
        started = clock.now
        while not breaker.admits():
            clock.now += 0.125
        pauses.append(clock.now - started)
        assert not breaker.admits()
        breaker.failed()
    assert 0.5 <= pauses[0] <= 1.125
    assert all(later > earlier * 0.9 for earlier, later in pairwise(pauses[:6]))
    assert all(30 <= pause <= 60.125 for pause in pauses[-4:])


def test_a_success_closes_it_and_forgets_the_pauses() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += 100
    assert breaker.admits()
    breaker.succeeded()
    assert [breaker.admits() for _ in range(3)] == [True] * 3
    assert not breaker.is_open


def test_a_late_failure_of_before_prolongs_nothing() -> None:
    clock = Clock()
    breaker = broken(clock)
    for _ in range(10):
        assert not breaker.failed()
    clock.now += 1
    assert breaker.admits()
