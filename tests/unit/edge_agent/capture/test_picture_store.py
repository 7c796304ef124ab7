"""The bounds of kept pictures as laws, and what a kill or a stranger can do to them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edge_agent.capture.geometry import Box
from edge_agent.capture.picture_store import PictureKind, PictureStore
from edge_agent.capture.pictures import MAX_SIDE, MAX_TRAVELLING_BYTES, crop, cut, draw_boxes, encode_jpeg
from primespark.core.capture_settings import KeptSettings, RegionSettings
from primespark.errors import NotFoundError, TooLargeError, UnavailableError

DAY_MS = 86_400_000
START_MS = 1_700_000_000_000


class Clock:
    """A wall clock that a test turns."""

    def __init__(self) -> None:
        self.ms = START_MS

    def __call__(self) -> int:
        return self.ms


def noise(side: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def store(
    folder: Path, clock: Clock, max_bytes: int = 10**9, max_days: float = 14.0, kind: PictureKind = PictureKind.EVENT
) -> PictureStore:
    return PictureStore(folder, kind, KeptSettings.model_construct(max_bytes=max_bytes, max_days=max_days), 0, clock)


def on_disk(folder: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_size for path in folder.iterdir()}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3 * DAY_MS), st.integers(1, 60)), min_size=1, max_size=15))
def test_kept_are_the_newest_within_bytes_and_days(steps: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        clock, folder, taken = Clock(), Path(name), list[tuple[int, str, int]]()
        for pause_ms, side in steps:
            clock.ms += pause_ms
            # A new store for each: what it knows is what is on disk.
            kept = store(folder, clock, 30_000, 5.0).keep(noise(side, side), {"n": len(taken)})
            assert kept is not None
            taken.append((clock.ms, kept, on_disk(folder)[kept]))
            expected, total = set(), 0
            # Ids of one moment have no order of their own.
            for time_ms, key, size in sorted(taken, key=lambda one: one[1], reverse=True):
                total += size
                if total > 30_000 or time_ms < clock.ms - 5 * DAY_MS:
                    break
                expected.add(key)
            assert sum(on_disk(folder).values()) <= 30_000
            if len({time_ms for time_ms, _, _ in taken}) == len(taken):
                assert set(on_disk(folder)) == expected


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, DAY_MS), st.integers(1, 60)), max_size=12))
def test_a_day_never_takes_more_than_its_budget(steps: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        clock, folder, by_day = Clock(), Path(name), dict[int, int]()
        for pause_ms, side in steps:
            clock.ms += pause_ms
            day, data = clock.ms // DAY_MS, len(encode_jpeg(noise(side, side), comment=b"{}"))
            kept = store(folder, clock, kind=PictureKind.EXAMPLE).keep(noise(side, side), {}, daily_bytes=10_000)
            assert (kept is not None) == (by_day.get(day, 0) + data <= 10_000)
            by_day[day] = by_day.get(day, 0) + (data if kept else 0)


def test_a_list_is_paged_from_the_newest_with_what_was_noted(tmp_path: Path) -> None:
    clock = Clock()
    pictures = store(tmp_path, clock)
    for number in range(5):
        clock.ms += 1000
        pictures.keep(noise(8), {"number": number, "text": "Tür ☃"})
    seen, cursor = [], None
    while True:
        page = store(tmp_path, clock).list(cursor, 2)
        seen += page.pictures
        cursor = page.next_cursor
        if cursor is None:
            break
    assert [picture.note["number"] for picture in seen] == [4, 3, 2, 1, 0]
    assert seen[0].note["text"] == "Tür ☃"
    assert seen[0].time.timestamp() * 1000 == clock.ms
    data = pictures.read(seen[0].id)
    assert len(data) == seen[0].bytes
    assert Image.open(io.BytesIO(data)).size == (8, 8)


def test_sounds_share_the_bytes_and_the_order_of_pictures(tmp_path: Path) -> None:
    clock, hiss = Clock(), np.random.default_rng(1).uniform(-1, 1, 20_000).astype(np.float32)
    for number in range(6):
        clock.ms += 1000
        pictures = store(tmp_path, clock, max_bytes=90_000)
        note = {"number": number, "text": "Tür ☃"}
        assert pictures.keep_sound(hiss, note) if number % 2 else pictures.keep(noise(60, number), note)
    seen = store(tmp_path, clock).list(None, 10).pictures
    assert [(one.note["number"], one.media_type) for one in seen] == [
        (5, "audio/flac"),
        (4, "image/jpeg"),
        (3, "audio/flac"),
        (2, "image/jpeg"),
    ]
    assert sum(one.bytes for one in seen) <= 90_000
    data, media_type = store(tmp_path, clock).read_file(seen[0].id)
    assert (data[:4], media_type, len(data)) == (b"fLaC", "audio/flac", seen[0].bytes)
    clock.ms += 15 * DAY_MS
    store(tmp_path, clock).expire()
    assert on_disk(tmp_path) == {}


def test_no_path_comes_from_outside(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    pictures = store(tmp_path / "kept", Clock())
    kept = pictures.keep(noise(8), {})
    for name in ("../secret", "secret", "", ".", f"../kept/{kept}", f"{kept}.jpg", "event-0000000000000-00000000"):
        with pytest.raises(NotFoundError):
            pictures.read(name)


def test_age_is_reached_without_a_new_picture(tmp_path: Path) -> None:
    clock = Clock()
    pictures = store(tmp_path, clock, max_days=2)
    pictures.keep(noise(8), {})
    clock.ms += 2 * DAY_MS
    pictures.expire()
    assert on_disk(tmp_path)
    clock.ms += 1
    pictures.expire()
    assert on_disk(tmp_path) == {}


def test_what_cannot_be_kept_is_told(tmp_path: Path) -> None:
    limits = KeptSettings()
    with pytest.raises(UnavailableError) as caught:
        PictureStore(tmp_path, PictureKind.EVENT, limits, 2**62).keep(noise(8), {})
    assert caught.value.code == "disk_full"
    with pytest.raises(TooLargeError):
        store(tmp_path, Clock()).keep(noise(8), {"text": "x" * 40_000})
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnavailableError) as caught:
        store(tmp_path / "file" / "kept", Clock()).keep(noise(8), {})
    assert caught.value.code == "disk_error"


def test_what_a_power_cut_left_behind_is_no_picture(tmp_path: Path) -> None:
    kept = store(tmp_path, Clock()).keep(noise(8), {})
    (tmp_path / "event-1700000000001-00000000.jpg").write_bytes(b"")
    (tmp_path / f".{kept}.jpg.1.staging").write_bytes(b"half")
    page = store(tmp_path, Clock()).list(None, 10)
    assert [picture.id for picture in page.pictures] == [kept]
    assert not list(tmp_path.glob(".*"))


def test_after_a_kill_each_picture_is_whole_or_absent(tmp_path: Path) -> None:
    code = f"""
