"""A folder with images and a `labels.csv` (`file,label`) that grows: each row becomes one `labels` fact, once."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from edge_agent.queue import NewFact, OfflineQueue
from primespark.core.logging import get_logger
from primespark.core.values import is_storable_text
from primespark.errors import InvalidInputError, PrimeSparkError
from primespark.inference.images import decode_image
from primespark.sync.records import DataClass

DATASET = "digits"
LISTING = "labels.csv"
MAX_LISTING_BYTES = 16 * 1024 * 1024
# What the gate takes of an image in a label.
MAX_IMAGE_BYTES = 64 * 1024
MAX_PIXELS = 1_000_000
_POLL_S = 0.25
# Bad rows are tried again as often as this while the listing does not change: their image may come later.
_RETRY_S = 5.0
_CHUNK = 100
_PNG = b"\x89PNG\r\n\x1a\n"
_SAMPLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the listing; `key` tells it from every other row, the same words said again included."""

    file: str
    label: str
    key: str


class LabelledFolder:
    """Watches one folder.

    Args:
        folder: May not exist yet.
        queue: Takes the labels, and remembers which rows it took.
    """

    def __init__(self, folder: Path, queue: OfflineQueue) -> None:
        self._folder = folder
        self._queue = queue
        self._told: set[str] = set()

    async def run(self) -> NoReturn:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        seen: tuple[int, ...] | None = None
        retry_at = float("inf")
        while True:
            state = _state(self._folder / LISTING)
            if state is not None and (state != seen or loop.time() >= retry_at):
                # Taken before reading: what is added meanwhile makes another state.
                seen = state
                is_complete = await self._take_new_rows()
                retry_at = float("inf") if is_complete else loop.time() + _RETRY_S
            await asyncio.sleep(_POLL_S)

    async def _take_new_rows(self) -> bool:
        """Enqueue rows that were not; whether none is left."""
        try:
            rows = await asyncio.to_thread(read_listing, self._folder / LISTING)
            is_complete = True
            for start in range(0, len(rows), _CHUNK):
                is_complete &= await self._take(rows[start : start + _CHUNK])
        except (PrimeSparkError, OSError) as error:
            self._tell(LISTING, str(error))
            return False
        return is_complete

    async def _take(self, rows: list[Row]) -> bool:
        unknown = set(await self._queue.unknown([row.key for row in rows]))
        facts, keys, is_complete = [], [], True
        for row in rows:
            if row.key not in unknown:
                continue
            try:
                facts.append(await asyncio.to_thread(_to_fact, self._folder, row))
                keys.append(row.key)
            except (PrimeSparkError, OSError) as error:
                self._tell(row.file, str(error))
                is_complete = False
        if facts:
            await self._queue.enqueue(facts, once=keys)
            log.info("labels_enqueued", labels=len(facts))
        return is_complete

    def _tell(self, file: str, cause: str) -> None:
        """Log a fault once, not at every round."""
        if (told := f"{file}: {cause}") not in self._told and len(self._told) < 1000:
            self._told.add(told)
            log.warning("label_not_taken", file=file[:200], cause=cause[:200])


def read_listing(path: Path) -> list[Row]:
    """The rows of a listing, in order.

    Raises:
        InvalidInputError: No such header, not UTF-8, or too large.
    """
    with path.open("rb") as file:
        data = file.read(MAX_LISTING_BYTES + 1)
    if len(data) > MAX_LISTING_BYTES:
        raise InvalidInputError(f"{LISTING} is over {MAX_LISTING_BYTES} bytes", remedy="begin a new folder")
    try:
        table = list(csv.reader(io.StringIO(data.decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{LISTING}: {error}", remedy="write it as UTF-8 CSV") from None
    if not table or table[0] != ["file", "label"]:
        raise InvalidInputError(f"{LISTING} does not begin with `file,label`", remedy="add that first line")
    times: Counter[tuple[str, str]] = Counter()
    rows = []
    for cells in table[1:]:
        if len(cells) == 2:
            file_name, label = cells
            times[file_name, label] += 1
            rows.append(Row(file_name, label, f"label:{file_name}\0{label}\0{times[file_name, label]}"))
    return rows


def _to_fact(folder: Path, row: Row) -> NewFact:
    if not is_storable_text(row.file + row.label):
        raise InvalidInputError("a name or label with NUL", remedy="write text")
    path = folder / row.file
    if path.parent.resolve() != folder.resolve():
        raise InvalidInputError("the image is outside the folder", remedy="name files of the folder")
    if not _SAMPLE.fullmatch(path.stem) or not 0 < len(row.label) <= 100:
        raise InvalidInputError("a bad name or label", remedy="use letters, digits and _ . : -; 1 to 100 characters")
    with path.open("rb") as file:
        image = _as_png(file.read(MAX_IMAGE_BYTES + 1))
    value = {
        "dataset": DATASET, "sample": path.stem, "label": row.label,
        "image_png_base64": base64.b64encode(image).decode(),
    }  # fmt: skip
    return NewFact(DataClass.LABELS, value)


def _as_png(data: bytes) -> bytes:
    """The image as a PNG that decodes and is small enough."""
    if len(data) > MAX_IMAGE_BYTES:
        raise InvalidInputError(f"an image over {MAX_IMAGE_BYTES} bytes", remedy="cut out what the label names")
    pixels = decode_image(data, MAX_PIXELS)
    if data.startswith(_PNG):
        return data
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    if len(file.getvalue()) > MAX_IMAGE_BYTES:
        raise InvalidInputError(f"a PNG over {MAX_IMAGE_BYTES} bytes", remedy="send a smaller image")
    return file.getvalue()


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
