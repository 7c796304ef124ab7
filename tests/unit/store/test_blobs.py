"""Blobs are what their name says, or an error."""

from __future__ import annotations

import hashlib
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
