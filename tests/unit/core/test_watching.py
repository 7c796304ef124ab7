"""Streams of changes: what is told when, and what ends them."""

from __future__ import annotations

import asyncio
import json
from collections import deque

from primespark.core.tickets import Tickets
from primespark.core.web.watching import HEARTBEAT, Seen, Watchers, as_server_sent
from primespark.errors import UnavailableError


class Counter:
    """Shows a number whenever it has changed, each digit of it as a record, two at a time."""

    def __init__(self) -> None:
        self.waiting: deque[int] = deque()
        self.looks = 0
        self.is_broken = False

    async def look(self) -> Seen:
        self.looks += 1
        if self.is_broken:
            raise UnavailableError("no store", remedy="wait")
        records = [{"n": self.waiting.popleft()} for _ in range(min(2, len(self.waiting)))]
        return Seen(records, has_more=bool(self.waiting))


def record(n: int) -> bytes:
    return as_server_sent("record", {"n": n})


async def test_what_happens_between_a_look_and_the_wait_is_told() -> None:
    tickets, counter = Tickets(), Counter()
    counter.waiting.extend(range(5))
    messages = Watchers(tickets, heartbeat_s=60, interval_s=0).messages(counter)
    assert [await anext(messages) for _ in range(6)] == [*map(record, range(5)), as_server_sent("ready", {})]
    # The stream has given `ready` and not begun to wait.
    counter.waiting.append(7)
    tickets.wake_all()
    async with asyncio.timeout(5):
        assert await anext(messages) == record(7)
    tickets.close()
    async with asyncio.timeout(5):
        assert [message async for message in messages] == []


async def test_a_heartbeat_comes_though_something_else_happens_all_the_time() -> None:
    tickets, counter = Tickets(), Counter()
    messages = Watchers(tickets, heartbeat_s=0.05, interval_s=0.001).messages(counter)
    assert await anext(messages) == as_server_sent("ready", {})

    async def stir() -> None:
        while True:
            tickets.wake_all()
            await asyncio.sleep(0.001)

    stirring = asyncio.create_task(stir())
    async with asyncio.timeout(5):
        assert [await anext(messages) for _ in range(2)] == [HEARTBEAT, HEARTBEAT]
    stirring.cancel()
    assert counter.looks > 2
    await messages.aclose()  # type: ignore[attr-defined]


async def test_a_view_that_fails_ends_the_stream() -> None:
    counter = Counter()
    counter.is_broken = True
    assert [message async for message in Watchers(Tickets()).messages(counter)] == []


def test_an_event_is_not_ended_by_what_it_tells() -> None:
    message = as_server_sent("record", {"text": "a\n\ndata: b\r"})
    assert message.count(b"\n") == 3
    assert json.loads(message.decode().split("data: ", 1)[1]) == {"text": "a\n\ndata: b\r"}
