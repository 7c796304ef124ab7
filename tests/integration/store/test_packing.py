"""Packed parts take less room and answer as before, whatever ended it in the middle and whatever comes late."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from primespark.store import packing, samples
from primespark.store.samples import Inserted, Sample
from tests.helpers import wait_until

THURSDAY = datetime(2026, 3, 5, tzinfo=UTC)
WEEK = timedelta(days=7)
PART = "sample_standard_20260305"
ROWS = [
    Sample("m", f"edge-{number % 50}", "test", {}, THURSDAY + timedelta(seconds=number // 50), 0, float(number))
    for number in range(6000)
]


@contextmanager
def autocommit(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")


def put(engine: Engine, rows: list[Sample]) -> Inserted:
    with engine.begin() as connection:
        return samples.insert(connection, rows)


def fill(engine: Engine) -> None:
    for first in range(0, len(ROWS), 500):
        put(engine, ROWS[first : first + 500])


def pack(engine: Engine, ended_by: datetime = THURSDAY + WEEK) -> list[str]:
    with autocommit(engine) as connection:
        return packing.pack(connection, ended_by)


def index_bytes(engine: Engine) -> int:
    with engine.begin() as connection:
        return int(connection.execute(text(f"SELECT pg_indexes_size('metrics_parts.{PART}')")).scalar_one())


def indexes(engine: Engine) -> list[tuple[str, bool]]:
    statement = (
        f"SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indrelid = 'metrics_parts.{PART}'::regclass"
    )
    with engine.begin() as connection:
        return sorted((name, is_valid) for name, is_valid in connection.execute(text(statement)))


def test_a_part_whose_time_is_over_is_packed_once(store_engine: Engine) -> None:
    fill(store_engine)
    before = index_bytes(store_engine)
    assert pack(store_engine, THURSDAY + WEEK - timedelta(seconds=1)) == []
    assert pack(store_engine) == [PART]
    assert index_bytes(store_engine) < 0.75 * before
    assert pack(store_engine) == []
    # It still tells what it has from what is new.
    late = Sample("m", "edge-1", "test", {}, THURSDAY + timedelta(hours=5), 0, 1.0)
    assert put(store_engine, [*ROWS[:500], late]) == Inserted(1, 500)
    with store_engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM metrics.sample")).scalar_one() == len(ROWS) + 1


def test_what_an_end_in_the_middle_left_behind_is_removed(store_engine: Engine) -> None:
    fill(store_engine)
    whole = indexes(store_engine)
    ended: list[BaseException] = []

    def pack_until_ended() -> None:
        with pytest.raises(OperationalError) as caught:
            pack(store_engine)
        ended.append(caught.value)

    with store_engine.begin() as writer:
        # The new index waits for who writes already.
        samples.insert(writer, [Sample("m", "edge-1", "test", {}, THURSDAY + timedelta(hours=1), 0, 1.0)])
        packer = threading.Thread(target=pack_until_ended)
        packer.start()
        waiting = text(
            "SELECT pid FROM pg_stat_activity WHERE query LIKE 'REINDEX%' AND wait_event_type = 'Lock'"
            " AND datname = current_database()"
        )
        with autocommit(store_engine) as observer:
            wait_until(lambda: observer.execute(waiting).scalar_one_or_none() is not None)
            # Nobody else begins beside it.
            assert pack(store_engine) == []
            observer.execute(text(f"SELECT pg_terminate_backend(({waiting.text}))"))
        packer.join(20)
    assert ended
    assert [is_valid for _, is_valid in indexes(store_engine)] == [True, False]
    assert pack(store_engine) == [PART]
    assert indexes(store_engine) == whole
