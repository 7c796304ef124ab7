"""A labelled folder that grows: each row once, across restarts, whatever is wrong with some of them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_agent.database import Database
from edge_agent.labelled_folder import LabelledFolder, read_listing
from edge_agent.queue import OfflineQueue
from primespark.core.settings import OfflineSettings
from primespark.errors import InvalidInputError


def image(level: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), level, np.uint8)).save(file, kind)
    return file.getvalue()


def leave(folder: Path, rows: Iterable[tuple[str, str]], images: bool = True) -> None:
    folder.mkdir(exist_ok=True)
    listing = folder / "labels.csv"
    text = listing.read_text() if listing.exists() else "file,label\n"
    for name, label in rows:
        text += f"{name},{label}\n"
        if images:
            (folder / name).write_bytes(image(len(text) % 255))
    staged = folder / "labels.staged"
    staged.write_text(text)
    staged.replace(listing)


@contextlib.asynccontextmanager
async def watching(folder: Path, database: Database) -> AsyncIterator[OfflineQueue]:
    queue = OfflineQueue(database, OfflineSettings())
    task = asyncio.create_task(LabelledFolder(folder, queue).run())
    try:
        yield queue
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def labels(queue: OfflineQueue, count: int) -> list[dict[str, str]]:
    async with asyncio.timeout(10):
        while (await queue.status()).pending < count:  # noqa: ASYNC110 (asked of the database)
            await asyncio.sleep(0.01)
    rows = await queue._database.run(lambda c: c.execute("SELECT tail FROM operation ORDER BY id").fetchall())
    return [json.loads(b"{" + tail)["value"] for (tail,) in rows]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.labelled_folder._POLL_S", 0.005)


async def test_rows_are_taken_once_as_the_listing_grows_and_after_a_restart(tmp_path: Path, database: Database) -> None:
    folder = tmp_path / "camera"
    async with watching(folder, database) as queue:
        leave(folder, [(f"a-{n}.png", str(n % 10)) for n in range(150)])
        assert len(await labels(queue, 150)) == 150
        leave(folder, [("b.png", "7")])
        assert (await labels(queue, 151))[-1]["sample"] == "b"
    async with watching(folder, database) as queue:
        leave(folder, [("c.png", "8")])
        taken = await labels(queue, 152)
    assert [value["sample"] for value in taken] == [*(f"a-{n}" for n in range(150)), "b", "c"]
    assert taken[-1] == {
        "dataset": "digits", "sample": "c", "label": "8",
        "image_png_base64": base64.b64encode((folder / "c.png").read_bytes()).decode(),
    }  # fmt: skip


async def test_bad_rows_do_not_hold_up_good_ones(tmp_path: Path, database: Database) -> None:
    folder = tmp_path / "camera"
    leave(folder, [("good.png", "1"), ("late.png", "2"), ("../secret.png", "3"), ("text.png", "4"), ("jpeg.jpg", "5")])
    (folder / "late.png").unlink()
    (folder / "text.png").write_text("no image")
    (folder / "jpeg.jpg").write_bytes(image(9, "JPEG"))
    async with watching(folder, database) as queue:
        first = await labels(queue, 2)
        assert [value["sample"] for value in first] == ["good", "jpeg"]
        assert base64.b64decode(first[1]["image_png_base64"]).startswith(b"\x89PNG")
        (folder / "late.png").write_bytes(image(1))
        leave(folder, [("next.png", "6")])
        assert [value["sample"] for value in (await labels(queue, 4))[2:]] == ["late", "next"]


@pytest.mark.parametrize("row", ["a.p\0ng,1", "x\0y/a.png,1", "a.png,\0"])
async def test_a_row_with_nul_does_not_end_the_watching(tmp_path: Path, database: Database, row: str) -> None:
    (tmp_path / "labels.csv").write_text(f"file,label\n{row}\ngood.png,2\n")
    for name in ("a.png", "good.png"):
        (tmp_path / name).write_bytes(image(3))
    async with watching(tmp_path, database) as queue:
        assert [value["sample"] for value in await labels(queue, 1)] == ["good"]


def test_a_correction_and_its_withdrawal_are_rows_of_their_own(tmp_path: Path) -> None:
    leave(tmp_path, [("a.png", "1"), ("a.png", "7"), ("a.png", "1")])
    assert len({row.key for row in read_listing(tmp_path / "labels.csv")}) == 3


@pytest.mark.parametrize("content", [b"", b"name,label\n", b"\xff\xfe", b'file,label\n"' + b"x" * 200_000])
def test_a_bad_listing_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(InvalidInputError):
        read_listing(tmp_path / "labels.csv")
