"""Blobs are what their name says, or an error."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from primespark.errors import IntegrityError, NotFoundError
from primespark.store.blobs import BlobStore


def test_what_is_put_can_be_got(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "new" / "blobs")
    for data in (b"", b"one", b"x" * 100_000):
        name = store.put(data)
        assert name == hashlib.sha256(data).hexdigest() == store.put(data)
        assert store.exists(name)
        assert store.get(name) == data == store.path(name).read_bytes()
        assert store.path(name).stat().st_mode & 0o077 == 0


def test_many_writers_of_one_blob(tmp_path: Path) -> None:
    data = b"y" * 1_000_000
    with ThreadPoolExecutor(8) as pool:
        (name,) = set(pool.map(lambda _: BlobStore(tmp_path).put(data), range(16)))
    assert BlobStore(tmp_path).get(name) == data
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [BlobStore(tmp_path).path(name)]


def test_a_damaged_blob_is_found_out_and_healed(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    name = store.put(b"good")
    store.path(name).write_bytes(b"bad")
    with pytest.raises(IntegrityError) as caught:
        store.get(name)
    assert caught.value.code == "damaged_blob"
    assert store.get(store.put(b"good")) == b"good"


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n", "a" * 64])
def test_what_is_not_there_is_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError):
        BlobStore(tmp_path).get(name)


def old(store: BlobStore, data: bytes) -> str:
    """A blob that was put 1,000 s after the epoch."""
    name = store.put(data)
    os.utime(store.path(name), (1000, 1000))
    return name


def test_only_what_is_old_is_removed(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    name = old(store, b"one")
    assert dict(store.kept_since()) == {name: 1000}
    assert not store.remove_older(name, before=1000)
    assert store.get(name) == b"one"
    assert store.remove_older(name, before=1001)
    assert not store.exists(name)
    assert not store.remove_older(name, before=1001)
    assert not store.keep(name)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_is_put_or_kept_again_is_young(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    for make_young in (store.put, lambda data: store.keep(hashlib.sha256(data).hexdigest())):
        name = old(store, b"one")
        make_young(b"one")
        assert not store.remove_older(name, before=2000)
        assert store.get(name) == b"one"


def test_a_blob_put_while_it_is_removed_is_there_afterwards(tmp_path: Path) -> None:
    store, data = BlobStore(tmp_path), b"z" * 10_000
    for _ in range(50):
        name = old(store, data)
        with ThreadPoolExecutor(4) as pool:
            putting = [pool.submit(store.put, data) for _ in range(3)]
            pool.submit(store.remove_older, name, 2000).result()
            assert {future.result() for future in putting} == {name}
        assert store.get(name) == data


def test_what_a_kill_left_is_mended(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    name = old(store, b"one")
    store.path(name).rename(store.path(name).with_name(f".doomed-{name}"))
    for staging, seconds in ((".staging-old", 10), (".staging-new", 5000)):
        path = store.path(name).with_name(staging)
        path.write_bytes(b"half")
        os.utime(path, (seconds, seconds))
    store.tidy(before=2000)
    assert store.get(name) == b"one"
    assert sorted(path.name for path in store.path(name).parent.iterdir()) == [".staging-new", name]
