"""The link: bytes pass unchanged until it is cut; a lost reply is lost after its request arrived."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from primespark.embedded.link import Link

BIG = 10_000_000


class Echo:
    """A server that answers each line with the same in capitals, and `big` with many bytes before it closes."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while line := await reader.readline():
                self.received.append(line)
                if line == b"big\n":
                    writer.write(b"x" * BIG)
                    break
                writer.write(line.upper())
                await writer.drain()
            writer.close()
            await writer.wait_closed()
        self.ended.set()


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def link(echo: Echo) -> AsyncIterator[Link]:
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with server, Link(server.sockets[0].getsockname()[1]) as link:
        yield link


async def call(link: Link) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", link.port)


async def ask(link: Link, line: bytes) -> bytes:
    """The answer over a connection of its own; empty if it broke off."""
    try:
        reader, writer = await call(link)
        writer.write(line)
        answer = await asyncio.wait_for(reader.readline(), 5)
    except OSError:
        return b""
    writer.close()
    return answer


async def test_bytes_pass_in_both_directions_and_are_counted(link: Link) -> None:
    assert await ask(link, b"hello\n") == b"HELLO\n"
    assert (link.counts.connections, link.counts.bytes_up, link.counts.bytes_down) == (1, 6, 6)


async def test_one_connection_carries_many_exchanges(link: Link) -> None:
    reader, writer = await call(link)
    for number in range(50):
        writer.write(b"line %d\n" % number)
        assert await reader.readline() == b"LINE %d\n" % number
    writer.close()
    assert link.counts.connections == 1


async def test_a_large_reply_before_the_end_arrives_whole_at_a_slow_reader(link: Link) -> None:
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the kernel takes it all at once
    narrow.connect(("127.0.0.1", link.port))
    reader, writer = await asyncio.open_connection(sock=narrow, limit=4096)
    writer.write(b"big\n")
    received = 0
    while chunk := await asyncio.wait_for(reader.read(4_000), 5):
        received += len(chunk)
        await asyncio.sleep(0)  # so slow is the reader
    writer.close()
    assert received == BIG


async def test_a_sender_that_says_it_is_done_still_gets_its_answer(link: Link) -> None:
    reader, writer = await call(link)
    writer.write(b"last\n")
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 5) == b"LAST\n"


async def test_a_cut_breaks_off_what_is_open_and_refuses_what_is_new(link: Link, echo: Echo) -> None:
    reader, writer = await call(link)
    writer.write(b"before\n")
    assert await reader.readline() == b"BEFORE\n"
    link.cut()
    with suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    assert await ask(link, b"during\n") == b""
    assert link.counts.refused == 1
    assert echo.received == [b"before\n"]


@pytest.mark.parametrize("turns", range(6))
async def test_a_cut_while_the_target_is_called_lets_nothing_through(link: Link, echo: Echo, turns: int) -> None:
    reader, writer = await call(link)
    for _ in range(turns):
        await asyncio.sleep(0)  # so far is the call when it is cut
    link.cut()
    writer.write(b"sneaked\n")
    with suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    assert echo.received == []


async def test_a_healed_link_lets_new_connections_through(link: Link) -> None:
    link.cut()
    assert await ask(link, b"during\n") == b""
    link.heal()
    assert await ask(link, b"after\n") == b"AFTER\n"


async def test_a_lost_reply_is_lost_after_its_request_arrived_and_only_once(link: Link, echo: Echo) -> None:
    link.lose_next_reply(b"push")
    assert await ask(link, b"pull 1\n") == b"PULL 1\n"
    assert await ask(link, b"push 2\n") == b""
    assert echo.received == [b"pull 1\n", b"push 2\n"]
    assert link.counts.replies_lost == 1
    assert await ask(link, b"push 3\n") == b"PUSH 3\n"
    assert link.counts.replies_lost == 1


async def test_a_caller_that_vanishes_is_gone_for_the_target_too(link: Link, echo: Echo) -> None:
    reader, writer = await call(link)
    writer.write(b"hello\n")
    await reader.readline()
    # Close with a reset, as a machine that lost its power answers later.
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    await asyncio.wait_for(echo.ended.wait(), 5)


async def test_a_target_that_is_not_there_looks_like_a_broken_connection() -> None:
    server = await asyncio.start_server(Echo().serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    async with Link(port) as link:
        assert await ask(link, b"hello\n") == b""


async def test_a_stopped_link_leaves_no_task_behind(echo: Echo) -> None:
    before = asyncio.all_tasks()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with server, Link(server.sockets[0].getsockname()[1]) as link:
        reader, writer = await call(link)
        writer.write(b"open\n")
        await reader.readline()
    async with asyncio.timeout(5):
        while asyncio.all_tasks() - before:
            await asyncio.wait(asyncio.all_tasks() - before)
    with pytest.raises(OSError):
        await call(link)
