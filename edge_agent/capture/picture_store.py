"""Pictures kept on the device: a folder of JPEG files within bytes and days, each whole or absent whatever is killed.

A file's name is its id: kind, time and a random part, so names in order are times in order. What is known of a picture
is JSON in the file's own comment: there is no index that could differ from the files.
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
from primespark.core.capture_settings import KeptSettings
from primespark.core.clock import wall_clock_ms
from primespark.core.paths import private_directory, write_private
from primespark.errors import NotFoundError, TooLargeError, UnavailableError

# A JPEG comment has at most 65,533 bytes.
MAX_NOTE_BYTES = 32 * 1024
_DAY_MS = 86_400_000
_ID = re.compile(r"(event|example)-(\d{13})-[0-9a-f]{8}")

BYTES = Gauge("primespark_capture_pictures_bytes", "Bytes of pictures kept on the device.", ["kind"])


class PictureKind(StrEnum):
    """Why a picture is kept."""

    EVENT = "event"
    EXAMPLE = "example"


@dataclass(frozen=True, slots=True)
class Picture:
    """A kept picture; `note` is what was known when it was taken."""

    id: str
    time: datetime
    bytes: int
    note: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Some pictures, and what to go on with; None at the end."""

    pictures: list[Picture]
    next_cursor: str | None


class PictureStore:
    """The pictures of one kind; safe for threads, one process at a time.

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
        self._sizes: dict[str, int] | None = None

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
        comment = json.dumps(note).encode()
        if len(comment) > MAX_NOTE_BYTES:
            raise TooLargeError(f"a note of {len(comment)} bytes, limit {MAX_NOTE_BYTES}")
        data = encode_jpeg(pixels, comment=comment)
        with self._lock:
            try:
                return self._write(data, daily_bytes)
            except OSError as error:
                raise UnavailableError(
                    f"a picture cannot be written: {error.strerror}", remedy="check the disk", code="disk_error"
                ) from None

    def _write(self, data: bytes, daily_bytes: int | None) -> str | None:
        sizes, now_ms = self._load(), self._clock_ms()
        if daily_bytes is not None and _bytes_since(sizes, now_ms - now_ms % _DAY_MS) + len(data) > daily_bytes:
            return None
        self._make_room(sizes, len(data))
        if shutil.disk_usage(self._folder).free - len(data) < self._minimum_free_disk_bytes:
            raise UnavailableError("no space for a picture", remedy="free disk space", code="disk_full")
        picture_id = f"{self._kind}-{now_ms:013d}-{secrets.token_hex(4)}"
        write_private(self._path(picture_id), data)
        sizes[picture_id] = len(data)
        self._export(sizes)
        return picture_id

    def expire(self) -> None:
        """Remove what is too old."""
        with self._lock:
            sizes = self._load()
            self._make_room(sizes, 0)
            self._export(sizes)

    def list(self, before: str | None, limit: int) -> Page:
        """The newest first, at most `limit` of those with an id below `before`."""
        with self._lock:
            ids = sorted((key for key in self._load() if before is None or key < before), reverse=True)[:limit]
        pictures = (self._describe(key) for key in ids)
        next_cursor = ids[-1] if len(ids) == limit else None
        return Page([picture for picture in pictures if picture is not None], next_cursor)

    def read(self, picture_id: str) -> bytes:
        """The JPEG file.

        Raises:
            NotFoundError: No such picture, or no longer.
        """
        # Only names that this store has listed itself reach the file system.
        with self._lock:
            is_known = picture_id in self._load()
        with suppress(FileNotFoundError):
            if is_known:
                return self._path(picture_id).read_bytes()
        raise NotFoundError(f"no picture {picture_id[:64]!r}", remedy="list them with GET /api/v1/snapshots")

    def _load(self) -> dict[str, int]:
        """Sizes by id; read from the folder the first time, when remains of interrupted writes are removed too."""
        if self._sizes is None:
            private_directory(self._folder)
            self._sizes = {}
            for entry in os.scandir(self._folder):
                name = entry.name.removesuffix(".jpg")
                if _ID.fullmatch(name) and name.startswith(self._kind):
                    self._sizes[name] = entry.stat().st_size
                elif entry.name.startswith(".") and entry.name.endswith(".staging"):
                    Path(entry.path).unlink(missing_ok=True)
        return self._sizes

    def _make_room(self, sizes: dict[str, int], size: int) -> None:
        oldest_ms = self._clock_ms() - self._limits.max_days * _DAY_MS
        total = sum(sizes.values()) + size
        for key in sorted(sizes):
            if total <= self._limits.max_bytes and _time_ms(key) >= oldest_ms:
                return
            self._path(key).unlink(missing_ok=True)
            total -= sizes.pop(key)

    def _describe(self, picture_id: str) -> Picture | None:
        """What is known of a picture; None when it has gone, or a power cut left it empty."""
        try:
            data = self._path(picture_id).read_bytes()
            note = json.loads(read_comment(data))
        except (OSError, ValueError):
            return None
        time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=_time_ms(picture_id))
        return Picture(picture_id, time, len(data), note)

    def _path(self, picture_id: str) -> Path:
        return self._folder / f"{picture_id}.jpg"

    def _export(self, sizes: dict[str, int]) -> None:
        BYTES.labels(self._kind.value).set(sum(sizes.values()))


def _bytes_since(sizes: dict[str, int], time_ms: int) -> int:
    return sum(size for key, size in sizes.items() if _time_ms(key) >= time_ms)


def _time_ms(picture_id: str) -> int:
    return int(picture_id.split("-")[1])
