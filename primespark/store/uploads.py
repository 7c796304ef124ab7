"""Blobs that devices write, chunk by chunk; what is known of one on its way survives a kill of either side.

A device names the chunks, is told which are missing, sends those, and names the chunks again until none is missing.
Every answer is found anew from what lies on the disk, so a kill costs at most the chunk on its way, and a chunk that
was damaged is only missing once more. Nobody's chunks are looked for but the device's own: a digest alone gets no
bytes.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert

from primespark.core.identifiers import sha256_hex
from primespark.core.paths import private_directory
from primespark.errors import (
    ConflictError,
    IntegrityError,
    NotFoundError,
    OverloadedError,
    TooLargeError,
    UnavailableError,
)
from primespark.store.blobs import BlobStore
from primespark.store.schema import device, device_blob, fact, upload, upload_chunk
from primespark.sync.chunks import ChunkList

MAX_UNFINISHED = 64
# An upload that has not moved for so long is given up, and its chunks go.
PATIENCE = timedelta(days=7)
# Older versions of a file, of whose chunks a new one may be made.
_KEPT_VERSIONS = 8
_STAGING = ".staging-"


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What one device may have on its way.

    Attributes:
        blob_bytes: Most bytes of a blob.
        unfinished_bytes: Most bytes of its blobs that are not there yet, together.
    """

    blob_bytes: int
    unfinished_bytes: int


@dataclass(frozen=True, slots=True)
class Begun:
    """An upload as the database knows it.

    Attributes:
        is_written: All of it came before.
        versions: Blobs of the device whose chunks it may share.
    """

    is_written: bool
    versions: tuple[str, ...] = ()


def begin(connection: Connection, device_id: str, wanted: ChunkList, limits: UploadLimits, now: datetime) -> Begun:
    """Note what a device is about to send.

    Raises:
        TooLargeError: Code `blob_too_large`.
        OverloadedError: Code `upload_quota`: finish others first.
    """
    # Its uploads are counted one after another.
    connection.execute(select(device.c.epoch).where(device.c.device_id == device_id).with_for_update())
    if wrote(connection, device_id, wanted.sha256):
        return Begun(is_written=True)
    if wanted.size > limits.blob_bytes:
        raise TooLargeError(
            f"a blob of {wanted.size} bytes, limit {limits.blob_bytes}", remedy="send less", code="blob_too_large"
        )
    mine = (upload.c.device_id == device_id, upload.c.sha256 != wanted.sha256)
    count, size = connection.execute(select(func.count(), func.coalesce(func.sum(upload.c.size), 0)).where(*mine)).one()
    if count >= MAX_UNFINISHED or size + wanted.size > limits.unfinished_bytes:
        raise OverloadedError(
            f"{count} blobs of {size} bytes are not finished",
            remedy="finish those first",
            code="upload_quota",
            retry_after_s=60,
        )
    _note(connection, device_id, wanted, now)
    versions = connection.execute(
        select(device_blob.c.sha256)
        .where(device_blob.c.device_id == device_id)
        .order_by(device_blob.c.written_at.desc())
        .limit(_KEPT_VERSIONS)
    )
    return Begun(is_written=False, versions=tuple(versions.scalars()))


def check_expected(connection: Connection, device_id: str, sha256: str, size: int) -> None:
    """Refuse a chunk that no upload of the device names.

    Raises:
        ConflictError: Code `chunk_not_expected`.
    """
    found = connection.execute(
        select(upload_chunk.c.size)
        .where(upload_chunk.c.device_id == device_id, upload_chunk.c.sha256 == sha256, upload_chunk.c.size == size)
        .limit(1)
    )
    if found.first() is None:
        raise ConflictError(
            "no blob on its way has such a chunk", remedy="name the blob's chunks first", code="chunk_not_expected"
        )


def finish(connection: Connection, device_id: str, blob: ChunkList, now: datetime) -> None:
    """All of a blob is there: it is the device's."""
    connection.execute(
        insert(device_blob)
        .values(device_id=device_id, sha256=blob.sha256, size=blob.size, written_at=now)
        .on_conflict_do_nothing()
    )
    give_up(connection, device_id, blob.sha256)


def give_up(connection: Connection, device_id: str, sha256: str) -> None:
    """Forget an upload."""
    connection.execute(delete(upload).where(upload.c.device_id == device_id, upload.c.sha256 == sha256))


def disown(connection: Connection, device_id: str, sha256: str) -> None:
    """Forget that a device wrote a blob."""
    connection.execute(delete(device_blob).where(device_blob.c.device_id == device_id, device_blob.c.sha256 == sha256))


def wrote(connection: Connection, device_id: str, sha256: str) -> bool:
    """Whether a device wrote this blob, all of it."""
    mine = select(device_blob.c.size).where(device_blob.c.device_id == device_id, device_blob.c.sha256 == sha256)
    return connection.execute(mine).first() is not None


def is_of_fact(connection: Connection, sha256: str) -> bool:
    """Whether a fact names this blob."""
    return connection.execute(select(fact.c.blob).where(fact.c.blob == sha256).limit(1)).first() is not None


def hold(connection: Connection, device_id: str, sha256s: set[str]) -> None:
    """Keep these blobs the device's until the end of the transaction, in which facts come to name them.

    Raises:
        ConflictError: Code `blob_missing`: one is not, or not whole.
    """
    if not sha256s:
        return
    # Locked, so that whoever forgets old blobs meanwhile sees the facts when he then looks for what is named.
    mine = select(device_blob.c.sha256).where(device_blob.c.device_id == device_id, device_blob.c.sha256.in_(sha256s))
    held = set(connection.execute(mine.with_for_update(read=True)).scalars())
    if missing := sha256s - held:
        raise blob_missing(min(missing))


