"""Lanes: threads of their own, turns in order, a bound on who waits, and nothing left behind by who gives up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primespark.cloud.lanes import Lane, Lanes, lane_of, share_out
from primespark.errors import UnavailableError

FEWEST = len(Lane)
NOTE: ContextVar[str] = ContextVar("note", default="")


class Gates:
    """Work that ends when it is let go."""

    def __init__(self) -> None:
        self.begun = 0
        self._open = threading.Event()

    def work(self) -> None:
        self.begun += 1
        assert self._open.wait(10)

    def let_go(self) -> None:
        self._open.set()


@pytest.fixture
def gates() -> Iterator[Gates]:
    gates = Gates()
    yield gates
    gates.let_go()


async def until_begun(gates: Gates, count: int) -> None:
    async with asyncio.timeout(5):
        while gates.begun < count:  # noqa: ASYNC110 (a thread, which sets no event)
            await asyncio.sleep(0.001)


@given(st.integers(FEWEST, 500))
def test_every_lane_has_threads_and_together_as_many_as_there_are_connections(connections: int) -> None:
    shares = share_out(connections)
    assert set(shares) == set(Lane)
    assert min(shares.values()) >= 1
    assert sum(shares.values()) == connections


@pytest.mark.parametrize(
    ("path", "lane"),
    [
        ("/sync/v1/push", Lane.DEVICES),
        ("/sync/v1/pull", Lane.DEVICES),
        ("/sync/v1/conflicts/7/resolve", Lane.PEOPLE),
        ("/api/v1/devices", Lane.PEOPLE),
        ("/api/v1/write", Lane.TELEMETRY),
        ("/v1/metrics", Lane.TELEMETRY),
        ("/nothing", Lane.PEOPLE),
        ("/readyz", Lane.PROBES),
        ("/health", Lane.PROBES),
    ],
)
def test_a_path_has_its_lane(path: str, lane: Lane) -> None:
    assert lane_of(path) is lane


@pytest.mark.parametrize("full", Lane)
async def test_a_lane_that_is_full_holds_up_no_other(full: Lane, gates: Gates) -> None:
    lanes = Lanes(FEWEST)
    held = [asyncio.create_task(lanes.run(gates.work, full)) for _ in range(3)]
    await until_begun(gates, 1)
    for lane in set(Lane) - {full}:
        assert await asyncio.wait_for(lanes.run(lambda: "done", lane), 5) == "done"
    gates.let_go()
    await asyncio.wait_for(asyncio.gather(*held), 5)


async def test_who_comes_when_too_many_wait_is_refused_and_told_when_to_come_again(gates: Gates) -> None:
    lanes = Lanes(FEWEST, {Lane.PUSHES: 2})
    held = [asyncio.create_task(lanes.run(gates.work, Lane.PUSHES)) for _ in range(3)]
    await until_begun(gates, 1)
    with pytest.raises(UnavailableError) as refused:
        await asyncio.wait_for(lanes.run(gates.work, Lane.PUSHES), 5)
    assert refused.value.code == "gate_overloaded"
    assert (refused.value.retry_after_s or 0) > 0
    with pytest.raises(UnavailableError):
        lanes.check(Lane.PUSHES)
    # Who gives up makes room.
    held.pop().cancel()
    await asyncio.sleep(0)  # one turn of the loop, in which it is cancelled
    lanes.check(Lane.PUSHES)
    gates.let_go()
    await asyncio.wait_for(asyncio.gather(*held), 5)
    assert gates.begun == 2


async def test_turns_come_in_order() -> None:
    lanes, order = Lanes(FEWEST), list[int]()
    await asyncio.gather(*(lanes.run(partial(order.append, number), Lane.PUSHES) for number in range(50)))
    assert order == list(range(50))


async def test_what_is_given_up_while_it_runs_keeps_its_thread_until_it_ends(gates: Gates) -> None:
    lanes = Lanes(FEWEST)
    given_up = asyncio.create_task(lanes.run(gates.work, Lane.PEOPLE))
    await until_begun(gates, 1)
    given_up.cancel()
    next_one = asyncio.create_task(lanes.run(lambda: gates.begun, Lane.PEOPLE))
    with pytest.raises(asyncio.CancelledError):
        await given_up
    assert not next_one.done()
    gates.let_go()
    assert await asyncio.wait_for(next_one, 5) == 1


async def test_a_failure_is_the_callers_and_gives_the_thread_back() -> None:
    lanes = Lanes(FEWEST)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(lanes.run(lambda: 1 / 0, Lane.PEOPLE), 5)


async def test_work_sees_the_context_of_its_request() -> None:
    NOTE.set("request 7")
    assert await Lanes(FEWEST).run(NOTE.get, Lane.PEOPLE) == "request 7"
