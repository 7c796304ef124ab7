"""A slow client loses the oldest and is told how many; a silent stream has a heartbeat; all ends with the device."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest

from edge_agent.capture.broadcast import MAX_LISTENERS, MAX_WAITING, Broadcast
from primespark.errors import OverloadedError


async def take(messages: AsyncIterator[bytes], count: int) -> list[bytes]:
    return [await anext(messages) for _ in range(count)]


def number_of(message: bytes) -> int:
    head, data, *rest = message.decode().split("\n")
    assert head.startswith("event: ")
    assert rest == ["", ""]
    number: int = json.loads(data.removeprefix("data: "))["n"]
    return number


async def test_a_listener_gets_everything_from_when_it_listens_in_order() -> None:
    broadcast = Broadcast()
    broadcast.tell("result", {"n": 0})
    with broadcast.listen() as listener:
        for n in range(1, MAX_WAITING + 1):
            broadcast.tell("result", {"n": n, "text": "a\nb"})
        broadcast.close()
        found = [message async for message in listener.messages()]
    assert found[0].startswith(b":")
    assert [number_of(message) for message in found[1:]] == list(range(1, MAX_WAITING + 1))


async def test_a_slow_client_loses_the_oldest_and_is_told_how_many() -> None:
    broadcast = Broadcast()
    with broadcast.listen() as slow, broadcast.listen() as fast:
        quick = fast.messages()
        await take(quick, 1)
        for n in range(MAX_WAITING + 7):
            broadcast.tell("event", {"n": n})
            assert number_of((await take(quick, 1))[0]) == n
        found = await take(slow.messages(), MAX_WAITING + 2)
    assert found[1] == b'event: lost\ndata: {"count": 7}\n\n'
    assert [number_of(message) for message in found[2:]] == list(range(7, MAX_WAITING + 7))


async def test_a_silent_stream_has_a_heartbeat() -> None:
    with Broadcast(heartbeat_s=0.001).listen() as listener:
        assert all(message.startswith(b":") for message in await take(listener.messages(), 3))


async def test_listeners_are_bounded_and_leave_nothing_behind() -> None:
    broadcast = Broadcast()
    with ExitStack() as stack:
        for _ in range(MAX_LISTENERS):
            stack.enter_context(broadcast.listen())
        with pytest.raises(OverloadedError), broadcast.listen():
            pass
    with broadcast.listen():
        pass


async def test_who_comes_when_the_device_stops_is_let_go() -> None:
    broadcast = Broadcast()
    broadcast.close()
    with broadcast.listen() as listener:
        assert [message async for message in listener.messages()] == [b": heartbeat\n\n"]
