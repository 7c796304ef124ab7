"""A queue and blobs on a small disk that fills up, in a mount namespace of their own: SCENARIO FOLDER.

Run under `unshare --map-root-user --mount`. Prints what was seen, as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

from edge_agent.database import Database
from edge_agent.database_file import LOG_BYTES
from edge_agent.outgoing import Outgoing
from edge_agent.queue import NewFact, OfflineQueue
from edge_agent.slots.download import BlobFolder, BlobPart
from primespark.core.settings import OfflineSettings, StreamSettings
from primespark.errors import PrimeSparkError
from primespark.store.blobs import BlobStore
from primespark.store.uploads import Chunks
from primespark.sync.chunks import ChunkList
from primespark.sync.records import DataClass, PushResponse

DISK_BYTES = 96 * 1024 * 1024

RESERVE_BYTES = 2 * 1024 * 1024
FACTS_PER_CALL, FACT_BYTES = 5, 2000
BLOB_BYTES = 300_000
STREAMS = (
    StreamSettings.model_validate({"stream": "alarm", "priority": "critical", "on_full": "drop_lowest"}),
    StreamSettings.model_validate({"stream": "telemetry", "priority": "low", "on_full": "drop_oldest"}),
)


class SmallDisk:
    """A folder of its own file system, and a file that takes what is free of it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], check=True)
        self.folder = folder
        self._ballast = folder / "disk.ballast"

    def fill(self, free_bytes: int = 0) -> None:
        """Leave so much."""
        disk = os.statvfs(self.folder)
        size = disk.f_bavail * disk.f_frsize - free_bytes
        with self._ballast.open("ab", buffering=0) as file:
            os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)

    def empty(self) -> None:
        """Give back what was taken."""
        self._ballast.unlink()


class Device:
    """A queue on it, and what it answered for."""

    def __init__(self, disk: SmallDisk, reserve_bytes: int) -> None:
        self._path = disk.folder / "device" / "queue.db"
        limits = OfflineSettings(minimum_free_disk_bytes=reserve_bytes, streams=STREAMS)
        self.database = Database(self._path, LOG_BYTES)
        self.queue = OfflineQueue(self.database, limits)
        self.outgoing = Outgoing(self.database, "edge-1", 50, 500_000)
        self.answered: dict[str, int] = {"alarm": 0, "telemetry": 0}

    async def enqueue(self, stream: str) -> str:
        """Enqueue some facts; the code of the refusal, if it was one."""
        facts = [NewFact(DataClass.TELEMETRY, {"text": "x" * FACT_BYTES}, stream=stream)] * FACTS_PER_CALL
        try:
            self.answered[stream] = (await self.queue.enqueue(facts))[-1]
        except PrimeSparkError as error:
            return error.code
        return ""

    async def send_all(self) -> int:
        """Send what waits, to a cloud that takes it; how many records."""
        records = 0
        while (batch := await self.outgoing.next_batch()) is not None:
            answer = PushResponse(
                status="applied", ack_batch_seq=batch.batch_seq, results=[],
                server_hlc="1790000000000-0000-cloud", server_epoch=1,
            )  # fmt: skip
            await self.outgoing.acknowledge(batch.batch_seq, answer)
            records += batch.records
        return records

    async def seqs(self) -> dict[str, list[int]]:
        """What waits, by stream."""

        def read(connection: sqlite3.Connection) -> dict[str, list[int]]:
            found: dict[str, list[int]] = {stream: [] for stream in self.answered}
            for stream, seq in connection.execute("SELECT stream, seq FROM operation ORDER BY seq"):
                found[stream].append(seq)
            return found

        return await self.database.run(read)

    def verdict(self) -> list[str]:
        """Close, and what SQLite and the device's next start say of the file."""
        self.database.close()
        connection = sqlite3.connect(self._path)
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        connection.close()
        Database(self._path, LOG_BYTES).close()
        return [verdict, *(file.name for file in self._path.parent.glob("*.corrupt-*"))]


