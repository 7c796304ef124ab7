"""Files arrive whole or not at all, whatever the link does, and what arrived is not asked for again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_agent.slots import download
from edge_agent.slots.download import BlobFolder, BlobPart
from edge_agent.slots.pieces import compare
from primespark.core.identifiers import sha256_hex
from primespark.errors import IntegrityError, NotFoundError, UnavailableError
from primespark.sync.chunks import MAX_CHUNK_BYTES, ChunkList, cut_bytes


class Link:
    """A source of one blob that breaks off where it is told to.

    Args:
        data: What it sends.
        cuts: After how many bytes each answer breaks off; then none does.
        knows_ranges: Whether it goes on where it is asked to.
        piece: Bytes at once.
    """

    def __init__(self, data: bytes, cuts: list[int], *, knows_ranges: bool = True, piece: int = 7) -> None:
        self._data = data
        self._cuts = list(cuts)
        self._knows_ranges = knows_ranges
        self._piece = piece
        self._end = len(data)
        self.told: ChunkList | None = None
        self.sent = 0
        self.answers = 0

    @contextlib.asynccontextmanager
    async def blob_from(self, sha256: str, offset: int, end: int | None = None) -> AsyncIterator[BlobPart]:
        self.answers += 1
        start = offset if self._knows_ranges else 0
        self._end = end if self._knows_ranges and end is not None else len(self._data)
        is_part = self._knows_ranges and end is not None
        yield BlobPart(start, self._chunks(start, self._cuts.pop(0) if self._cuts else None), is_part)

    async def chunks_of(self, sha256: str) -> ChunkList:
        if self.told is None:
            raise NotFoundError("it does not tell")
        return self.told

    async def _chunks(self, start: int, cut: int | None) -> AsyncIterator[bytes]:
        end = self._end if cut is None else min(start + cut, self._end)
        for place in range(start, end, self._piece):
            chunk = self._data[place : min(place + self._piece, end)]
            self.sent += len(chunk)
            yield chunk
        if cut is not None:
            raise UnavailableError("the link broke")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def fetch(folder: BlobFolder, sha256: str, link: Link, size: int | None, max_bytes: int = 10_000) -> int:
    """How often it had to be tried."""
    for tries in range(1, 100):
        with contextlib.suppress(UnavailableError):
            await folder.fetch(sha256, link, max_bytes, size)
            return tries
    raise AssertionError("it never came")


@settings(max_examples=60)
@given(
    data=st.binary(min_size=1, max_size=400),
    cuts=st.lists(st.integers(0, 120), max_size=8),
    knows_ranges=st.booleans(),
    knows_size=st.booleans(),
    buffered=st.integers(1, 64),
)
def test_a_blob_arrives_whole_over_any_link(
    data: bytes, cuts: list[int], knows_ranges: bool, knows_size: bool, buffered: int
) -> None:
    sha256, link = sha256_hex(data), Link(data, cuts, knows_ranges=knows_ranges)
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "_PIECE_BYTES", buffered)
        folder = BlobFolder(Path(place), 0)
        asyncio.run(fetch(folder, sha256, link, len(data) if knows_size else None))
        assert folder.path(sha256).read_bytes() == data
        assert names(Path(place)) == [sha256]
        assert folder.path(sha256).stat().st_mode & 0o077 == 0
    if knows_ranges:
        # Every byte once: nothing that came before a cut is lost.
        assert link.sent == len(data)


@settings(max_examples=40)
@given(st.binary(min_size=1, max_size=200), st.binary(max_size=300), st.booleans())
def test_what_lay_there_before_never_gets_into_a_blob(data: bytes, left: bytes, knows_size: bool) -> None:
    sha256 = sha256_hex(data)
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / f"{sha256}.part").write_bytes(left)
        folder = BlobFolder(Path(place), 0)
        is_a_beginning = data.startswith(left)

        async def work() -> None:
            size = len(data) if knows_size else None
            try:
                await folder.fetch(sha256, Link(data, []), 10_000, size)
            except IntegrityError as error:
                code = error.code
            else:
                return
            # Nothing of it is left, so the next attempt begins anew.
            assert (code, is_a_beginning, names(Path(place))) == ("digest_mismatch", False, [])
            await folder.fetch(sha256, Link(data, []), 10_000, size)

        asyncio.run(work())
        assert folder.path(sha256).read_bytes() == data


@pytest.mark.parametrize(("size", "limit"), [(50, 1000), (None, 50)])
async def test_more_bytes_than_promised_are_not_taken(tmp_path: Path, size: int | None, limit: int) -> None:
    data = bytes(100_000)
    folder, link = BlobFolder(tmp_path, 0), Link(data, [])
    with pytest.raises(IntegrityError) as caught:
        await folder.fetch(sha256_hex(data), link, limit, size)
    assert caught.value.code == "digest_mismatch"
    assert link.sent <= 64
    assert not folder.path(sha256_hex(data)).exists()


@pytest.mark.parametrize("data", [b"other", b"shor"])
async def test_other_bytes_are_forgotten(tmp_path: Path, data: bytes) -> None:
    folder = BlobFolder(tmp_path, 0)
    with pytest.raises(IntegrityError) as caught:
        await folder.fetch(sha256_hex(b"short"), Link(data, []), 100, 5)
    assert caught.value.code == "digest_mismatch"
    assert names(tmp_path) == []


async def test_a_full_disk_is_told_before_anything_is_asked_for(tmp_path: Path) -> None:
    link = Link(b"data", [])
    with pytest.raises(UnavailableError) as caught:
        await BlobFolder(tmp_path, 2**62).fetch(sha256_hex(b"data"), link, 100, 4)
    assert (caught.value.code, link.answers) == ("disk_full", 0)


async def test_a_damaged_blob_is_not_there(tmp_path: Path) -> None:
    folder, sha256 = BlobFolder(tmp_path, 0), sha256_hex(b"data")
    await folder.fetch(sha256, Link(b"data", []), 100)
    assert await folder.holds(sha256)
    folder.path(sha256).write_bytes(b"rust")
    assert not await folder.holds(sha256)
    assert names(tmp_path) == []


async def test_who_leaves_a_download_finds_its_beginning_again(tmp_path: Path) -> None:
    data = bytes(range(200))
    folder, held = BlobFolder(tmp_path, 0), asyncio.Event()

    class Stalling(Link):
        async def _chunks(self, start: int, cut: int | None) -> AsyncIterator[bytes]:
            yield data[start : start + 50]
            held.set()
            await asyncio.Event().wait()

    fetching = asyncio.create_task(folder.fetch(sha256_hex(data), Stalling(data, []), 1000, len(data)))
    await held.wait()
    fetching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await fetching
    link = Link(data, [])
    await folder.fetch(sha256_hex(data), link, 1000, len(data))
    assert link.sent == 150


@pytest.mark.parametrize("size", [4, None])
async def test_what_a_kill_left_whole_is_not_asked_for(tmp_path: Path, size: int | None) -> None:
    (tmp_path / f"{sha256_hex(b'data')}.part").write_bytes(b"data")
    folder, link = BlobFolder(tmp_path, 0), Link(b"data", [])
    await folder.fetch(sha256_hex(b"data"), link, 100, size)
    assert (link.answers, names(tmp_path)) == (0, [sha256_hex(b"data")])


async def test_only_what_is_wanted_is_kept(tmp_path: Path) -> None:
    folder = BlobFolder(tmp_path, 0)
    for name in ("a", "b.part", "c", "d.part"):
        (tmp_path / name).touch()
    folder.keep_only({"a", "b"})
    assert names(tmp_path) == ["a", "b.part"]


def a_folder(path: Path) -> None:
    (path / "inside").mkdir(parents=True)
    (path / "inside" / "file").write_bytes(b"a file")


def a_link(path: Path) -> None:
    outside = path.parent.parent / "outside"
    outside.write_bytes(b"of somebody else")
    path.symlink_to(outside)


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("suffix", ["", ".part"])
@pytest.mark.parametrize("lay", [os.mkfifo, a_folder, a_link, a_link_to_itself])
async def test_what_is_no_file_makes_room_for_one(tmp_path: Path, lay: Callable[[Path], None], suffix: str) -> None:
    folder, data = BlobFolder(tmp_path / "blobs", 0), b"a model"
    sha256 = sha256_hex(data)
    lay(tmp_path / "blobs" / f"{sha256}{suffix}")
    lay(tmp_path / "blobs" / f"{'0' * 64}{suffix}")
    async with asyncio.timeout(20):
        assert not await folder.holds(sha256)
        await folder.fetch(sha256, Link(data, []), 100, len(data))
        assert await folder.holds(sha256)
    folder.keep_only({sha256})
    assert names(tmp_path / "blobs") == [sha256]
    if (tmp_path / "outside").exists():
        assert (tmp_path / "outside").read_bytes() == b"of somebody else"


SIZE = 2_000_000
versions = st.builds(
    lambda seed, places: (random.Random(seed).randbytes(SIZE), places),
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(0, SIZE - 20_000), st.integers(1, 20_000)), min_size=1, max_size=4),
)


def edited(data: bytes, places: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for start, length in places:
        changed[start : start + length] = random.Random(start).randbytes(length)
    return bytes(changed)


@settings(max_examples=25, deadline=None)
@given(versions, st.lists(st.integers(0, 200_000), max_size=4), st.booleans(), st.booleans())
def test_of_a_new_version_only_what_differs_comes(
    version: tuple[bytes, list[tuple[int, int]]], cuts: list[int], knows_ranges: bool, is_damaged: bool
) -> None:
    old, places = version
    new = edited(old, places)
    assume(new != old)  # one byte may be what it was
    sha256, link = sha256_hex(new), Link(new, cuts, knows_ranges=knows_ranges, piece=10_000)
    link.told = cut_bytes(new)
    known = {chunk.sha256 for chunk in cut_bytes(old).chunks}
    missing = sum(chunk.size for chunk in link.told.chunks if chunk.sha256 not in known)
    with tempfile.TemporaryDirectory() as place:
        folder = BlobFolder(Path(place), 0)
        older = folder.path(sha256_hex(old))
        older.write_bytes(old[:-1] + bytes([old[-1] ^ 1]) if is_damaged else old)
        asyncio.run(fetch(folder, sha256, link, SIZE, SIZE))
        assert folder.path(sha256).read_bytes() == new
        assert len(names(Path(place))) == 2
    if knows_ranges and not is_damaged:
        assert link.sent == missing
    if knows_ranges:
        assert link.sent <= missing + MAX_CHUNK_BYTES


@pytest.mark.parametrize("lie", ["none", "of another blob", "wrong chunks", "nothing shared"])
async def test_whatever_is_told_of_the_chunks_the_blob_comes(tmp_path: Path, lie: str) -> None:
    old = random.Random(1).randbytes(SIZE)
    new = old[:-1000] + bytes(1000) if lie != "nothing shared" else random.Random(2).randbytes(SIZE)
    folder, link = BlobFolder(tmp_path, 0), Link(new, [], piece=100_000)
    folder.path(sha256_hex(old)).write_bytes(old)
    right = cut_bytes(new)
    link.told = {
        "none": None,
        "of another blob": cut_bytes(old),
        "wrong chunks": right.model_copy(update={"chunks": cut_bytes(old).chunks}),
        "nothing shared": right,
    }[lie]
    await folder.fetch(right.sha256, link, SIZE, SIZE)
    assert folder.path(right.sha256).read_bytes() == new
    assert link.sent == SIZE
    assert names(tmp_path) == sorted([right.sha256, sha256_hex(old)])


async def test_a_file_that_changed_since_it_was_compared_gives_nothing(tmp_path: Path) -> None:
    old = random.Random(3).randbytes(SIZE)
    new = old + b"more"
    folder, link = BlobFolder(tmp_path, 0), Link(new, [], piece=100_000)
    older = folder.path(sha256_hex(old))
    older.write_bytes(old)
    pieces = compare(cut_bytes(new), [older])
    older.write_bytes(bytes(SIZE))
    assert all(piece.read() is None for piece in pieces if piece.sha256 is not None)
    older.unlink()
    assert pieces[0].read() is None
    link.told = cut_bytes(new)
    await folder.fetch(sha256_hex(new), link, len(new), len(new))
    assert link.sent == len(new)


async def test_a_part_that_came_short_is_gone_on_with(tmp_path: Path) -> None:
    old = random.Random(4).randbytes(SIZE)
    new = edited(old, [(500_000, 20_000), (1_500_000, 20_000)])

    class Short(Link):
        """Ends its first answer too early, as if that had been all."""

        async def _chunks(self, start: int, cut: int | None) -> AsyncIterator[bytes]:
            if self.answers == 1:
                self._end -= 1000
            async for chunk in super()._chunks(start, cut):
                yield chunk

    folder, link = BlobFolder(tmp_path, 0), Short(new, [], piece=1000)
    folder.path(sha256_hex(old)).write_bytes(old)
    link.told = cut_bytes(new)
    known = {chunk.sha256 for chunk in cut_bytes(old).chunks}
    assert await fetch(folder, sha256_hex(new), link, SIZE, SIZE) == 2
    assert link.sent == sum(chunk.size for chunk in link.told.chunks if chunk.sha256 not in known)
