"""A cloud that answers 503 for hours, in virtual time: how often devices ask, how they come back, and what is kept.

How often they may is computed here, from what `docs/sync.md` promises and not from the device's code: a pause is drawn
evenly from 0 to 1, 2, 4 ... 300 s; with `Retry-After` that is waited for first, and the random part is not smaller.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primespark.core.settings import SyncSettings
from tests.helpers import rounds
from tests.integration.exchange.stormy import Member, StormyGate
from tests.integration.exchange.virtual_time import VirtualLoop

FLEET, FLEET_STORM_S = rounds(16, 200), 1200
STORM_S, EVERY_S, EACH = 4 * 3600, 600, 360
BACKLOG, PER_SECOND = STORM_S // EVERY_S * EACH, 50
LONGEST_S, BATCH_WAIT_S = 300, 1.0
# Of the law, to know its mean and its spread.
LIVES = 4000
TOLD = pytest.mark.parametrize("retry_after_s", [None, 60], ids=["503", "503 and Retry-After"])
SETTINGS = SyncSettings(batch_records=500, batch_wait_s=BATCH_WAIT_S, backlog_records_per_s=PER_SECOND)
# By chance outside of what is allowed here: one run in a billion, were the numbers not always drawn alike.
SIGMAS = 6


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> VirtualLoop:
    random.seed(503)
    loop = VirtualLoop()
    monkeypatch.setattr("edge_agent.outgoing.monotonic", loop.time)
    return loop


@contextlib.asynccontextmanager
async def devices(folder: Path, count: int) -> AsyncIterator[list[Member]]:
    members = [Member(folder / f"edge-{number}", f"edge-{number}", SETTINGS) for number in range(count)]
    try:
        yield members
    finally:
        for member in members:
            await member.close()


def attempts_by_law(
    retry_after_s: int | None, until_s: float, first_s: float | None = None, between_s: float = 0.0
) -> np.ndarray[Any, Any]:
    """When each of many loops asks that was told 503 at 0, or asked first at `first_s`; after the end, inf."""
    draws = 3 * int(until_s / LONGEST_S) + 40
    bounds = np.minimum(2.0 ** np.arange(draws), LONGEST_S)
    least = float(retry_after_s or 0)
    spread = np.maximum(np.minimum(bounds, LONGEST_S - least), least)
    pauses = least + np.random.default_rng(1).random((LIVES, draws)) * spread + between_s
    if first_s is not None:
        pauses = np.hstack([np.full((LIVES, 1), first_s), pauses])
    times = np.cumsum(pauses, axis=1)
    assert times[:, -1].min() > until_s
    return np.where(times <= until_s, times, np.inf)


def check_rate(at_s: list[float], loops: int, law: np.ndarray[Any, Any]) -> None:
    """In all as many requests as so many loops make by the law, and in no minute more; but by chance."""
    counts = np.isfinite(law).sum(axis=1)
    assert abs(len(at_s) - loops * counts.mean()) <= SIGMAS * counts.std() * math.sqrt(loops)
    minutes = Counter(int(at // 60) for at in at_s)
    for minute, requests in minutes.items():
        of_each = ((law >= 60 * minute) & (law < 60 * (minute + 1))).sum(axis=1)
        assert requests <= loops * of_each.mean() + SIGMAS * (of_each.std() * math.sqrt(loops) + 0.5), minute


def refused_s(gate: StormyGate, direction: str, began_s: float) -> list[float]:
    return [one.at_s - began_s for one in gate.asked if one.is_refused and one.direction == direction]


async def check_nothing_counted(gate: StormyGate, members: list[Member]) -> None:
    """503 says nothing about a batch: it is sent as it is, undivided, and no record of it is suspected."""
    for member in members:
        assert len(set(gate.bodies[member.device_id])) == 1
        tables = ("SELECT attempts FROM batch", "SELECT * FROM given_up", "SELECT * FROM dead_letter")
        assert [await member.rows(table) for table in tables] == [[(0,)], [], []]


@TOLD
def test_a_device_asks_seldom_in_a_night_of_503_and_then_sends_first_what_happens_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: VirtualLoop, retry_after_s: int | None
) -> None:
    gate = StormyGate(retry_after_s)
    monkeypatch.setattr("edge_agent.gate_client.limited_transport", lambda _: gate)

    async def play() -> None:
        async with devices(tmp_path, 1) as [device]:
            await asyncio.sleep(90)
            gate.begin_storm()
            began_s = loop.time()
            for first in range(0, BACKLOG, EACH):
                # What is urgent is tried at once, and then no more often than anything else.
                await device.enqueue(first, stream="alarm")
                await device.enqueue(*range(first, first + EACH))
                await asyncio.sleep(EVERY_S)
            check_rate(refused_s(gate, "pull", began_s), 1, attempts_by_law(retry_after_s, STORM_S))
            check_rate(refused_s(gate, "push", began_s), 1, attempts_by_law(retry_after_s, STORM_S, first_s=0))
            await check_nothing_counted(gate, [device])
            gate.end_storm()
            readings = await read_until_drained(gate, device)
        numbers = sorted(number for _, stream, number in gate.taken_s if stream == "telemetry")
        assert numbers == list(range(BACKLOG + readings))
        assert sorted(number for _, stream, number in gate.taken_s if stream == "alarm") == list(
            range(0, BACKLOG, EACH)
        )
        assert gate.oracle.lost == []

    with contextlib.closing(loop):
        loop.run_until_complete(play())


async def read_until_drained(gate: StormyGate, device: Member) -> int:
    """Read every ten seconds until a minute after the backlog is at the cloud; how often.

    Once the device is back, each reading is at the cloud as soon as ever, whatever waits.
    """
    loop, read_s, drained_s = asyncio.get_running_loop(), list[float](), math.inf
    while loop.time() < drained_s + 60:
        await device.enqueue(BACKLOG + len(read_s))
        read_s.append(loop.time())
        await asyncio.sleep(10)
        drained_s = gate.taken_s.get((device.device_id, "telemetry", BACKLOG - 1), math.inf)
    returned_s = min(at_s for at_s in gate.taken_s.values() if at_s >= read_s[0])
    # The bucket is full when it begins.
    assert BACKLOG / PER_SECOND * 0.9 <= drained_s - returned_s <= BACKLOG / PER_SECOND * 1.1
    for number, at_s in enumerate(read_s):
        waited_s = gate.taken_s[device.device_id, "telemetry", BACKLOG + number] - at_s
        assert at_s <= returned_s or waited_s <= BATCH_WAIT_S + 0.1
    return len(read_s)


def check_return(asked: list[tuple[str, float]], retry_after_s: int | None) -> None:
    """All are back within the longest pause, and in no second more than by chance of those who ask independently."""
    first_s: dict[str, float] = {}
    for device, at_s in asked:
        first_s.setdefault(device, at_s)
    assert len(first_s) == FLEET
    assert max(first_s.values()) <= LONGEST_S + BATCH_WAIT_S
    # In a storm that lasts, a loop asks once in the mean of its pauses, and a device has two.
    rate = 2 * FLEET / ((LONGEST_S + (retry_after_s or 0)) / 2)
    most = next(n for n in itertools.count() if LONGEST_S * tail_of_poisson(rate, n) < 1e-9)
    assert max(Counter(int(at_s) for at_s in first_s.values()).values()) < most
    # Whoever is answered asks in the other direction too, then for what changes, and sends what waited.
    of_each = Counter((device, int(at_s)) for device, at_s in asked)
    assert max(of_each.values()) <= 4


def tail_of_poisson(rate: float, least: int) -> float:
    """How probable `least` or more are."""
    return 1.0 - sum(math.exp(-rate) * rate**n / math.factorial(n) for n in range(least))


@pytest.mark.prove
@TOLD
def test_a_fleet_spreads_in_a_storm_of_503_and_does_not_come_back_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: VirtualLoop, retry_after_s: int | None
) -> None:
    gate = StormyGate(retry_after_s)
    monkeypatch.setattr("edge_agent.gate_client.limited_transport", lambda _: gate)

    async def play() -> None:
        async with devices(tmp_path, FLEET) as fleet:
            await asyncio.sleep(45)
            gate.begin_storm()
            began_s = loop.time()
            await asyncio.gather(*(device.enqueue(1, 2, 3) for device in fleet))
            await asyncio.sleep(FLEET_STORM_S)
            pulls = attempts_by_law(retry_after_s, FLEET_STORM_S)
            check_rate(refused_s(gate, "pull", began_s), FLEET, pulls)
            pushes = attempts_by_law(retry_after_s, FLEET_STORM_S, BATCH_WAIT_S, BATCH_WAIT_S)
            check_rate(refused_s(gate, "push", began_s), FLEET, pushes)
            await check_nothing_counted(gate, fleet)
            gate.end_storm()
            ended_s = loop.time()
            await asyncio.sleep(2 * LONGEST_S + 2)
        check_return([(one.device, one.at_s - ended_s) for one in gate.asked if one.at_s >= ended_s], retry_after_s)
        assert sorted(gate.taken_s) == sorted((d.device_id, "telemetry", n) for d in fleet for n in (1, 2, 3))
        assert gate.oracle.lost == []

    with contextlib.closing(loop):
        loop.run_until_complete(play())
