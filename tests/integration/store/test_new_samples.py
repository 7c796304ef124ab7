"""Many samples newer than all of their series go in without a look whether they are there: once, if they are."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from primespark.core.values import EARLIEST
from primespark.store import samples
from primespark.store.samples import Inserted, Sample
from tests.helpers import wait_until

T0 = datetime(2026, 3, 3, 23, 30, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
DEVICES = ("a", "b", "c")


def batch(first: int, count: int, device: str = "", value: float | None = 1.0) -> list[Sample]:
    """Samples by ten seconds from number `first` on, of three devices in turns or one; 540 are before midnight."""
    quality = "lost" if value is None else None
    return [
        Sample("m", device or DEVICES[at % 3], "", {}, T0 + timedelta(seconds=at // 3 * 10), at % 3, value, quality)
        for at in range(first, first + count)
    ]


def put(engine: Engine, rows: list[Sample]) -> Inserted:
    with engine.begin() as connection:
        return samples.insert(connection, rows)


def plainly(engine: Engine) -> tuple[list[str], list[str]]:
    """Grow whenever samples are inserted plainly, and whenever some of them are found to be there."""
    tried: list[str] = []
    undone: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def _(_connection: Any, _cursor: Any, statement: str, *_others: Any) -> None:
        if statement.startswith("SAVEPOINT"):
            tried.append(statement)
        elif statement.startswith("ROLLBACK TO SAVEPOINT"):
            undone.append(statement)

    return tried, undone


def check_store(engine: Engine, rows: list[Sample]) -> None:
    """Each of `rows` is there once, its hour marked, its day counted, and the newest of each series known."""
    with engine.connect() as connection:

        def read(columns: str, table: str) -> list[tuple[Any, ...]]:
            statement = f"SELECT device_id, {columns} FROM metrics.{table} JOIN metrics.series USING (series_id)"
            return sorted(tuple(row) for row in connection.execute(text(statement)))

        assert read("time, value", "sample") == sorted((row.device_id, row.time, row.value) for row in rows)
        assert set(read("bucket", "dirty")) == {
            (row.device_id, EARLIEST + (row.time - EARLIEST) // HOUR * HOUR) for row in rows
        }
        assert {row[:2] for row in read("day, version", "day_version")} == {
            (row.device_id, EARLIEST + (row.time - EARLIEST) // DAY * DAY) for row in rows
        }
        newest = {row.device_id: row.time for row in sorted(rows, key=lambda row: row.time)}
        assert dict(read("time", "last_sample")) == newest


def versions(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT sum(version) FROM metrics.day_version")).scalar_one())


def test_what_was_new_is_there_afterwards(store_engine: Engine) -> None:
    mixed = random.Random(3).sample(batch(0, 900), 900)
    tried, undone = plainly(store_engine)
    # Of two values for one key the first stands.
    assert put(store_engine, [*mixed, *batch(0, 600, value=-1.0)]) == Inserted(900, 600)
    check_store(store_engine, mixed)
    assert versions(store_engine) == 6
    # All, and some, that are there are found by being no newer than the newest.
    assert put(store_engine, mixed) == Inserted(0, 900)
    assert put(store_engine, batch(600, 600)) == Inserted(300, 300)
    check_store(store_engine, batch(0, 1200))
    assert (len(tried), undone) == (1, [])


@pytest.mark.parametrize("commits", [True, False])
def test_who_takes_the_same_waits_and_stores_what_is_left(store_engine: Engine, commits: bool) -> None:
    assert put(store_engine, batch(0, 300)) == Inserted(300, 0)
    tried, undone = plainly(store_engine)
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'transactionid' AND datname = current_database()"
    )
    with ThreadPoolExecutor(1) as pool:
        with store_engine.connect() as first:
            assert samples.insert(first, batch(300, 450)) == Inserted(450, 0)
            second = pool.submit(put, store_engine, batch(600, 450))
            with store_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher:
                wait_until(lambda: watcher.execute(waiting).scalar_one())
            if commits:
                first.commit()
        assert second.result() == (Inserted(300, 150) if commits else Inserted(450, 0))
    assert (len(tried), len(undone)) == (2, 1 if commits else 0)
    check_store(store_engine, batch(0, 1050) if commits else batch(0, 300) + batch(600, 450))


def test_the_rest_of_a_transaction_stands_when_samples_are_found_to_be_there(store_engine: Engine) -> None:
    # Of what has no value no newest is known.
    silent = batch(0, 300, value=None)
    assert put(store_engine, silent) == Inserted(300, 0)
    tried, undone = plainly(store_engine)
    with store_engine.begin() as connection:
        assert samples.insert(connection, batch(0, 3, device="d")) == Inserted(3, 0)
        assert samples.insert(connection, [*silent, *batch(300, 3)]) == Inserted(3, 300)
        assert samples.insert(connection, batch(303, 300)) == Inserted(300, 0)
        assert samples.insert(connection, batch(0, 3, device="d")) == Inserted(0, 3)
    assert (len(tried), len(undone)) == (2, 1)
    with store_engine.connect() as connection:
        assert connection.execute(text("SELECT count(*), count(value) FROM metrics.sample")).one() == (606, 306)


def test_writers_with_crossing_keys_store_each_sample_once(store_engine: Engine) -> None:
    """Each takes rounds of samples that are new to all, in an order of its own."""
    together, writers, rounds, per_round = threading.Barrier(4), 4, 6, 240
    put(store_engine, batch(0, 3))

    def write(number: int) -> int:
        chance, inserted = random.Random(number), 0
        for at in range(rounds):
            rows = batch(3 + at * per_round, per_round)
            together.wait(60)
            inserted += put(store_engine, chance.sample(rows, len(rows))).inserted
        return inserted

    with ThreadPoolExecutor(writers) as pool:
        assert sum(pool.map(write, range(writers))) == rounds * per_round
    check_store(store_engine, batch(0, 3 + rounds * per_round))
