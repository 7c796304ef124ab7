"""Files of models on the device: fetched in pieces, gone on with after a cut, visible only when whole and right.

What is on its way is always a beginning of the blob, whether its bytes came from the cloud or from an older version.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edge_agent.slots import pieces
from edge_agent.slots.threads import in_thread
from primespark.core.logging import get_logger
from primespark.core.paths import holds_file, private_directory, remove_whatever
from primespark.errors import IntegrityError, PrimeSparkError, UnavailableError
from primespark.sync.chunks import ChunkList

# What a kill loses at most.
_PIECE_BYTES = 256 * 1024
_PART = ".part"

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BlobPart:
    """What the cloud sends of a blob: bytes from `offset` on; `is_part`: no others than were asked for."""

    offset: int
    chunks: AsyncIterator[bytes]
    is_part: bool = False


class BlobSource(Protocol):
    """Where blobs come from."""

    def blob_from(self, sha256: str, offset: int, end: int | None = None) -> AbstractAsyncContextManager[BlobPart]:
        """A blob's bytes from `offset` on, up to `end`; all of them where the other side cannot.

        Raises:
            TransientError: No answer, or the link broke; also while the chunks are read.
            PermanentError: The blob is refused.
        """
        ...

    async def chunks_of(self, sha256: str) -> ChunkList:
        """What a blob is made of.

        Raises:
            PrimeSparkError: No answer, or the other side does not tell.
        """
        ...


class BlobFolder:
    """Blobs by their SHA-256, and beginnings of those that are on their way.

    Args:
        folder: Theirs alone.
        reserve_bytes: Disk that stays free.
    """

    def __init__(self, folder: Path, reserve_bytes: int) -> None:
        self._folder = private_directory(folder)
        self._reserve_bytes = reserve_bytes

    def path(self, sha256: str) -> Path:
        """Where a blob lies, or would lie."""
        return self._folder / sha256

    async def holds(self, sha256: str) -> bool:
        """Whether a blob is here and whole; a damaged one is removed."""
        path = self.path(sha256)
        if not (path.exists() or path.is_symlink()):
            return False
        if holds_file(path) and await asyncio.to_thread(_file_digest, path) == sha256:
            return True
        log.error("blob_damaged", sha256=sha256)
        await in_thread(remove_whatever, path)
        return False

    async def fetch(self, sha256: str, source: BlobSource, max_bytes: int, size_bytes: int | None = None) -> None:
        """Bring a blob here; what an earlier attempt brought is not asked for again.

        Args:
            sha256: Of the blob.
            source: Where it comes from.
            max_bytes: Most it may have.
            size_bytes: What it has, if that is known.

        Raises:
            IntegrityError: Code `digest_mismatch`: what came are not its bytes; nothing of them is kept.
            UnavailableError: Code `disk_full`, or the link broke; what came is kept.
            PermanentError: The blob is refused.
        """
        part = self._folder / f"{sha256}{_PART}"
        limit = size_bytes if size_bytes is not None else max_bytes
        if not holds_file(part):
            await in_thread(remove_whatever, part)
        begun = _Begun(part)
        try:
            await in_thread(begun.load, limit)
            if begun.digest.hexdigest() != sha256:
                self._check_space(limit - begun.size)
                if size_bytes is not None and size_bytes >= pieces.MIN_BYTES:
                    await self._receive_missing(begun, sha256, source, size_bytes)
            if begun.digest.hexdigest() != sha256:
                await _receive(begun, sha256, source, limit)
            await in_thread(begun.sync)
        finally:
            begun.close()
        if begun.digest.hexdigest() != sha256:
            part.unlink()
            raise IntegrityError(f"blob {sha256[:16]} came with another digest", code="digest_mismatch")
        await in_thread(_publish, part, self.path(sha256))

    async def _receive_missing(self, begun: _Begun, sha256: str, source: BlobSource, size: int) -> None:
        """Take what older versions here share with a blob, and receive the rest; nothing where they share little."""
        older = await in_thread(pieces.older_files, self._folder, sha256, size)
        if not older:
            return
        try:
            wanted = await source.chunks_of(sha256)
            if (wanted.sha256, wanted.size) != (sha256, size):
                return
            found = await in_thread(pieces.compare, wanted, older)
        except (PrimeSparkError, ValueError, OSError) as error:
            # The blob itself may come all the same.
            log.info("blob_not_compared", sha256=sha256, cause=str(error)[:200])
            return
        for piece in found:
            if piece.end <= begun.size:
                continue
            data = await in_thread(piece.read) if piece.sha256 is not None else None
            if data is None:
                await _receive(begun, sha256, source, size, piece.end)
            else:
                await in_thread(begun.append, data[begun.size - piece.start :])
        if found and begun.digest.hexdigest() != sha256:
            log.error("blob_pieces_wrong", sha256=sha256)
            await in_thread(begun.cut, 0)

    def keep_only(self, wanted: set[str]) -> None:
        """Remove every blob and beginning that is not of `wanted`."""
        for path in self._folder.iterdir():
            if path.name.removesuffix(_PART) not in wanted:
                remove_whatever(path)

    def _check_space(self, missing_bytes: int) -> None:
        if shutil.disk_usage(self._folder).free < missing_bytes + self._reserve_bytes:
            raise UnavailableError("no space for the model", remedy="free disk space", code="disk_full")


class _Begun:
    """A file that is being received, and the digest of what it holds."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        self.digest: Any = hashlib.sha256()
        self.size = 0

    def load(self, limit: int) -> None:
        """Go on with what an earlier attempt left; of a file that is too long, with nothing."""
        self.cut(0 if os.fstat(self._file.fileno()).st_size > limit else None)

    def cut(self, offset: int | None) -> None:
        """Forget all that lies behind `offset`."""
        if offset is not None:
            self._file.truncate(offset)
        self._file.seek(0)
        self.digest, self.size = hashlib.sha256(), 0
        while piece := self._file.read(_PIECE_BYTES):
            self.digest.update(piece)
            self.size += len(piece)

    def append(self, data: bytes) -> None:
        """Add what came."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self.digest.update(data)
        self.size += len(data)

    def sync(self) -> None:
        """Wait until the disk has it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


async def _receive(begun: _Begun, sha256: str, source: BlobSource, limit: int, end: int | None = None) -> None:
    """Append what is missing of a blob of at most `limit` bytes; with `end`, only up to there."""
    async with source.blob_from(sha256, begun.size, end) as part:
        if part.offset > begun.size:
            raise UnavailableError(f"blob {sha256[:16]}: bytes were left out", remedy="check what answers there")
        if part.offset < begun.size:
            # Whoever knows no ranges sends all of it.
            await in_thread(begun.cut, part.offset)
        elif end is not None and part.is_part:
            limit = end
        waiting = bytearray()
        try:
            async for chunk in part.chunks:
                waiting += chunk
                if begun.size + len(waiting) > limit:
                    waiting.clear()
                    begun.cut(0)
                    raise _too_long(sha256, limit)
                if len(waiting) >= _PIECE_BYTES:
                    piece, waiting = bytes(waiting), bytearray()
                    await in_thread(begun.append, piece)
        finally:
            # Also of a link that broke: it need not come again.
            begun.append(bytes(waiting))
    if end is not None and begun.size < end:
        raise UnavailableError(f"blob {sha256[:16]}: a part came short", remedy="check what stands between")


def _too_long(sha256: str, limit: int) -> IntegrityError:
    return IntegrityError(
        f"blob {sha256[:16]} has more than {limit} bytes", remedy="publish it again", code="digest_mismatch"
    )


def _publish(part: Path, path: Path) -> None:
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