import sys, numpy as np
from pathlib import Path
from edge_agent.capture.picture_store import PictureKind, PictureStore
from primespark.core.capture_settings import KeptSettings
limits = KeptSettings.model_construct(max_bytes=400_000, max_days=1)
pictures = PictureStore(Path({str(tmp_path)!r}), PictureKind.EVENT, limits, 0)
pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
number = 0
while True:
    kept = pictures.keep(pixels, {{"number": number}})
    number += 1
    sys.stdout.write(kept + "\\n")
    sys.stdout.flush()
"""
    for kills in range(3):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        told = [process.stdout.readline().strip() for _ in range(3 + 4 * kills)]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        again = PictureStore(
            tmp_path, PictureKind.EVENT, KeptSettings.model_construct(max_bytes=400_000, max_days=1), 0
        )
        page = again.list(None, 500)
        assert told[-1] in {picture.id for picture in page.pictures}
        for picture in page.pictures:
            Image.open(io.BytesIO(again.read(picture.id))).load()
        assert sum(picture.bytes for picture in page.pictures) <= 400_000
        process.stdout.close()


def test_a_write_that_breaks_off_leaves_no_picture(tmp_path: Path) -> None:
    code = f"""
import resource, numpy as np
from pathlib import Path
from edge_agent.capture.picture_store import PictureKind, PictureStore
from primespark.core.capture_settings import KeptSettings
from primespark.errors import UnavailableError
pictures = PictureStore(Path({str(tmp_path)!r}), PictureKind.EVENT, KeptSettings(), 0)
pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    pictures.keep(pixels, {{}})
except UnavailableError as error:
    print(error.code)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert process.stdout.strip() == "disk_error"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(1, 1), (2, 3000), (3000, 2), (1080, 1920)], ids=str)
