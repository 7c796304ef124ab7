"""The disk's entries: room, time, damage, and what is left behind."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_agent.cache.store import Attempt, EntryStore
from edge_agent.cache.values import ENTRY_BYTES, Stored
from primespark.core.cache_settings import CachePolicy
from primespark.errors import DeadlineExceededError, UnavailableError

LARGE = b"x" * 70_000


@dataclass(slots=True)
class World:
    """What a store asks of the world: the time, and the disk that others leave it."""

    now: float = 1e9
    free: int = 10**12


Make = Callable[..., EntryStore]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def make(tmp_path: Path, world: World) -> Iterator[Make]:
    made = []

    def build(limit: int = 10_000_000, policy: CachePolicy = CachePolicy.LRU) -> EntryStore:
        store = EntryStore(
            tmp_path / "disk.db", tmp_path / "values", limit, policy,
            free_bytes=lambda: max(0, world.free - store.bytes), clock=lambda: world.now,
        )  # fmt: skip
        made.append(store)
        store.open()
        return store

    yield build
    for store in made:
        store.close()


def files_in(folder: Path) -> list[Path]:
    return [path for path in (folder / "values").rglob("*") if path.is_file()]


def keys_of(store: EntryStore, keys: range) -> list[int]:
    return [key for key in keys if store.get(f"k{key}") is not None]


def test_it_takes_no_more_than_half_of_what_is_free(make: Make, world: World) -> None:
    world.free = 100_000
    store = make()
    assert store.limit_bytes == 50_000
    for number in range(200):
        store.set(f"k{number}", Stored(b"x" * 1000))
    assert store.bytes <= 50_000
    # The disk fills with other things: the cache gives way.
    world.free = 0
    for number in range(200):
        store.set(f"k{number}", Stored(b"x" * 1000))
    assert store.bytes < 15_000


def test_lru_keeps_what_was_read_across_a_restart(make: Make) -> None:
    limit = 100 * (ENTRY_BYTES + 1000 + 3)
    first = make(limit)
    for number in range(90):
        first.set(f"k{number}", Stored(b"x" * 1000))
    assert keys_of(first, range(10)) == list(range(10))
    first.close()
    second = make(limit)
    for number in range(100, 150):
        second.set(f"k{number}", Stored(b"x" * 1000))
    assert keys_of(second, range(10)) == list(range(10))
    assert keys_of(second, range(10, 40)) == []


def test_lfu_keeps_what_is_read_often_and_s3fifo_what_is_read_at_all(make: Make, tmp_path: Path) -> None:
    for policy in (CachePolicy.LFU, CachePolicy.S3FIFO):
        store = make(100 * 1200, policy)
        store.clear()
        for number in range(20):
            store.set(f"k{number}", Stored(b"x" * 1000))
        for _ in range(3):
            assert keys_of(store, range(20)) == list(range(20))
        for number in range(1000, 1200):
            store.set(f"k{number}", Stored(b"x" * 1000))
        assert keys_of(store, range(20)) == list(range(20)), policy
        store.close()


def test_ttl_lets_go_of_what_ends_first_and_of_what_has_ended(make: Make, world: World) -> None:
    store = make(100 * 1200, CachePolicy.TTL)
    for number in range(95):
        store.set(f"k{number}", Stored(b"x" * 1000, ttl_s=1000 - number))
    for number in range(200, 210):
        store.set(f"k{number}", Stored(b"x" * 1000))
    assert keys_of(store, range(90, 95)) == []
    assert keys_of(store, range(50)) == list(range(50))
    world.now += 2000
    store.set("later", Stored(b"x"))
    assert keys_of(store, range(100)) == []
    assert store.entries == 11


def test_a_clock_that_was_set_back_makes_the_age_unknown(make: Make, world: World) -> None:
    store = make()
    store.set("limited", Stored(b"1", ttl_s=60))
    store.set("endless", Stored(b"2"))
    world.now -= 3600
    assert store.get("limited") is None
    assert store.get("endless") is not None


def test_a_file_that_is_gone_cut_or_changed_is_a_miss(make: Make, tmp_path: Path) -> None:
    store = make()
    for harm in (None, LARGE[:-1], b"y" + LARGE[1:], LARGE * 2):
        store.set("key", Stored(LARGE))
        (file,) = files_in(tmp_path)
        file.unlink() if harm is None else file.write_bytes(harm)
        assert store.get("key") is None
        assert (store.entries, store.bytes, files_in(tmp_path)) == (0, 0, [])


def test_a_row_that_is_another_keys_is_a_miss(make: Make, tmp_path: Path) -> None:
    store = make()
    store.set("one", Stored(b"of one"))
    with sqlite3.connect(tmp_path / "disk.db") as other:
        other.execute("UPDATE entry SET key = 'two'")
    other.close()
    assert store.get("two") is None


@pytest.mark.parametrize("harm", [b"", b"no database at all" * 500, None], ids=["empty", "garbage", "newer"])
def test_an_index_of_no_use_is_begun_anew(make: Make, tmp_path: Path, harm: bytes | None) -> None:
    store = make()
    store.set("key", Stored(LARGE))
    store.close()
    if harm is None:
        with sqlite3.connect(tmp_path / "disk.db") as other:
            other.execute("PRAGMA user_version = 99")
        other.close()
    else:
        (tmp_path / "disk.db").write_bytes(harm)
    again = make()
    assert (again.entries, again.get("key")) == (0, None)
    assert again.sweep() == 1
    assert files_in(tmp_path) == []
    again.set("key", Stored(LARGE))
    assert again.sweep() == 0
    assert again.get("key") == Stored(LARGE)


def test_an_index_damaged_while_it_is_open_is_begun_anew_by_the_next_open(make: Make, tmp_path: Path) -> None:
    store = make()
    for number in range(300):
        store.set(f"k{number}", Stored(b"x" * 4000))
    store.close()
    store = make()
    with (tmp_path / "disk.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 200)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        keys_of(store, range(300))
    assert store.index.note(caught.value)
    store.open()
    assert store.set("key", Stored(b"1"))
    assert store.get("key") == Stored(b"1")


def test_one_process_has_it(make: Make) -> None:
    make()
    with pytest.raises(UnavailableError) as caught:
        make()
    assert caught.value.code == "cache_in_use"


def test_a_write_that_nobody_waits_for_has_no_effect(make: Make, tmp_path: Path) -> None:
    store = make()
    store.set("key", Stored(b"1"))
    with pytest.raises(DeadlineExceededError):
        store.set("key", Stored(LARGE), Attempt(is_over=True))
    assert store.get("key") == Stored(b"1")
    assert files_in(tmp_path) == []


def test_a_full_disk_leaves_the_old_value(make: Make, tmp_path: Path) -> None:
    store = make()
    store.set("key", Stored(b"1"))
    store.index.writer().execute("PRAGMA max_page_count = 1")
    number = 0

    def fill() -> None:
        nonlocal number
        while True:
            number += 1
            store.set(f"k{number}", Stored(b"x" * 60_000))

    with pytest.raises(sqlite3.OperationalError, match="full"):
        fill()
    entries = store.entries
    store.index.writer().execute("PRAGMA max_page_count = 1000000")
    assert store.get("key") == Stored(b"1")
    assert store.set("new", Stored(b"2"))
    assert store.entries == entries + 1
