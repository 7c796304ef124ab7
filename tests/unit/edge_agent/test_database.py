"""Callers who come at the same moment share a commit, and nothing else; what was committed outlives a power cut."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest

from edge_agent.database import Database
from edge_agent.database_file import LOG_BYTES
from edge_agent.queue import OfflineQueue
from edge_agent.queue_status import read_totals
from primespark.core.settings import OfflineSettings
from primespark.errors import OverloadedError, UnavailableError
from tests.unit.edge_agent.test_queue import fact


async def test_many_callers_share_commits_and_each_has_its_seqs(database: Database) -> None:
    queue = OfflineQueue(database, OfflineSettings())
    commits = 0

    def count(_: sqlite3.Connection) -> None:
        nonlocal commits
        commits += 1

    database.watch(count)
    with held(database):
        callers = [asyncio.create_task(queue.enqueue([fact(n, "a"), fact(n, "b")])) for n in range(50)]
        await asyncio.sleep(0)
    seqs = await asyncio.gather(*callers)
    assert seqs == [[n, n] for n in range(1, 51)]
    # The first, the one that held the file, and all others at once.
    assert commits <= 4


async def test_one_that_does_not_fit_does_not_keep_the_others_out(database: Database) -> None:
    queue = OfflineQueue(database, OfflineSettings(capacity_operations=5))
    with held(database):
        callers = [asyncio.create_task(queue.enqueue([fact(n)] * size)) for n, size in enumerate((2, 9, 3, 1))]
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert outcomes[0] == [1, 2]
    assert isinstance(outcomes[1], OverloadedError)
    assert outcomes[2] == [3, 4, 5]
    assert isinstance(outcomes[3], OverloadedError)
    assert (await queue.status()).pending == 5


async def test_who_leaves_before_his_turn_takes_his_facts_along(database: Database) -> None:
    queue = OfflineQueue(database, OfflineSettings())
    with held(database):
        callers = [asyncio.create_task(queue.enqueue([fact(n)])) for n in range(3)]
        await asyncio.sleep(0)
        callers[1].cancel()
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert (outcomes[0], outcomes[2]) == ([1], [2])
    assert isinstance(outcomes[1], asyncio.CancelledError)


def test_a_closed_file_takes_nothing_and_nothing_is_left_waiting(database: Database) -> None:
    queue = OfflineQueue(database, OfflineSettings())
    database.close()
    for _ in range(2):
        with pytest.raises(UnavailableError):
            queue.submit([fact(0)])


class held:  # noqa: N801 (reads as a statement)
    """The file's thread is busy for as long as this lasts."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._go, self._runs = threading.Event(), threading.Event()

    def __enter__(self) -> None:
        def wait(_: sqlite3.Connection) -> None:
            self._runs.set()
            self._go.wait(10)

        self._database.submit(wait)
        self._runs.wait(10)

    def __exit__(self, *_: object) -> None:
        self._go.set()


@pytest.mark.parametrize("count", [0, 3])
def test_a_log_with_space_taken_loses_nothing_in_a_power_cut(tmp_path: Path, count: int) -> None:
    for _ in range(2):  # a new file, and one that was closed in order
        Database(tmp_path / "queue.db", LOG_BYTES).close()
    database = Database(tmp_path / "queue.db", LOG_BYTES)
    log_file = tmp_path / "queue.db-wal"
    assert log_file.stat().st_size == LOG_BYTES
    queue = OfflineQueue(database, OfflineSettings())
    for number in range(count):
        queue.submit([fact(number)]).result()
    (tmp_path / "cut").mkdir()
    for name in ("queue.db", "queue.db-wal"):
        shutil.copyfile(tmp_path / name, tmp_path / "cut" / name)
    database.close()
    after = Database(tmp_path / "cut" / "queue.db", LOG_BYTES)
    assert after.submit(read_totals).result()[0] == count
    assert list((tmp_path / "cut").glob("*.corrupt-*")) == []
    after.close()


def test_a_log_takes_no_space_of_a_disk_that_has_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=4 * LOG_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    database = Database(tmp_path / "queue.db", LOG_BYTES)
    assert (tmp_path / "queue.db-wal").stat().st_size < LOG_BYTES
    database.close()


async def test_who_watches_is_called_after_what_was_written_and_not_after_reads(database: Database) -> None:
    queue, seen = OfflineQueue(database, OfflineSettings()), []
    database.watch_from_loop(lambda: seen.append(len(seen)))
    await queue.status()
    assert seen == []
    await queue.enqueue([fact(0)])
    assert seen == [0]
    await queue.status()
    assert seen == [0]