@pytest.mark.parametrize("limit", [MAX_TRAVELLING_BYTES, 2_000])
def test_a_jpeg_is_within_its_bytes_and_its_side(size: tuple[int, int], limit: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    data = encode_jpeg(pixels, limit)
    assert len(data) <= limit
    image = Image.open(io.BytesIO(data))
    assert max(image.size) <= MAX_SIDE
    image.load()


def test_regions_and_crops_are_of_the_place_they_name() -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[20:40, 100:150] = 255
    seen = cut(pixels, RegionSettings(x_min=0.5, x_max=0.75, y_min=0.2, y_max=0.4))
    assert seen.shape == (20, 50, 3)
    assert seen.min() == 255
    around = crop(pixels, Box(0.5, 0.2, 0.75, 0.4))
    assert around.shape == (24, 60, 3)
    assert around.max() == 255
    assert crop(pixels, Box(1.0, 1.0, 1.2, 1.2)).size > 0
    assert cut(pixels[:1, :1], RegionSettings(x_min=0.9)).shape == (1, 1, 3)


def test_boxes_are_drawn_where_they_are_and_only_there() -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    box = {"x_min": 50.0, "y_min": 20.0, "x_max": 150.0, "y_max": 80.0}
    drawn = draw_boxes(pixels, [{"label": "cat", "score": 0.9, "box": box}, {"label": "no box", "score": 0.5}])
    assert drawn[50, 50].any()
    assert drawn[20, 120].any()
    assert not drawn[:18].any()
    assert not drawn[:, :48].any()
    assert not pixels.any()


def test_a_note_is_json(tmp_path: Path) -> None:
    kept = store(tmp_path, Clock()).keep(noise(4), {"a": [1, None]})
    (path,) = tmp_path.iterdir()
    assert path.stem == kept
    assert json.loads(Image.open(path).info["comment"]) == {"a": [1, None]}


STRANGE = "event-1700000000001-0a1b2c3d"


@pytest.mark.parametrize("target", ["/etc/hostname", "nowhere", f"{STRANGE}.jpg"])
def test_links_are_neither_followed_nor_in_the_way(tmp_path: Path, target: str) -> None:
    kept = store(tmp_path, Clock()).keep(noise(8), {})
    (tmp_path / f"{STRANGE}.jpg").symlink_to(target)
    check_only(tmp_path, kept)


@pytest.mark.parametrize("lay", [os.mkfifo, Path.mkdir])
def test_what_is_no_file_is_not_in_the_way(tmp_path: Path, lay: Callable[[Path], None]) -> None:
    kept = store(tmp_path, Clock()).keep(noise(8), {})
    lay(tmp_path / f"{STRANGE}.jpg")
    check_only(tmp_path, kept)


def check_only(folder: Path, kept: str | None) -> None:
    """A store that starts in the folder has this picture and no other, and works."""
    clock = Clock()
    started = store(folder, clock)
    assert [picture.id for picture in started.list(None, 10).pictures] == [kept]
    with pytest.raises(NotFoundError):
        started.read(STRANGE)
    clock.ms += 20 * DAY_MS
    started.expire()
    assert started.list(None, 10).pictures == []
    assert started.keep(noise(8), {}) is not None


def huge() -> bytes:
    """A picture whose header tells of 4 billion pixels."""
    data = bytearray(encode_jpeg(noise(8), comment=b"{}"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = b"\xff\xdc\xff\xdc"
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        huge(),
        *(
            encode_jpeg(noise(8), comment=comment)
            for comment in (b"[1]", b'"a"', b"1", b'{"score": NaN}', b"[" * 30_000, b'{"label": "\\ud800"}')
        ),
    ],
)
def test_a_damaged_picture_is_not_listed(tmp_path: Path, data: bytes) -> None:
    kept = store(tmp_path, Clock()).keep(noise(8), {"label": "cup"})
    (tmp_path / f"{STRANGE}.jpg").write_bytes(data)
    assert [picture.id for picture in store(tmp_path, Clock()).list(None, 10).pictures] == [kept]
