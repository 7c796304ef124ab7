"""Blobs that wait for the cloud: bytes in a folder, and in one transaction what they are and the fact that names them.

The fact gets its number when the cloud has the blob, so nothing waits for a blob but the fact itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sqlite3
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

from prometheus_client import Counter, Gauge

from edge_agent.database import Database
from edge_agent.outgoing import give_up_fact
from edge_agent.queue import NewFact, OfflineQueue, encode
from edge_agent.uploads import rows
from edge_agent.uploads.rows import Upload
from primespark.core.logging import get_logger
from primespark.core.paths import private_directory
from primespark.errors import TooLargeError, UnavailableError

# Written so far; only whole files have the name of an upload.
_PART = ".part-"

WAITING = Gauge("primespark_uploads_waiting", "Blobs that the cloud lacks.")
BYTES = Gauge("primespark_uploads_bytes", "Bytes of the blobs that are kept for the cloud.")
ENDED = Counter("primespark_uploads_total", "Blobs that went to the cloud, or were refused for good.", ["outcome"])
for _outcome in ("complete", "refused"):
    ENDED.labels(_outcome)

log = get_logger(__name__)


class UploadQueue:
    """What `take` answered for is on the disk until the cloud has blob and fact.

    Args:
        database: Of the queue.
        queue: Takes the fact once its blob is there; counts the bytes.
        folder: For the bytes; nobody else's.
        max_blob_bytes: Most bytes of a blob.
    """

    def __init__(self, database: Database, queue: OfflineQueue, folder: Path, max_blob_bytes: int) -> None:
        self._database = database
        self._queue = queue
        self._folder = folder
        self._max_blob_bytes = max_blob_bytes
        self._being_taken: set[str] = set()
        database.watch(_export)

    async def take(self, pieces: AsyncIterator[bytes], fact: NewFact, size: int = 0) -> Upload:
        """Keep a blob and the fact that names it; on disk when this returns, and nothing of it when it raises.

        Args:
            pieces: The bytes.
            fact: Its `blob` is set, and the blob's size added to its value.
            size: Of the blob as far as it is known, to refuse it before it came.

        Raises:
            TooLargeError: Code `blob_too_large`; or the fact is.
            OverloadedError: Code `queue_full`.
            InvalidInputError: As `OfflineQueue.enqueue`.
            UnavailableError: Code `disk_full`.
        """
        encode(fact)
        self._check_size(size)
        await self._database.run(lambda connection: self._queue.reserve(connection, size))
        name = uuid.uuid4().hex
        part, path = self._folder / f"{_PART}{name}", self._folder / name
        self._being_taken |= {part.name, path.name}
        try:
            sha256, size = await self._write(part, pieces)
            with _disk():
                await asyncio.to_thread(_name_durably, part, path)
            value = {**fact.value, "size_bytes": size}
            stream, tail = encode(replace(fact, blob=sha256, value=value))

            def work(connection: sqlite3.Connection) -> Upload:
                self._queue.reserve(connection, size + len(tail))
                rows.add(connection, name, sha256, size, stream, tail)
                return Upload(name, sha256, size, stream, 0, 0, False)

            return await self._database.run(work)
        except Exception:
            path.unlink(missing_ok=True)
            raise
        finally:
            # Where who waits has left, the transaction may be under way: a later `tidy` knows whether `path` is needed.
            part.unlink(missing_ok=True)
            self._being_taken -= {part.name, path.name}

    async def page(self, after: str, limit: int) -> list[Upload]:
        """Uploads by name, after one."""
        return await self._database.run(lambda connection: rows.page(connection, after, limit))

    async def next_to_send(self) -> Upload | None:
        """The blob that goes next."""
        return await self._database.run(rows.next_to_send)

    def path(self, upload: Upload) -> Path:
        """Its file."""
        return self._folder / upload.name

    async def complete(self, upload: Upload) -> None:
        """The cloud has the blob: its fact may go.

        Raises:
            OverloadedError: Code `queue_full`, where the queue was made smaller; nothing has changed.
        """
        await self._database.run(lambda connection: self._complete(connection, upload.name))
        ENDED.labels("complete").inc()

    async def failed(self, upload: Upload) -> None:
        """The cloud answered that it failed on it: others go first now."""
        await self._database.run(lambda connection: rows.count_attempt(connection, upload.name))

    async def refuse(self, upload: Upload, code: str) -> None:
        """The cloud will never take the blob: its fact goes among the dead letters, and is on record as lost."""

        def work(connection: sqlite3.Connection) -> None:
            operation = self._complete(connection, upload.name)
            # One of a batch that is fixed stays in it: when the cloud refuses that again, it finds no blob here.
            if operation and not upload.operation:
                give_up_fact(connection, operation, code)
            rows.forget(connection, upload.name)

        await self._database.run(work)
        ENDED.labels("refused").inc()
        log.warning("upload_refused", sha256=upload.sha256, stream=upload.stream, code=code)

    async def tidy(self) -> None:
        """Remove files that nothing needs: of facts that have gone, and of what was cut short."""
        if not await asyncio.to_thread(self._files):
            return
        # Listed before the rows are read: a row that comes later is of a file that was being taken or is not listed.
        found = await asyncio.to_thread(self._files) - self._being_taken
        needed = await self._database.run(rows.names)
        for name in found - needed:
            with contextlib.suppress(OSError):
                await asyncio.to_thread((self._folder / name).unlink)

    def _files(self) -> set[str]:
        try:
            return {path.name for path in self._folder.iterdir()}
        except FileNotFoundError:
            return set()

    def _complete(self, connection: sqlite3.Connection, name: str) -> int:
        """Put the fact into the queue, if it is not there; its place, 0 where the upload is forgotten."""
        found = rows.read(connection, name)
        if found is None:
            return 0
        upload, tail = found
        rows.mark_there(connection, name)
        if upload.operation:
            return upload.operation
        # What it takes of the queue's room is given back first.
        rows.mark_queued(connection, name, -1)
        self._queue.take(connection, [(upload.stream, tail)])
        (operation,) = connection.execute("SELECT last_insert_rowid()").fetchone()
        rows.mark_queued(connection, name, operation)
        return int(operation)

    async def _write(self, part: Path, pieces: AsyncIterator[bytes]) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        with _disk():
            await asyncio.to_thread(private_directory, self._folder)
            file = await asyncio.to_thread(part.open, "xb")
        try:
            async for piece in pieces:
                size += len(piece)
                self._check_size(size)
                digest.update(piece)
                with _disk():
                    await asyncio.to_thread(file.write, piece)
            with _disk():
                await asyncio.to_thread(file.flush)
                await asyncio.to_thread(os.fsync, file.fileno())
        finally:
            with contextlib.suppress(OSError):
                file.close()
        return digest.hexdigest(), size

    def _check_size(self, size: int) -> None:
        if size > self._max_blob_bytes:
            raise TooLargeError(
                f"a blob of more than {self._max_blob_bytes} bytes", remedy="send less", code="blob_too_large"
            )


def _name_durably(part: Path, path: Path) -> None:
    part.replace(path)
    # The folder's own entry too: it may have been made just now.
    for folder in (path.parent, path.parent.parent):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"cannot keep the blob: {error.strerror}", remedy="free disk space", code="disk_full"
        ) from None


def _export(connection: sqlite3.Connection) -> None:
    found = rows.totals(connection)
    WAITING.set(found.waiting)
    BYTES.set(found.bytes)
