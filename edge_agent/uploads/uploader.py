"""Sends blobs chunk by chunk, one after another: what the cloud lacks of each, and again from there after any kill."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol

from edge_agent.backoff import Backoff
from edge_agent.credentials import CredentialFiles
from edge_agent.uploads.queue import UploadQueue
from edge_agent.uploads.rows import Upload
from primespark.core.logging import get_logger
from primespark.core.settings import SyncSettings
from primespark.errors import (
    AuthenticationError,
    AuthorizationError,
    ConflictError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    PrimeSparkError,
    TooLargeError,
    TransientError,
    UnavailableError,
)
from primespark.sync.chunks import ChunkList, UploadState, cut_file

# Refusals of the blob itself; every other says something about the link, the cloud or the device's key.
_REFUSALS = (TooLargeError, InvalidInputError, IntegrityError)
_DAMAGED_ON_THE_WAY = {"bad_digest", "truncated_body", "digest_mismatch"}
_NOT_KNOWN = (AuthenticationError, AuthorizationError, NotFoundError)
_NOT_KNOWN_PAUSE_S = 30.0
# So often the cloud is told of a blob that it does not get together.
_ROUNDS = 3

log = get_logger(__name__)


class Gate(Protocol):
    """The cloud's side."""

    async def name_chunks(self, blob: ChunkList) -> UploadState:
        """Say what a blob is made of; what is missing."""

    async def send_chunk(self, sha256: str, data: bytes) -> None:
        """Send a chunk."""


class Uploader:
    """The loop that empties an `UploadQueue`.

    Args:
        uploads: What waits.
        gate: Where it goes.
        files: Without a key there, nothing is sent.
        settings: Pauses.
        on_complete: Called when a batch may be sent that waited for its blob.
    """

    def __init__(
        self,
        uploads: UploadQueue,
        gate: Gate,
        files: CredentialFiles,
        settings: SyncSettings,
        on_complete: Callable[[], None],
    ) -> None:
        self._uploads = uploads
        self._gate = gate
        self._files = files
        self._on_complete = on_complete
        self._backoff = Backoff(settings.retry_base_s, settings.retry_max_s)
        self._work = asyncio.Event()

    def notify(self) -> None:
        """Something may wait, or be needed no more."""
        self._work.set()

    def wake(self) -> None:
        """The cloud can be reached: end a pause."""
        self._backoff.wake()
        self._work.set()

    async def run(self) -> NoReturn:
        """Send until cancelled."""
        while True:
            self._work.clear()
            try:
                is_done = await self._send_next()
            except Exception as error:  # noqa: BLE001 (no error may end the loop)
                await self._pause_after(error)
                continue
            self._backoff.succeeded()
            if is_done:
                await self._uploads.tidy()
                await self._work.wait()

    async def _send_next(self) -> bool:
        """Send one blob; whether none waits."""
        upload = await self._uploads.next_to_send() if self._files.current is not None else None
        if upload is None:
            return True
        try:
            await self._send(upload)
        except _REFUSALS as error:
            if error.code in _DAMAGED_ON_THE_WAY:
                await self._uploads.failed(upload)
                raise UnavailableError(error.message, code=error.code) from None
            await self._uploads.refuse(upload, error.code)
        except TransientError as error:
            # The gate's own word; silence, a busy gate and strangers between say nothing about the blob.
            if type(error) is TransientError:
                await self._uploads.failed(upload)
            raise
        return False

    async def _send(self, upload: Upload) -> None:
        path = self._uploads.path(upload)
        blob = await asyncio.to_thread(_cut, path, upload)
        await send_blob(self._gate, blob, path)
        await self._uploads.complete(upload)
        if upload.operation:
            self._on_complete()

    async def _pause_after(self, error: Exception) -> None:
        if not isinstance(error, PrimeSparkError):
            log.error("unexpected_error", exc_info=error)
            await self._backoff.pause()
            return
        log.info("upload_waits", code=error.code, cause=error.message)
        at_least_s = _NOT_KNOWN_PAUSE_S if isinstance(error, _NOT_KNOWN) else error.retry_after_s
        await self._backoff.pause(at_least_s)


async def send_blob(gate: Gate, blob: ChunkList, path: Path) -> None:
    """Send what the cloud lacks of the file at `path`, until it has all of it.

    Raises:
        PrimeSparkError: What the gate says, or that it cannot be reached.
    """
    for _ in range(_ROUNDS):
        missing = set((await gate.name_chunks(blob)).missing)
        if not missing:
            return
        await _send_chunks(gate, blob, missing, path)
    raise TransientError("the cloud asks for the same chunks again and again", code="blob_not_whole")


async def _send_chunks(gate: Gate, blob: ChunkList, missing: set[str], path: Path) -> None:
    for chunk, place in blob.places():
        if chunk.sha256 not in missing:
            continue
        missing.discard(chunk.sha256)
        data = await asyncio.to_thread(_read, path, place, chunk.size)
        try:
            await gate.send_chunk(chunk.sha256, data)
        except ConflictError as error:
            if error.code != "chunk_not_expected":
                raise
            # It was finished or given up meanwhile: ask anew.
            return


def _cut(path: Path, upload: Upload) -> ChunkList:
    """The chunks of a kept blob.

    Raises:
        IntegrityError: Code `damaged_blob`: its bytes here are not what they were.
        TooLargeError: Code `blob_too_large`: of too many chunks.
    """
    try:
        blob = cut_file(path)
    except ValueError as error:
        raise TooLargeError(str(error), code="blob_too_large") from None
    except FileNotFoundError:
        raise IntegrityError("the blob's file is gone", code="damaged_blob") from None
    if blob.sha256 != upload.sha256:
        raise IntegrityError("the blob's file has other bytes than it had", code="damaged_blob")
    return blob


def _read(path: Path, place: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(place)
        return file.read(size)