async def reserve(disk: SmallDisk) -> dict[str, Any]:
    """Less is free than must stay free: refused, and what waits can still go."""
    device = Device(disk, RESERVE_BYTES)
    await device.outgoing.begin_epoch(1)
    for _ in range(20):
        for stream in device.answered:
            await device.enqueue(stream)
    disk.fill(RESERVE_BYTES // 2)
    refusals = [await device.enqueue(stream) for stream in device.answered]
    kept = await device.seqs()
    disk.fill()
    sent = await device.send_all()
    disk.empty()
    again = [await device.enqueue(stream) for stream in device.answered]
    return {
        "refusals": refusals, "kept": kept, "sent": sent, "again": again, "waiting": await device.seqs(),
        "answered": device.answered, "verdict": device.verdict(),
    }  # fmt: skip


async def brim(disk: SmallDisk) -> dict[str, Any]:
    """Nothing is kept free: each write may be the one that fails."""
    device = Device(disk, 0)
    await device.outgoing.begin_epoch(1)
    disk.fill(1024 * 1024)
    refusals: list[str] = []
    while len(refusals) < 10:
        refusals += [code for stream in device.answered if (code := await device.enqueue(stream))]
    kept, answered = await device.seqs(), dict(device.answered)
    disk.empty()
    again = [await device.enqueue(stream) for stream in device.answered]
    return {
        "refusals": refusals, "kept": kept, "answered_when_full": answered, "again": again,
        "waiting": await device.seqs(), "answered": device.answered, "sent": await device.send_all(),
        "verdict": device.verdict(),
    }  # fmt: skip


class Source:
    """A cloud with one blob."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @contextlib.asynccontextmanager
    async def blob_from(self, sha256: str, offset: int, end: int | None = None) -> AsyncIterator[BlobPart]:
        """The blob from there."""

        async def chunks() -> AsyncIterator[bytes]:
            for start in range(offset, len(self._data), 10_000):
                yield self._data[start : start + 10_000]

        yield BlobPart(offset, chunks())

    async def chunks_of(self, sha256: str) -> ChunkList:
        """Not asked for: there is no older version."""
        raise NotImplementedError


async def blobs(disk: SmallDisk) -> dict[str, Any]:
    """A model that comes to a device, and a blob and a chunk that come to a cloud."""
    data = os.urandom(BLOB_BYTES)
    sha256 = hashlib.sha256(data).hexdigest()
    models, store = BlobFolder(disk.folder / "models", 0), BlobStore(disk.folder / "blobs")
    chunks = Chunks(store)
    disk.fill(BLOB_BYTES // 2)

    async def attempt(work: Awaitable[object]) -> str:
        try:
            await work
        except PrimeSparkError as error:
            return error.code
        except OSError as error:
            # Of `BlobStore`, which stages of the pipeline write to.
            return "no space" if error.errno == errno.ENOSPC else str(error)
        return ""

    async def attempts() -> dict[str, str]:
        return {
            "model": await attempt(models.fetch(sha256, Source(data), BLOB_BYTES * 2)),
            "blob": await attempt(asyncio.to_thread(store.put, data)),
            "chunk": await attempt(asyncio.to_thread(chunks.keep, "edge-1", sha256, data)),
        }

    def files() -> list[Path]:
        # A part of the model may stay, to go on with.
        return [file for file in disk.folder.rglob("*") if file.is_file() and file.suffix not in (".part", ".ballast")]

    refusals, before = await attempts(), [str(file) for file in files()]
    disk.empty()
    again = await attempts()
    places = {"model": models.path(sha256), "blob": store.path(sha256), "chunk": store.root / "uploads/edge-1" / sha256}
    return {
        "refusals": refusals, "files_when_full": before, "again": again,
        "whole": {name: path.read_bytes() == data for name, path in places.items()},
    }  # fmt: skip


if __name__ == "__main__":
    scenario = {"reserve": reserve, "brim": brim, "blobs": blobs}[sys.argv[1]]
    print(json.dumps(asyncio.run(scenario(SmallDisk(Path(sys.argv[2]))))))
