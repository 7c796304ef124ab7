"""Pictures and sounds kept on the device: files within bytes and days, each whole or absent whatever is killed.

A file's name is its id: kind, time and a random part, so names in order are times in order. What is known of a picture
or sound is JSON in the file's own comment: there is no index that could differ from the files.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from prometheus_client import Gauge

from edge_agent.capture.pictures import Pixels, encode_jpeg, read_comment
from edge_agent.capture.sounds import Samples, encode_flac, read_flac_comment
from primespark.core.capture_settings import KeptSettings
from primespark.core.clock import wall_clock_ms
from primespark.core.paths import private_directory, write_private
from primespark.core.web import parse_json
from primespark.errors import NotFoundError, TooLargeError, UnavailableError

# A JPEG comment has at most 65,533 bytes.
MAX_NOTE_BYTES = 32 * 1024
_PICTURE, _SOUND = ".jpg", ".flac"
_MEDIA_TYPES = {_PICTURE: "image/jpeg", _SOUND: "audio/flac"}
_READ_COMMENT = {_PICTURE: read_comment, _SOUND: read_flac_comment}
_DAY_MS = 86_400_000
_ID = re.compile(r"(event|example)-(\d{13})-[0-9a-f]{8}")

BYTES = Gauge("primespark_capture_pictures_bytes", "Bytes of pictures and sounds kept on the device.", ["kind"])


class PictureKind(StrEnum):
    """Why a picture is kept."""

    EVENT = "event"
    EXAMPLE = "example"


@dataclass(frozen=True, slots=True)
class Picture:
    """A kept picture or sound; `note` is what was known when it was taken."""

    id: str
    time: datetime
    media_type: str
    bytes: int
    note: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _File:
    """What is on disk under an id."""

    suffix: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Page:
    """Some pictures, and what to go on with; None at the end."""

    pictures: list[Picture]
    next_cursor: str | None


class PictureStore:
    """The pictures and sounds of one kind; safe for threads, one process at a time.

    Args:
        folder: Of these pictures alone; made when missing.
        kind: Of all of them.
        limits: Bytes and days.
        minimum_free_disk_bytes: Below this nothing is kept: the rest of the disk is the queue's.
        clock_ms: Wall clock; a parameter so that a test can turn it.
    """

    def __init__(
        self,
        folder: Path,
        kind: PictureKind,
        limits: KeptSettings,
        minimum_free_disk_bytes: int,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._folder = folder
        self._kind = kind
        self._limits = limits
        self._minimum_free_disk_bytes = minimum_free_disk_bytes
        self._clock_ms = clock_ms
        self._lock = threading.Lock()
        self._files: dict[str, _File] | None = None

    def keep(self, pixels: Pixels, note: dict[str, Any], daily_bytes: int | None = None) -> str | None:
        """Keep a picture, on disk when this returns; the oldest make room for it.

        Args:
            pixels: uint8 [height, width, 3] RGB.
            note: At most 32 KiB as JSON.
            daily_bytes: Most that is kept in a day (UTC); none is no such bound.

        Returns:
            Its id; None where the day has no room for it.

        Raises:
            UnavailableError: Code `disk_full` or `disk_error`.
            TooLargeError: The note.
        """
        return self._keep(encode_jpeg(pixels, comment=_comment(note)), _PICTURE, daily_bytes)

    def keep_sound(self, samples: Samples, note: dict[str, Any]) -> str | None:
        """Keep a sound, float32 [n] of -1..1 at 16 kHz, as `keep` a picture."""
        return self._keep(encode_flac(samples, comment=_comment(note)), _SOUND, None)

    def _keep(self, data: bytes, suffix: str, daily_bytes: int | None) -> str | None:
        with self._lock:
            try:
                return self._write(data, suffix, daily_bytes)
            except OSError as error:
                raise UnavailableError(
                    f"a file cannot be written: {error.strerror}", remedy="check the disk", code="disk_error"
                ) from None

    def _write(self, data: bytes, suffix: str, daily_bytes: int | None) -> str | None:
        files, now_ms = self._load(), self._clock_ms()
        if daily_bytes is not None and _bytes_since(files, now_ms - now_ms % _DAY_MS) + len(data) > daily_bytes:
            return None
        self._make_room(files, len(data))
        if shutil.disk_usage(self._folder).free - len(data) < self._minimum_free_disk_bytes:
            raise UnavailableError("no space for a file", remedy="free disk space", code="disk_full")
        picture_id = f"{self._kind}-{now_ms:013d}-{secrets.token_hex(4)}"
        write_private(self._path(picture_id, suffix), data)
        files[picture_id] = _File(suffix, len(data))
        self._export(files)
        return picture_id

    def expire(self) -> None:
        """Remove what is too old."""
        with self._lock:
            files = self._load()
            self._make_room(files, 0)
            self._export(files)

    def list(self, before: str | None, limit: int) -> Page:
        """The newest first, at most `limit` of those with an id below `before`."""
        with self._lock:
            files = self._load()
            ids = sorted((key for key in files if before is None or key < before), reverse=True)[:limit]
            found = [(key, files[key].suffix) for key in ids]
        pictures = (self._describe(key, suffix) for key, suffix in found)
        next_cursor = ids[-1] if len(ids) == limit else None
        return Page([picture for picture in pictures if picture is not None], next_cursor)

    def read(self, picture_id: str) -> bytes:
        """The file's bytes, see `read_file`."""
        return self.read_file(picture_id)[0]

    def read_file(self, picture_id: str) -> tuple[bytes, str]:
        """The file's bytes and media type.

        Raises:
            NotFoundError: No such picture, or no longer.
        """
        # Only names that this store has listed itself reach the file system.
        with self._lock:
            file = self._load().get(picture_id)
        with suppress(FileNotFoundError):
            if file is not None:
                return self._path(picture_id, file.suffix).read_bytes(), _MEDIA_TYPES[file.suffix]
        raise NotFoundError(f"no picture {picture_id[:64]!r}", remedy="list them with GET /api/v1/snapshots")

    def _load(self) -> dict[str, _File]:
        """What is kept, by id; read from the folder the first time, when remains of interrupted writes are removed."""
        if self._files is None:
            private_directory(self._folder)
            files = {}
            for entry in os.scandir(self._folder):
                # What lies there as a link, folder or pipe is nothing of ours, and is left alone.
                if not entry.is_file(follow_symlinks=False):
                    continue
                name, suffix = os.path.splitext(entry.name)  # noqa: PTH122 (a name, no path)
                if suffix in _MEDIA_TYPES and _ID.fullmatch(name) and name.startswith(self._kind):
                    files[name] = _File(suffix, entry.stat(follow_symlinks=False).st_size)
                elif entry.name.startswith(".") and entry.name.endswith(".staging"):
                    Path(entry.path).unlink(missing_ok=True)
            self._files = files
        return self._files

    def _make_room(self, files: dict[str, _File], size: int) -> None:
        oldest_ms = self._clock_ms() - self._limits.max_days * _DAY_MS
        total = sum(file.bytes for file in files.values()) + size
        for key in sorted(files):
            if total <= self._limits.max_bytes and _time_ms(key) >= oldest_ms:
                return
            self._path(key, files[key].suffix).unlink(missing_ok=True)
            total -= files.pop(key).bytes

    def _describe(self, picture_id: str, suffix: str) -> Picture | None:
        """What is known of a picture; None when it has gone, or is damaged: a power cut may have left it empty."""
        try:
            data = self._path(picture_id, suffix).read_bytes()
            note = parse_json(_READ_COMMENT[suffix](data))
        except (OSError, ValueError):
            return None
        if not isinstance(note, dict):
            return None
        time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=_time_ms(picture_id))
        return Picture(picture_id, time, _MEDIA_TYPES[suffix], len(data), note)

    def _path(self, picture_id: str, suffix: str) -> Path:
        return self._folder / f"{picture_id}{suffix}"

    def _export(self, files: dict[str, _File]) -> None:
        BYTES.labels(self._kind.value).set(sum(file.bytes for file in files.values()))


def _comment(note: dict[str, Any]) -> bytes:
    comment = json.dumps(note).encode()
    if len(comment) > MAX_NOTE_BYTES:
        raise TooLargeError(f"a note of {len(comment)} bytes, limit {MAX_NOTE_BYTES}")
    return comment


def _bytes_since(files: dict[str, _File], time_ms: int) -> int:
    return sum(file.bytes for key, file in files.items() if _time_ms(key) >= time_ms)


def _time_ms(picture_id: str) -> int:
    return int(picture_id.split("-")[1])
