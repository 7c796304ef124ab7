"""How close a device keeps to its limit over real sockets: in ten seconds, and in its busiest second."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator

from benchmarks.result import Result
from edge_agent.bandwidth import Bandwidth
from edge_agent.gate_client import GateClient
from edge_agent.outgoing import Batch
from primespark.core.link_settings import BandwidthSettings
from primespark.core.settings import NetworkSettings

RATE = 500_000
SECONDS = 10
_ANSWER = (
    b'{"status":"applied","ack_batch_seq":1,"results":[],"server_hlc":"1790000000000-0000-cloud","server_epoch":1}'
)
_Taken = list[tuple[float, int]]


def run() -> Iterator[Result]:
    """A batch sent and a blob received, each of ten seconds at the limit."""
    for name, measure in (("sent", _send), ("received", _receive)):
        taken = asyncio.run(measure())
        begin = taken[0][0]
        # The first piece is there when the time begins.
        rate = sum(size for _, size in taken[1:]) / (taken[-1][0] - begin)
        yield _result(f"{name} in {SECONDS} s", rate, ">= 0.95, <= 1", 0.95 <= rate / RATE <= 1.0)
        second = max(sum(size for at, size in taken if start <= at < start + 1) for start, _ in taken)
        yield _result(f"{name} in the busiest second", second, "<= 1.3", second <= 1.3 * RATE)


def _result(name: str, value: float, goal: str, ok: bool) -> Result:
    return Result(
        area="bandwidth", name=name, value=value, unit="bytes/s", against="the limit", reference=RATE,
        ratio=value / RATE, goal=goal, ok=ok,
    )  # fmt: skip


async def _send() -> _Taken:
    taken: _Taken = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        remaining = RATE * SECONDS
        while remaining:
            chunk = await reader.read(64 * 1024)
            taken.append((time.monotonic(), len(chunk)))
            remaining -= len(chunk)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n" + _ANSWER)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    gate = _client(server)
    await gate.push(Batch(1, 1, 1, {}, os.urandom(RATE * SECONDS)))
    await gate.aclose()
    server.close()
    return taken


async def _receive() -> _Taken:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (RATE * SECONDS))
        writer.write(os.urandom(RATE * SECONDS))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    gate = _client(server)
    taken: _Taken = []
    async with gate.blob_from("0" * 64, 0) as part:
        async for chunk in part.chunks:
            taken.append((time.monotonic(), len(chunk)))
    await gate.aclose()
    server.close()
    return taken


def _client(server: asyncio.Server) -> GateClient:
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    return GateClient(url, NetworkSettings(), bandwidth=Bandwidth(BandwidthSettings(bytes_per_s=RATE)))
