"""A process that writes into a cache is killed at random moments: each entry is whole or absent, no file is left."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_agent.cache.store import EntryStore
from tests.helpers import rounds
from tests.integration.edge_agent.cache_writer import KEYS, number_in, store_in

KILLS = rounds(4, 50)


@pytest.mark.prove
@pytest.mark.parametrize("limit", [100_000_000, 3_000_000], ids=["with room", "full"])
def test_an_entry_is_whole_or_absent(tmp_path: Path, limit: int) -> None:
    chance = random.Random(11)
    # The least number each key's value may have, and None where it may also be absent.
    written: dict[str, int] = {}
    first = 1
    for _ in range(KILLS):
        lines = _write_until_killed(tmp_path, limit, first, chance.uniform(0.05, 0.3))
        for verb, key, number in lines:
            if verb == "set":
                written[key] = int(number)
            else:
                written = {} if verb == "clear" else {name: at for name, at in written.items() if name != key}
        first = int(lines[-1][2]) + 1000
        store = store_in(tmp_path, limit)
        store.open()
        found = {key: stored.data for key in KEYS if (stored := store.get(key)) is not None}
        numbers = {key: number_in(key, data) for key, data in found.items()}
        if limit > 10_000_000:
            # Nothing was let go, so what was answered for is there, or something later.
            assert all(numbers.get(key, 0) >= number for key, number in written.items())
        else:
            assert all(number >= written.get(key, 0) for key, number in numbers.items())
        store.sweep()
        _check_books(tmp_path, store)
        store.close()
    assert first > 1000


def _check_books(folder: Path, store: EntryStore) -> None:
    """The counts are those of the rows, and each file has a row."""
    connection = sqlite3.connect(folder / "disk.db")
    entries, size = connection.execute("SELECT count(*), coalesce(sum(size), 0) FROM entry").fetchone()
    named = {name for (name,) in connection.execute("SELECT file FROM entry WHERE file IS NOT NULL")}
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert (store.entries, store.bytes) == (entries, size)
    assert {path.name for path in (folder / "values").rglob("*") if path.is_file()} == named


def _write_until_killed(folder: Path, limit: int, first: int, seconds: float) -> list[list[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.edge_agent.cache_writer", str(folder), str(limit), str(first)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline()]
    time.sleep(seconds)  # the moment of the kill, not a synchronisation
    process.kill()
    lines += process.stdout.read().splitlines(keepends=True)
    process.wait()
    return [line.split() for line in lines if line.endswith("\n")]
