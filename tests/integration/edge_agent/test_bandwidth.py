"""A limited device over real sockets, measured from the other end."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from edge_agent.bandwidth import Bandwidth
from edge_agent.gate_client import GateClient
from edge_agent.outgoing import Batch
from primespark.core.link_settings import BandwidthSettings
from primespark.core.settings import NetworkSettings
from tests.integration.edge_agent.gate import HLC

RATE, SECONDS = 200_000, 2.0
SIZE = int(RATE * SECONDS)
ANSWER = f'{{"status":"applied","ack_batch_seq":1,"results":[],"server_hlc":"{HLC}","server_epoch":1}}'.encode()


class Meter:
    """An end of a connection that takes all it is sent, or sends a blob as fast as it is taken, and notes when."""

    def __init__(self) -> None:
        self.taken: list[tuple[float, int]] = []
        self.blob = os.urandom(SIZE)

    def busiest(self, seconds: float) -> int:
        """Most bytes of any such time."""
        return max(sum(size for at, size in self.taken if begin <= at < begin + seconds) for begin, _ in self.taken)

    def duration(self) -> float:
        return self.taken[-1][0] - self.taken[0][0]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            assert b"content-length: %d" % SIZE in head.lower()
            assert b"transfer-encoding" not in head.lower()
            remaining = SIZE
            while remaining:
                chunk = await reader.read(64 * 1024)
                self.taken.append((time.monotonic(), len(chunk)))
                remaining -= len(chunk)
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER)
            )
            writer.write(ANSWER)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
            writer.write(self.blob)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def metered() -> AsyncIterator[tuple[Meter, GateClient]]:
    meter = Meter()
    server = await asyncio.start_server(meter.answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    gate = GateClient(url, NetworkSettings(), bandwidth=Bandwidth(BandwidthSettings(bytes_per_s=RATE)))
    try:
        yield meter, gate
    finally:
        await gate.aclose()
        server.close()


async def test_a_batch_is_sent_no_faster_than_it_may() -> None:
    async with metered() as (meter, gate):
        await gate.push(Batch(1, 1, 1, {}, os.urandom(SIZE)))
    assert meter.busiest(1.0) <= 1.3 * RATE
    # Slower is for a machine that is busy with other things; the benchmark says how close it comes.
    assert 0.8 * SECONDS <= meter.duration() <= 2 * SECONDS


async def test_a_blob_is_received_no_faster_than_it_may() -> None:
    async with metered() as (meter, gate):
        digest = hashlib.sha256(meter.blob).hexdigest()
        received = b""
        async with gate.blob_from(digest, 0) as part:
            async for chunk in part.chunks:
                meter.taken.append((time.monotonic(), len(chunk)))
                received += chunk
    assert received == meter.blob
    # What was on its way before anybody read comes at once.
    assert meter.busiest(1.0) <= 1.3 * RATE + 64 * 1024
    assert 0.8 * SECONDS <= meter.duration() <= 2 * SECONDS
