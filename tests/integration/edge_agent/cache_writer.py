"""A process that writes into a cache's store until it is killed, and prints each value once it was answered for."""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path

from edge_agent.cache.store import EntryStore
from edge_agent.cache.values import Stored
from primespark.core.cache_settings import CachePolicy

KEYS = tuple(f"key-{number}" for number in range(40))
SIZES = (10, 2_000, 70_000, 300_000)


def value(key: str, number: int, size: int) -> bytes:
    """Bytes that tell which they are, and whether they are all."""
    head = f"{key} {number} {size} ".encode()
    body = (head * (size // len(head) + 1))[:size]
    return head + hashlib.sha256(head + body).hexdigest().encode() + body


def number_in(key: str, data: bytes) -> int:
    """The number of a value, which must be whole and of this key."""
    name, number, size, _ = data[:80].split(b" ", 3)
    assert name == key.encode()
    assert data == value(key, int(number), int(size))
    return int(number)


def store_in(folder: Path, limit: int) -> EntryStore:
    """The store of the test."""
    return EntryStore(folder / "disk.db", folder / "values", limit, CachePolicy.LFU)


def main(folder: Path, limit: int, first: int) -> None:
    """Write for ever."""
    store, chance = store_in(folder, limit), random.Random(first)
    store.open()
    store.sweep()
    for number in range(first, sys.maxsize):
        key = chance.choice(KEYS)
        if chance.random() < 0.1:
            sys.stdout.write(f"delete {key} {number}\n")
            store.delete(key)
        elif chance.random() < 0.01:
            sys.stdout.write(f"clear - {number}\n")
            store.clear()
        else:
            store.set(key, Stored(value(key, number, chance.choice(SIZES))))
            sys.stdout.write(f"set {key} {number}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