def blob_missing(sha256: str) -> ConflictError:
    """A fact names a blob that is not here, whole."""
    return ConflictError(
        f"a fact names blob {sha256}, which this device has not written",
        remedy="upload it, then send the batch again",
        code="blob_missing",
    )


def forget_old(connection: Connection, now: datetime, age: timedelta) -> None:
    """Forget uploads that do not move, and who wrote blobs `age` ago; committed before anything of them is removed."""
    connection.execute(delete(upload).where(upload.c.moved_at < now - PATIENCE))
    connection.execute(delete(device_blob).where(device_blob.c.written_at < now - age))


def expected(connection: Connection) -> set[tuple[str, str]]:
    """Every device with each chunk of its uploads."""
    rows = connection.execute(select(upload_chunk.c.device_id, upload_chunk.c.sha256).distinct())
    return {(row.device_id, row.sha256) for row in rows}


class Chunks:
    """Chunks that came, in a folder for each device beside the blobs; safe for several processes at once."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._root = blobs.root / "uploads"

    def keep(self, device_id: str, sha256: str, data: bytes) -> None:
        """Keep a chunk; a power cut may take it, which the joining finds out.

        Raises:
            UnavailableError: Code `disk_full`.
        """
        path = self._path(device_id, sha256)
        with _space():
            private_directory(path.parent)
            descriptor, staging = tempfile.mkstemp(dir=path.parent, prefix=_STAGING)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                Path(staging).replace(path)
            except BaseException:
                Path(staging).unlink(missing_ok=True)
                raise

    def bring_together(self, device_id: str, wanted: ChunkList, versions: tuple[str, ...]) -> list[str]:
        """Make the blob of its chunks; without some, what is missing.

        Raises:
            IntegrityError: Code `digest_mismatch`: the chunks are not the blob's.
            UnavailableError: Code `disk_full`.
        """
        places = self._places(versions)
        here = [chunk.sha256 in places or self._path(device_id, chunk.sha256).exists() for chunk in wanted.chunks]
        missing = [chunk.sha256 for chunk, is_here in zip(wanted.chunks, here, strict=True) if not is_here]
        if not missing:
            try:
                with _space():
                    self._blobs.put_pieces(wanted.sha256, self._pieces(device_id, wanted, places))
            except _DamagedError as damaged:
                missing = [damaged.sha256]
        return list(dict.fromkeys(missing))

    def discard(self, device_id: str, sha256s: set[str]) -> None:
        """Remove chunks that no upload of the device needs."""
        for sha256 in sha256s:
            self._path(device_id, sha256).unlink(missing_ok=True)

    def kept_since(self) -> Iterator[tuple[str, str, float]]:
        """Device and name of every chunk, and when it came, in seconds since the epoch."""
        for path in self._root.glob("*/*"):
            try:
                yield path.parent.name, path.name, path.stat().st_mtime
            except FileNotFoundError:
                continue  # joined meanwhile

    def _places(self, versions: tuple[str, ...]) -> dict[str, tuple[Path, int]]:
        """Where chunks of these blobs begin."""
        places: dict[str, tuple[Path, int]] = {}
        for sha256 in versions:
            try:
                known = self._blobs.chunks(sha256)
            except (NotFoundError, IntegrityError, ValueError):
                continue  # gone, damaged, or of too many chunks: no reason against a new one
            for chunk, start in known.places():
                places.setdefault(chunk.sha256, (self._blobs.path(sha256), start))
        return places

    def _pieces(self, device_id: str, wanted: ChunkList, places: dict[str, tuple[Path, int]]) -> Iterator[bytes]:
        for chunk in wanted.chunks:
            own = self._path(device_id, chunk.sha256)
            data = _read(own, 0, chunk.size)
            if sha256_hex(data) != chunk.sha256:
                own.unlink(missing_ok=True)
                data = _read(*places[chunk.sha256], chunk.size) if chunk.sha256 in places else b""
                if sha256_hex(data) != chunk.sha256:
                    raise _DamagedError(chunk.sha256)
            yield data

    def _path(self, device_id: str, sha256: str) -> Path:
        return self._root / device_id / sha256


class _DamagedError(Exception):
    """A chunk is not here any more, or not what its name says."""

    def __init__(self, sha256: str) -> None:
        super().__init__(sha256)
        self.sha256 = sha256


def unneeded(connection: Connection, device_id: str, blob: ChunkList) -> set[str]:
    """Chunks of a blob that no upload of the device names any more."""
    names = {chunk.sha256 for chunk in blob.chunks}
    rows = connection.execute(
        select(upload_chunk.c.sha256).where(upload_chunk.c.device_id == device_id, upload_chunk.c.sha256.in_(names))
    )
    return names - set(rows.scalars())


def _note(connection: Connection, device_id: str, wanted: ChunkList, now: datetime) -> None:
    give_up(connection, device_id, wanted.sha256)
    connection.execute(insert(upload).values(device_id=device_id, sha256=wanted.sha256, size=wanted.size, moved_at=now))
    sizes = {chunk.sha256: chunk.size for chunk in wanted.chunks}
    connection.execute(
        text(
            "INSERT INTO sync.upload_chunk (device_id, blob_sha256, sha256, size)"
            " SELECT :device_id, :blob, given.* FROM unnest(CAST(:names AS text[]), CAST(:sizes AS integer[])) AS given"
        ),
        {"device_id": device_id, "blob": wanted.sha256, "names": list(sizes), "sizes": list(sizes.values())},
    )


def _read(path: Path, start: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)
    except FileNotFoundError:
        return b""


@contextmanager
def _space() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UnavailableError(
            "no space for the blob", remedy="free disk space of the cloud", code="disk_full", retry_after_s=60
        ) from None
