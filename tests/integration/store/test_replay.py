"""Four processes take the same batches and the same samples at once: the store is as if one had, and stays so."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, text

from primespark.store import rollups
from tests.integration.store import replayer
from tests.integration.store.builders import T0, enrol
from tests.integration.store.replayer import (
    BATCHES,
    DEVICES,
    INSERTED,
    PER_BATCH,
    PROCESSES,
    Given,
    of_batch,
    of_insert,
)

FOREVER = (T0 - timedelta(days=9), T0 + timedelta(days=9))
TABLES = ("sync.fact", "sync.batch", "sync.watermark", "sync.log", "metrics.series", "metrics.sample", "metrics.dirty",
          "metrics.day_version", "metrics.last_sample", "metrics.rollup_1h", "metrics.rollup_1d",
          "metrics.rollup_histogram")  # fmt: skip


@contextlib.contextmanager
def four_processes(url: str) -> Iterator[Callable[[], tuple[Counter[tuple[str, str, int]], int]]]:
    """Who has them take everything, all at once; how often each batch was told what, and how many samples were new."""
    command = [sys.executable, "-m", replayer.__name__, url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    words, told_by = process.stdin, process.stdout
    assert words is not None
    assert told_by is not None

    def take_all() -> tuple[Counter[tuple[str, str, int]], int]:
        words.write("now\n")
        words.flush()
        answers = json.loads(told_by.readline())
        assert len(answers) == PROCESSES
        return Counter(tuple(one) for told, _ in answers for one in told), sum(inserted for _, inserted in answers)

    try:
        yield take_all
    finally:
        words.close()
        process.wait(60)
        told_by.close()


def contents(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    with engine.connect() as connection:
        return {
            table: sorted((tuple(row) for row in connection.execute(text(f"SELECT * FROM {table}"))), key=repr)
            for table in TABLES
        }


def read(engine: Engine, columns: str, table: str) -> list[tuple[Any, ...]]:
    """Rows of a table of series, each with the metric and device of its series before the columns asked for."""
    query = f"SELECT metric, device_id, {columns} FROM {table} JOIN metrics.series USING (series_id)"
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def hour_of(one: Given) -> datetime:
    return one.time.replace(minute=0, second=0, microsecond=0)


def day_of(one: Given) -> datetime:
    return hour_of(one).replace(hour=0)


def test_four_processes_that_take_the_same_leave_what_one_would(store_engine: Engine, postgres_url: str) -> None:
    with store_engine.begin() as connection:
        for device in DEVICES:
            enrol(connection, device)
    numbers = range(1, BATCHES + 1)
    batches = {(device, number): of_batch(device, number) for device in DEVICES for number in numbers}
    pushed = [one for given in batches.values() for one in given]
    everything = [*pushed, *of_insert()]
    with four_processes(postgres_url) as take_all:
        told, inserted = take_all()
        # One took each batch, and the others were told what it had been told.
        assert told == Counter(
            {("applied", *place): 1 for place in batches} | {("replayed", *place): PROCESSES - 1 for place in batches}
        )
        assert inserted == INSERTED
        check_ingested(store_engine, everything, batches)
        with store_engine.begin() as connection:
            hours = {(one.metric, one.device, hour_of(one)) for one in everything}
            assert rollups.refresh_hours(connection, *FOREVER) == len(hours)
        check_rolled_up(store_engine, everything)

        before = contents(store_engine)
        told, inserted = take_all()
        assert {status for status, *_ in told} == {"replayed"}
        assert inserted == 0
        assert contents(store_engine) == before


def check_ingested(engine: Engine, everything: list[Given], batches: dict[tuple[str, int], list[Given]]) -> None:
    """Each once; hours marked, days counted and the newest known, as the samples themselves say."""
    found = read(engine, "time, seq, value", "metrics.sample")
    assert sorted(found) == sorted((one.metric, one.device, one.time, one.seq, one.value) for one in everything)
    with engine.connect() as connection:
        facts = connection.execute(text("SELECT device_id, stream, seq FROM sync.fact ORDER BY 1, 3")).all()
    last = BATCHES * PER_BATCH
    assert [tuple(row) for row in facts] == [
        (device, "telemetry", seq) for device in DEVICES for seq in range(1, last + 1)
    ]
    assert set(read(engine, "bucket", "metrics.dirty")) == {
        (one.metric, one.device, hour_of(one)) for one in everything
    }

    newest: dict[tuple[str, str], Given] = {}
    for one in sorted(everything, key=lambda one: (one.time, one.seq)):
        newest[one.metric, one.device] = one
    assert sorted(read(engine, "time, seq, value", "metrics.last_sample")) == sorted(
        (*series, one.time, one.seq, one.value) for series, one in newest.items()
    )

    versions = {row[:3]: row[3] for row in read(engine, "day, version", "metrics.day_version")}
    assert versions.keys() == {(one.metric, one.device, day_of(one)) for one in everything}
    # Of a batch all is new or nothing, so a day has changed once with each that has some of it.
    days = [{(one.metric, one.device, day_of(one)) for one in given} for given in batches.values()]
    changes = Counter(day for of_one in days for day in of_one)
    assert {day: version for day, version in versions.items() if day[0] == "cpu_percent"} == changes
    # Of a chunk of inserted samples, whose orders differ, some may be new.
    of_days = Counter((one.metric, one.device, day_of(one)) for one in of_insert())
    assert all(1 <= versions[day] <= samples_of_it for day, samples_of_it in of_days.items())


def check_rolled_up(engine: Engine, everything: list[Given]) -> None:
    """Hours and days are what numpy computes, and nothing is marked."""
    assert read(engine, "bucket", "metrics.dirty") == []
    for table, bucket_of in (("metrics.rollup_1h", hour_of), ("metrics.rollup_1d", day_of)):
        groups: dict[tuple[str, str, datetime], list[Given]] = {}
        for one in sorted(everything, key=lambda one: (one.time, one.seq)):
            groups.setdefault((one.metric, one.device, bucket_of(one)), []).append(one)
        rows = {row[:3]: row[3:] for row in read(engine, "bucket, n, sum, m2, min, max, first, last", table)}
        assert rows.keys() == groups.keys()
        for place, group in groups.items():
            values = np.array([one.value for one in group])
            n, total, m2, *ends = rows[place]
            spread = float(np.square(values.astype(np.longdouble) - values.astype(np.longdouble).mean()).sum())
            assert (n, ends) == (len(values), [values.min(), values.max(), values[0], values[-1]])
            assert total == pytest.approx(values.sum(), rel=1e-12, abs=1e-9)
            assert m2 == pytest.approx(spread, rel=1e-9, abs=1e-9)
