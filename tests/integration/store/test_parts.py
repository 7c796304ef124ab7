"""Of many parts only those of the time in question are read, when planning too."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from primespark.store import rollups, samples
from primespark.store.analytics import queries
from primespark.store.analytics.aggregates import Aggregation
from primespark.store.analytics.buckets import Granularity, Unit, of_unit
from primespark.store.analytics.queries import Query
from primespark.store.samples import Sample

THURSDAY = datetime(2026, 3, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)
WEEK = timedelta(days=7)


def put(connection: Connection, *moments: datetime) -> None:
    samples.insert(connection, [Sample("m", "d", "", {}, moment, 0, 1.0) for moment in moments])


@contextmanager
def planned_to_read(engine: Engine) -> Iterator[set[str]]:
    """The days on which the parts begin that plans have in them, whatever is left out later as they run."""
    days: set[str] = set()

    def explain(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        if statement.startswith(("WITH chosen", "INSERT INTO metrics.rollup")):
            cursor.execute(f"EXPLAIN {statement}", parameters)
            days.update(re.findall(r" on sample_standard_2026(\d{4}) ", str(cursor.fetchall())))

    event.listen(engine, "before_cursor_execute", explain)
    try:
        yield days
    finally:
        event.remove(engine, "before_cursor_execute", explain)


@pytest.mark.parametrize(
    ("granularity", "is_refreshed", "weeks"),
    [
        (of_unit(Unit.MINUTE), True, {"0312", "0319"}),
        (of_unit(Unit.HOUR), True, {"0312"}),
        (None, False, {"0312", "0319"}),
    ],
)
def test_a_question_looks_at_the_parts_it_reads(
    store_engine: Engine, granularity: Granularity | None, is_refreshed: bool, weeks: set[str]
) -> None:
    with store_engine.begin() as connection:
        put(connection, *(THURSDAY + number * WEEK for number in range(4)))
        if is_refreshed:
            rollups.refresh_hours(connection, THURSDAY, THURSDAY + 4 * WEEK)
    start, end = THURSDAY + 2 * WEEK - HOUR / 2, THURSDAY + 2 * WEEK + HOUR
    with planned_to_read(store_engine) as days, store_engine.begin() as connection:
        answer = queries.run(connection, Query(["m"], [Aggregation.COUNT], start, end, granularity))
    assert days == weeks
    assert [list(column) for series in answer.series for column in series.columns] == [[1.0]]


def test_a_refresh_looks_at_the_parts_of_its_marks(store_engine: Engine) -> None:
    with store_engine.begin() as connection:
        put(connection, *(THURSDAY + number * WEEK for number in range(4)))
        rollups.refresh_hours(connection, THURSDAY, THURSDAY + 4 * WEEK)
        put(connection, THURSDAY + WEEK + HOUR, THURSDAY + 2 * WEEK + HOUR)
    with planned_to_read(store_engine) as days, store_engine.begin() as connection:
        assert rollups.refresh_hours(connection, THURSDAY, THURSDAY + 4 * WEEK) == 2
    assert days == {"0312", "0319"}


def test_writers_of_the_same_new_weeks_wait_for_each_other_and_store_once(store_engine: Engine) -> None:
    rows = [
        Sample("m", f"d{device}", "", {}, THURSDAY + number * WEEK, seq, 1.0)
        for number in range(8) for device in range(3) for seq in range(2)
    ]  # fmt: skip
    with store_engine.begin() as connection:
        # Else who makes the series has all others wait.
        samples.insert(connection, [Sample("m", f"d{device}", "", {}, THURSDAY - WEEK, 0, 1.0) for device in range(3)])
    together = threading.Barrier(5)

    def write(number: int) -> int:
        mixed = random.Random(number).sample(rows, len(rows))
        with store_engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            together.wait()
            inserted = samples.insert(connection, mixed).inserted
            connection.commit()
        return inserted

    with ThreadPoolExecutor(5) as pool:
        assert sum(pool.map(write, range(5))) == len(rows)
    with store_engine.begin() as connection:
        counts = text(
            "SELECT count(*) FROM metrics.sample_standard s JOIN pg_class c ON c.oid = s.tableoid"
            " JOIN metrics.part p ON p.name = c.relname AND s.time >= p.starts AND s.time < p.ends"
        )
        assert connection.execute(counts).scalar_one() == len(rows) + 3
