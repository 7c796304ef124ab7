"""What the server does with connections that never make a request."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from primespark.core.web.protocol import MAX_HEAD_BYTES, BoundedProtocol
from primespark.core.web.server import bind, configure

REQUEST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
TOLERANCE_S = 10


class Impatient(BoundedProtocol):
    head_timeout_s: ClassVar[float] = 0.05


class Unread(BoundedProtocol):
    write_timeout_s: ClassVar[float] = 0.5


class Crowded(BoundedProtocol):
    least_idle_s: ClassVar[float] = 0.0
    most_connections: ClassVar[int] = 3


class Patient(Crowded):
    least_idle_s: ClassVar[float] = 3600.0


class Echo:
    """Answers with the body, as soon as it may."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{event}"
                await send({"type": f"lifespan.{event}.complete"})
            return
        body, is_whole = b"", False
        while not is_whole:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            is_whole = not message["more_body"]
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def connected(
    app: ASGIApp, protocol: type[BoundedProtocol] = BoundedProtocol
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config, loop = configure(app), asyncio.get_running_loop()
    config.load()
    assert issubclass(config.http_protocol_class, BoundedProtocol)
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

    async with connected(refuses, Impatient) as (reader, writer):
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


async def test_idle_connections_make_room_for_new_ones() -> None:
    async with connected(Echo(), Crowded) as (first, writer):
        address = writer.get_extra_info("peername")
        writer.write(REQUEST + b"\r\none")
        await first.readuntil(b"one")
        others = [await asyncio.open_connection(*address) for _ in range(2)]
        assert not first.at_eof()
        for count in range(10):
            reader, newest = await asyncio.open_connection(*address)
            newest.write(REQUEST + b"\r\ntwo")
            assert (await reader.readuntil(b"two")).startswith(b"HTTP/1.1 200 "), count
            others.append((reader, newest))
        assert await first.read() == await others[0][0].read() == b""
        for _, other in others:
            other.close()


async def test_who_is_at_work_is_not_cut_off_for_a_new_one() -> None:
    app = Echo()
    app.may_answer.clear()
    async with connected(app, Patient) as (_, writer):
        address = writer.get_extra_info("peername")
        busy = [await asyncio.open_connection(*address) for _ in range(2)]
        for _, other in busy:
            other.write(REQUEST + b"\r\none")
        refused, newest = await asyncio.open_connection(*address)
        newest.write(REQUEST + b"\r\ntwo")
        told = await refused.read()
        assert told.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1" in told
        assert b'"code": "too_many_connections"' in told
        newest.close()
        app.may_answer.set()
        for reader, other in busy:
            assert (await reader.readuntil(b"one")).startswith(b"HTTP/1.1 200 ")
            other.close()


async def test_there_is_a_last_bound() -> None:
    async with connected(Echo(), Patient) as (_, writer):
        address = writer.get_extra_info("peername")
        others = [await asyncio.open_connection(*address) for _ in range(8)]
        # Three, and one that would be refused.
        closed = [reader for reader, _ in others[3:]]
        with contextlib.suppress(ConnectionResetError):
            for reader in closed:
                assert await reader.read() == b""
        assert not any(reader.at_eof() for reader, _ in others[:3])
        for _, other in others:
            other.close()


def test_files_are_left_for_other_things() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for files, most in ((300, 100), (1024, 341), (4096, 512)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
            assert BoundedProtocol.max_connections() == most
            assert configure(Echo()).backlog == most // 16
        assert configure(Echo(), 1000).backlog == 1000 // 16
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Pours:
    """Answers more than all buffers between hold, in pieces."""

    def __init__(self) -> None:
        self.is_over = asyncio.Event()

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        self.is_over.set()


async def test_a_client_that_does_not_read_is_left() -> None:
    app = Pours()
    async with connected(app, Unread) as (reader, writer):
        writer.write(REQUEST + b"\r\none")
        await app.is_over.wait()
        with contextlib.suppress(ConnectionResetError):
            assert len(await reader.read()) < 400 * 65_536


async def test_a_client_that_reads_slowly_is_not() -> None:
    app, size = Pours(), 0
    async with connected(app, Unread) as (reader, writer):
        writer.write(REQUEST + b"\r\none")
        while not (piece := await reader.read(1_000_000)).endswith(b"0\r\n\r\n"):
            size += len(piece)
            await asyncio.sleep(0.02)
        assert size + len(piece) > 400 * 65_536


async def until_connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.02)


async def test_a_server_that_stops_does_not_wait_for_the_rest_of_a_body() -> None:
    code = """
import asyncio, sys
from primespark.core.web.server import serve
from tests.unit.core.test_server import Echo

asyncio.run(serve(Echo(), "127.0.0.1", int(sys.argv[1])))
"""
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(port), stderr=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    async with asyncio.timeout(60):
        reader, writer = await until_connected(port)
        writer.write(REQUEST + b"Expect: 100-continue\r\n\r\n")
        # Whoever is told so is waited for.
        await reader.readuntil(b"100 Continue\r\n\r\n")
        writer.write(b"tw")
        server.terminate()
        assert server.stderr is not None
        told = await server.stderr.read()
        assert await server.wait() == 0
    assert b"Traceback" not in told
    writer.close()
