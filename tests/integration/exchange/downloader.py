"""A device's download over a slow link, in a process that a test kills: URL KEY FOLDER SHA256 SIZE DELIVERED."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from edge_agent.gate_client import GateClient
from edge_agent.slots.download import BlobFolder, BlobPart
from primespark.core.settings import NetworkSettings
from primespark.errors import TransientError
from primespark.sync.chunks import ChunkList


class SlowSource:
    """The gate; every byte that it delivers is counted in a file, which outlives a kill."""

    def __init__(self, gate: GateClient, delivered: Path) -> None:
        self._gate = gate
        self._descriptor = os.open(delivered, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @contextlib.asynccontextmanager
    async def blob_from(self, sha256: str, offset: int, end: int | None = None) -> AsyncIterator[BlobPart]:
        async with self._gate.blob_from(sha256, offset, end) as part:
            yield replace(part, chunks=self._slow(part.chunks))

    async def chunks_of(self, sha256: str) -> ChunkList:
        return await self._gate.chunks_of(sha256)

    async def _slow(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            os.write(self._descriptor, b"%d\n" % len(chunk))
            yield chunk
            await asyncio.sleep(0.01)  # the link, not a synchronisation


async def main(url: str, key: str, folder: str, sha256: str, size: str, delivered: str) -> None:
    gate = GateClient(url, NetworkSettings(connect_timeout_s=1.0, request_timeout_s=5.0))
    gate.use_key(key)
    source, blobs = SlowSource(gate, Path(delivered)), BlobFolder(Path(folder), 0)
    while True:
        with contextlib.suppress(TransientError):
            await blobs.fetch(sha256, source, int(size), int(size))
            return
        await asyncio.sleep(0.05)  # the cloud is being started again


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
