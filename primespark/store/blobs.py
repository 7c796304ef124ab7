"""Immutable blobs in a folder, named by their SHA-256."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from primespark.core.identifiers import sha256_hex
from primespark.core.paths import private_directory
from primespark.errors import IntegrityError, NotFoundError
from primespark.sync.chunks import ChunkList, cut_file

_SHA256 = re.compile(r"[0-9a-f]{64}")
_STAGING = ".staging-"
_DOOMED = ".doomed-"
_CHUNKS = ".chunks"


class BlobStore:
    """Blobs under `root`; safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def root(self) -> Path:
        """The folder."""
        return self._root

    def put(self, data: bytes) -> str:
        """Store `data` durably; its SHA-256."""
        sha256 = sha256_hex(data)
        if self._is_whole(sha256) and self.keep(sha256):
            return sha256
        self.put_pieces(sha256, [data])
        return sha256

    def put_pieces(self, sha256: str, pieces: Iterable[bytes]) -> None:
        """Store a blob durably whose bytes come in pieces.

        Raises:
            IntegrityError: Code `digest_mismatch`: they are not what its name promises; nothing is stored.
        """
        target = self.path(sha256)
        private_directory(target.parent)
        digest = hashlib.sha256()
        # A name of its own: two writers of the same blob must not write into one file.
        descriptor, staging = tempfile.mkstemp(dir=target.parent, prefix=_STAGING)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                    digest.update(piece)
                if digest.hexdigest() != sha256:
                    raise IntegrityError(f"these are not the bytes of blob {sha256[:16]}", code="digest_mismatch")
                file.flush()
                os.fsync(file.fileno())
            Path(staging).replace(target)
        except BaseException:
            # Whatever it was goes on to the caller; half a file must not stay.
            Path(staging).unlink(missing_ok=True)
            raise
        for folder in (target.parent, self._root, self._root.parent):
            _sync_folder(folder)

    def get(self, sha256: str) -> bytes:
        """A blob's bytes.

        Raises:
            NotFoundError: No such blob.
            IntegrityError: The file does not have the bytes its name promises.
        """
        try:
            data = self.path(sha256).read_bytes()
        except FileNotFoundError:
            raise _no_blob(sha256) from None
        if sha256_hex(data) != sha256:
            raise IntegrityError(f"blob {sha256} is damaged", remedy="store it again", code="damaged_blob")
        return data

    def chunks(self, sha256: str) -> ChunkList:
        """A blob's chunks; the list is made once, and lies beside it.

        Raises:
            NotFoundError: No such blob.
            IntegrityError: The file does not have the bytes its name promises.
        """
        path = self.path(sha256)
        kept = path.with_name(f"{sha256}{_CHUNKS}")
        try:
            return ChunkList.model_validate_json(kept.read_bytes())
        except (FileNotFoundError, ValidationError):
            pass  # not made yet, or a power cut took its bytes
        try:
            made = cut_file(path)
        except FileNotFoundError:
            raise _no_blob(sha256) from None
        if made.sha256 != sha256:
            raise IntegrityError(f"blob {sha256} is damaged", remedy="store it again", code="damaged_blob")
        descriptor, staging = tempfile.mkstemp(dir=path.parent, prefix=_STAGING)
        with os.fdopen(descriptor, "wb") as file:
            file.write(made.to_json())
        Path(staging).replace(kept)
        return made

    def exists(self, sha256: str) -> bool:
        """Whether there is such a blob."""
        return self.path(sha256).is_file()

    def kept_since(self) -> Iterator[tuple[str, float]]:
        """Every blob, and when it was last put or kept, in seconds since the epoch."""
        for path in self._root.glob("[0-9a-f][0-9a-f]/*"):
            if _SHA256.fullmatch(path.name):
                try:
                    yield path.name, path.stat().st_mtime
                except FileNotFoundError:
                    continue  # removed meanwhile

    def keep(self, sha256: str) -> bool:
        """Count a blob's age from now on; whether there is such a blob."""
        try:
            os.utime(self.path(sha256))
        except FileNotFoundError:
            return False
        return True

    def remove_older(self, sha256: str, before: float) -> bool:
        """Remove a blob that was last put or kept before this time; whether that was so."""
        path = self.path(sha256)
        # Under another name first: whoever puts the same blob now either made it young in time, or writes it anew.
        doomed = path.with_name(f"{_DOOMED}{sha256}")
        try:
            path.replace(doomed)
        except FileNotFoundError:
            return False
        if doomed.stat().st_mtime >= before:
            doomed.replace(path)
            return False
        path.with_name(f"{sha256}{_CHUNKS}").unlink(missing_ok=True)
        doomed.unlink()
        return True

    def tidy(self, before: float) -> None:
        """Undo what a kill left of a removal, and drop what one left of a `put` before this time; with one remover."""
        for doomed in self._root.glob(f"[0-9a-f][0-9a-f]/{_DOOMED}*"):
            doomed.replace(doomed.with_name(doomed.name.removeprefix(_DOOMED)))
        for staging in self._root.glob(f"[0-9a-f][0-9a-f]/{_STAGING}*"):
            try:
                if staging.stat().st_mtime < before:
                    staging.unlink()
            except FileNotFoundError:
                continue  # it became a blob
        for kept in self._root.glob(f"[0-9a-f][0-9a-f]/*{_CHUNKS}"):
            if not kept.with_suffix("").exists():
                kept.unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        """Where a blob lies, or would lie.

        Raises:
            NotFoundError: Not a SHA-256 in lower-case hexadecimal.
        """
        if not _SHA256.fullmatch(sha256):
            raise _no_blob(sha256)
        return self._root / sha256[:2] / sha256

    def _is_whole(self, sha256: str) -> bool:
        try:
            return sha256_hex(self.path(sha256).read_bytes()) == sha256
        except FileNotFoundError:
            return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_blob(sha256: str) -> NotFoundError:
    return NotFoundError(f"no blob {sha256[:64]!r}", remedy="name a stored blob by its SHA-256")
