"""Samples, rollups and windows against numpy and plain Python."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from primespark.core.values import LARGEST_NUMBER
from primespark.errors import InvalidInputError
from primespark.store import rollups, samples, windows
from primespark.store.samples import Inserted, Sample
from tests.helpers import rounds

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
FOREVER = (T0 - timedelta(days=9), T0 + timedelta(days=9))


def sample(second: float, value: float, seq: int = 0, **other: Any) -> Sample:
    fields: dict[str, Any] = {"metric": "m", "device_id": "edge-1", "source": "test", "labels": {}} | other
    return Sample(time=T0 + timedelta(seconds=second), seq=seq, value=value, **fields)


def insert(engine: Engine, *rows: Sample) -> Inserted:
    with engine.begin() as connection:
        return samples.insert(connection, rows)


def refresh(engine: Engine) -> int:
    with engine.begin() as connection:
        return rollups.refresh_hours(connection, *FOREVER)


measured = st.floats(-1e9, 1e9) | st.floats(1e9, 1e9 + 1) | st.sampled_from([0.0, -0.0, 1e-300, LARGEST_NUMBER])
history = st.lists(
    st.lists(st.tuples(st.integers(0, 3 * 3600 - 1), st.integers(0, 2), st.sampled_from("ab"), measured), max_size=12),
    max_size=5,
)


@pytest.mark.prove
@settings(
    max_examples=rounds(40, 400), suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(history, st.data())
def test_rollups_are_what_numpy_computes(law_engine: Engine, history: list[Any], data: st.DataObject) -> None:
    with law_engine.begin() as connection:
        connection.execute(
            text(
                "TRUNCATE metrics.sample_standard, metrics.dirty, metrics.rollup_1h, metrics.rollup_1d,"
                " metrics.rollup_histogram, metrics.last_sample"
            )
        )
    known: dict[tuple[str, int, int], float] = {}
    for rows in history:
        new: dict[tuple[str, int, int], float] = {}
        for second, seq, metric, value in rows:
            new.setdefault((metric, second, seq), value)
        fresh = new.keys() - known.keys()
        answer = insert(law_engine, *(sample(s, value, seq, metric=m) for s, seq, m, value in rows))
        assert answer == Inserted(len(fresh), len(rows) - len(fresh))
        known = new | known
        if data.draw(st.booleans()):
            # Exactly the hours with a new sample, and those no refresh has seen yet.
            assert refresh(law_engine) >= len({(metric, second // 3600) for metric, second, _ in fresh})
    refresh(law_engine)
    assert refresh(law_engine) == 0
    expected: dict[tuple[str, int], list[tuple[int, int, float]]] = {}
    for (metric, second, seq), value in known.items():
        expected.setdefault((metric, second // 3600), []).append((second, seq, value))
    with law_engine.begin() as connection:
        query = (
            "SELECT metric, bucket, n, sum, m2, min, max, first, last"
            " FROM metrics.rollup_1h JOIN metrics.series USING (series_id)"
        )
        found = {(row.metric, (row.bucket - T0) // HOUR): row[2:] for row in connection.execute(text(query))}
    assert found.keys() == expected.keys()
    for key, group in expected.items():
        _check_rollup(found[key], np.array([value for _, _, value in sorted(group)]))


def _check_rollup(row: Any, values: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    n, total, m2, low, high, first, last = row
    assert n == len(values)
    assert total == pytest.approx(values.sum(), rel=1e-9, abs=1e-12 * np.abs(values).sum())
    exact = values.astype(np.longdouble)
    spread = float(((exact - exact.mean()) ** 2).sum())
    # What rounding each value costs; sums of squares would cost this without the spread's root, millions of times more.
    rounding = n * float(np.abs(values).max()) * 2**-52
    assert m2 == pytest.approx(spread, rel=1e-9, abs=4 * rounding * spread**0.5 + 4 * rounding**2)
    assert (low, high, first, last) == (values.min(), values.max(), values[0], values[-1])


def test_a_sample_that_commits_after_a_refresh_brings_its_own_mark(store_engine: Engine) -> None:
    insert(store_engine, sample(1, 1.0))
    late = store_engine.connect()
    transaction = late.begin()
    samples.insert(late, [sample(2, 2.0)])
    assert refresh(store_engine) == 1
    transaction.commit()
    late.close()
    assert refresh(store_engine) == 1
    with store_engine.begin() as connection:
        assert connection.execute(text("SELECT n, sum FROM metrics.rollup_1h")).one() == (2, 3.0)


def test_refreshes_and_writers_at_once_leave_every_sample_counted(store_engine: Engine) -> None:
    def write(device: int) -> None:
        for number in range(40):
            insert(store_engine, *(sample(3600 * h + number, 1.0, device_id=f"d{device}") for h in range(3)))

    writers = [threading.Thread(target=write, args=(device,)) for device in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        refresh(store_engine)
    refresh(store_engine)
    with store_engine.begin() as connection:
        assert connection.execute(text("SELECT count(*), sum(n), min(n) FROM metrics.rollup_1h")).one() == (9, 360, 40)
        assert rollups.hours_to_close(connection, 10) == []


def test_only_the_hours_asked_for_are_refreshed(store_engine: Engine) -> None:
    insert(store_engine, *(sample(3600 * hour, 1.0) for hour in range(3)))
    with store_engine.begin() as connection:
        assert rollups.hours_to_close(connection, 2) == [T0, T0 + HOUR]
        assert rollups.refresh_hours(connection, T0 + HOUR, T0 + 2 * HOUR) == 1
        assert rollups.hours_to_close(connection, 10) == [T0, T0 + 2 * HOUR]


def test_the_newest_hours_are_refreshed_and_stay_open_until_they_are_closed(store_engine: Engine) -> None:
    insert(store_engine, *(sample(3600 * hour, 1.0) for hour in range(4)))
    now = T0 + 2 * HOUR + timedelta(minutes=10)
    with store_engine.begin() as connection:
        assert rollups.refresh_newest(connection, now) == 3
        with store_engine.begin() as other:
            # Somebody does it already.
            assert rollups.refresh_newest(other, now) == 0
    with store_engine.begin() as connection:
        assert rollups.refresh_newest(connection, now) == 0
        buckets = connection.execute(text("SELECT bucket FROM metrics.rollup_1h ORDER BY bucket")).scalars()
        assert list(buckets) == [T0 + hour * HOUR for hour in (1, 2, 3)]
        assert rollups.hours_to_close(connection, 10) == [T0 + hour * HOUR for hour in range(4)]
        assert rollups.refresh_hours(connection, T0, T0 + 2 * HOUR) == 1
        assert rollups.hours_to_close(connection, 10) == [T0 + hour * HOUR for hour in (2, 3)]


def test_series_are_told_apart_by_all_their_parts(store_engine: Engine) -> None:
    rows = [
        sample(1, 1.0),
        sample(1, 1.0, seq=1),
        sample(1, 1.0, labels={"a": "b", "c": "d"}),
        sample(1, 1.0, source="other"),
        sample(1, 1.0, device_id="edge-2"),
    ]
    same = sample(1, 9.0, labels={"c": "d", "a": "b"})
    assert insert(store_engine, *rows, same) == Inserted(5, 1)
    assert insert(store_engine, *rows) == Inserted(0, 5)
    assert insert(store_engine) == Inserted(0, 0)


def test_of_two_values_given_for_one_key_the_first_stands(store_engine: Engine) -> None:
    rows = [sample(second, float(value), metric=metric) for value in range(20) for second in (1, 2) for metric in "ba"]
    assert insert(store_engine, *rows) == Inserted(4, 76)
    with store_engine.begin() as connection:
        assert list(connection.execute(text("SELECT value FROM metrics.sample")).scalars()) == [0.0] * 4


def test_many_writers_may_begin_the_same_series(store_engine: Engine) -> None:
    together = threading.Barrier(6)

    def write(number: int) -> Inserted:
        rows = [sample(1, 1.0, seq=number, metric=f"m{n}") for n in range(30)]
        with store_engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            together.wait()
            answer = samples.insert(connection, rows if number % 2 else rows[::-1])
            connection.commit()
        return answer

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(write, range(6))) == [Inserted(30, 0)] * 6
    with store_engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM metrics.series")).scalar_one() == 30


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (sample(1, float("nan")), "value_out_of_range"),
        (sample(1, 1e200), "value_out_of_range"),
        (sample(-60 * 366 * 86400, 1.0), "bad_time"),
        (sample(1, 1.0, metric="a\x00"), "unstorable_value"),
        (sample(1, 1.0, labels={"a": "\x00"}), "unstorable_value"),
        (sample(1, 1.0, labels={"a": "b" * 1024}), "series_too_long"),
        (sample(1, 1.0, source="s" * 129), "series_too_long"),
    ],
)
def test_one_bad_sample_refuses_all_and_is_named(store_engine: Engine, bad: Sample, code: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        insert(store_engine, sample(1, 1.0), bad)
    assert caught.value.code == code
    assert caught.value.errors[0]["loc"] == [1]
    assert insert(store_engine, sample(1, 1.0)) == Inserted(1, 0)


def test_the_longest_labels_fit_the_index(store_engine: Engine) -> None:
    labels = {f"{n:03}": "" for n in range(113)}  # as many as go into 1024 bytes
    row = sample(1, 1.0, metric="m" * 128, device_id="d" * 128, source="s" * 128, labels=labels)
    assert insert(store_engine, row) == Inserted(1, 0)


@given(st.permutations([0, 0, 1, 2, 3]), st.integers(1, 5))
@pytest.mark.prove
@settings(max_examples=rounds(20, 200), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_window_keeps_its_highest_revision(law_engine: Engine, order: list[int], size: int) -> None:
    def row(revision: int) -> dict[str, Any]:
        return {
            "rule_id": "r", "group_key": "edge-1", "window_start": T0, "window_end": T0 + timedelta(minutes=1),
            "value": float(revision), "count": revision, "kind": "late_update" if revision else "final",
            "revision": revision,
        }  # fmt: skip

    with law_engine.begin() as connection:
        connection.execute(text("TRUNCATE metrics.window_result"))
        for start in range(0, len(order), size):
            chunk = order[start : start + size]
            windows.upsert(connection, [row(revision) for revision in chunk])
            found = connection.execute(text("SELECT revision, value, count FROM metrics.window_result")).one()
            newest = max(order[: start + size])
            assert found == (newest, float(newest), newest)
        windows.upsert(connection, [])
