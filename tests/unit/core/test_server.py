"""What the server does with connections that never make a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from primespark.core.web.protocol import MAX_HEAD_BYTES, BoundedProtocol
from primespark.core.web.server import bind, configure

REQUEST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
TOLERANCE_S = 10


class Impatient(BoundedProtocol):
    head_timeout_s: ClassVar[float] = 0.05


class Echo:
    """Answers with the body, as soon as it may."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        body, is_whole = b"", False
        while not is_whole:
            message = await receive()
            body += message["body"]
            is_whole = not message["more_body"]
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def connected(
    app: Echo, protocol: type[BoundedProtocol] = BoundedProtocol
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config, loop = configure(app), asyncio.get_running_loop()
    config.load()
    assert config.http_protocol_class is BoundedProtocol
    state, listener = ServerState(), bind("127.0.0.1", 0)
    server = await loop.create_server(
        lambda: protocol(config=config, server_state=state, app_state={}), sock=listener
    )  # fmt: skip
    async with server, asyncio.timeout(TOLERANCE_S):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        yield reader, writer
        writer.close()


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;"


async def pour(writer: asyncio.StreamWriter, most: int) -> int:
    """Send until the other side closes, or `most` bytes; how many."""
    piece, sent = b"x" * 16_384, 0
    while sent < most:
        try:
            writer.write(piece)
            await writer.drain()
        except ConnectionError:
            return sent
        sent += len(piece)
    return sent


@pytest.mark.parametrize(
    "beginning", [b"GET / HTTP/1.1\r\nX: ", b"GET /", CHUNKED], ids=["header", "target", "chunk extension"]
)
async def test_what_never_ends_is_cut_off(beginning: bytes) -> None:
    async with connected(Echo()) as (_, writer):
        writer.write(beginning)
        # What the sockets between hold is sent without being read.
        assert await pour(writer, 30_000_000) < 10_000_000


async def test_a_head_just_over_the_bound_is_told_so() -> None:
    async with connected(Echo()) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD_BYTES)
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    ("beginning", "is_first"), [(b"", True), (b"\r\n", True), (REQUEST, True), (b"\r\n", False), (REQUEST, False)]
)
async def test_a_head_that_does_not_come_is_not_waited_for(beginning: bytes, is_first: bool) -> None:
    async with connected(Echo(), Impatient) as (reader, writer):
        if not is_first:
            writer.write(REQUEST + b"\r\none")
            assert (await reader.readuntil(b"one")).startswith(b"HTTP/1.1 200 ")
        writer.write(beginning)
        assert await reader.read() == b""


async def test_the_rest_of_a_refused_body_is_not_taken_for_ever() -> None:
    async def refuses(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})

    async with connected(refuses, Impatient) as (reader, writer):  # type: ignore[arg-type]
        writer.write(REQUEST + b"\r\n")
        await reader.readuntil(b"no")
        writer.write(b"o")
        assert await reader.read() == b""


async def test_a_slow_answer_and_a_slow_body_are_waited_for() -> None:
    app = Echo()
    app.may_answer.clear()
    loop = asyncio.get_running_loop()
    async with connected(app, Impatient) as (reader, writer):
        writer.write(REQUEST + b"\r\nt")
        loop.call_later(4 * Impatient.head_timeout_s, writer.write, b"wo")
        loop.call_later(8 * Impatient.head_timeout_s, app.may_answer.set)
        assert (await reader.readuntil(b"two")).startswith(b"HTTP/1.1 200 ")
