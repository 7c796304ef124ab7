"""What is no longer kept is rolled up first, and stays so whatever comes late."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from primespark.errors import InvalidInputError
from primespark.store import retention, rollups, samples
from primespark.store.analytics import queries
from primespark.store.analytics.aggregates import Aggregation
from primespark.store.analytics.buckets import Unit, of_unit
from primespark.store.analytics.queries import Query
from primespark.store.samples import Inserted, Sample
from tests.helpers import rounds, wait_until

THURSDAY = datetime(2026, 3, 5, tzinfo=UTC)
DAY = timedelta(days=1)
FOREVER = (THURSDAY - 1000 * DAY, THURSDAY + 100 * DAY)
EXACT = [one for one in Aggregation if one is not Aggregation.PERCENTILE]


def put(engine: Engine, *rows: tuple[timedelta, float | None], metric: str = "m", seq: int = 0) -> Inserted:
    given_rows = [
        Sample(metric, "edge-1", "test", {}, THURSDAY + at, seq, value, None if value is not None else "sensor_failed")
        for at, value in rows
    ]
    with engine.begin() as connection:
        return samples.insert(connection, given_rows)


def retain(engine: Engine, moment: datetime, retention_class: str = "standard") -> list[str]:
    with engine.begin() as connection:
        kept_from = retention.begin_later(connection, retention_class, moment)
    with engine.begin() as connection:
        rollups.refresh_hours(connection, FOREVER[0], kept_from)
    with engine.begin() as connection:
        return retention.drop_parts(connection, retention_class)


def by_hour(engine: Engine, days: int = 30, **changes: Any) -> Any:
    query = Query(**{
        "metrics": ["m"], "aggregations": EXACT, "start": THURSDAY, "end": THURSDAY + days * DAY,
        "granularity": of_unit(Unit.HOUR), **changes,
    })  # fmt: skip
    with engine.begin() as connection:
        return [(series.group, list(series.points())) for series in queries.run(connection, query).series]


def parts(engine: Engine) -> list[str]:
    with engine.begin() as connection:
        statement = "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace" \
            " WHERE nspname = 'metrics_parts' AND relkind = 'r' ORDER BY relname"  # fmt: skip
        return list(connection.execute(text(statement)).scalars())


def test_parts_are_weeks_and_go_as_a_whole(store_engine: Engine) -> None:
    put(store_engine, (timedelta(0), 1.0), (8 * DAY, 2.0), (15 * DAY, 3.0))
    assert parts(store_engine) == [f"sample_standard_202603{day}" for day in ("05", "12", "19")]
    before = by_hour(store_engine)
    # In the middle of the second week: that stays, though what comes for its first days is refused.
    assert retain(store_engine, THURSDAY + 10 * DAY + timedelta(hours=5)) == ["sample_standard_20260305"]
    assert parts(store_engine) == ["sample_standard_20260312", "sample_standard_20260319"]
    assert by_hour(store_engine) == before
    assert put(store_engine, (DAY, 9.0), (9 * DAY, 9.0), (10 * DAY, 4.0), (15 * DAY, 3.0)) == Inserted(1, 1, 2)
    with store_engine.begin() as connection:
        assert rollups.refresh_hours(connection, *FOREVER) == 2
        beyond = "SELECT beyond FROM metrics.retention WHERE class = 'standard'"
        assert connection.execute(text(beyond)).scalar_one() == 2
    assert by_hour(store_engine, days=10) == [({}, before[0][1][:2])]
    assert retain(store_engine, THURSDAY) == []


def test_classes_go_by_the_longest_prefix(store_engine: Engine) -> None:
    with store_engine.begin() as connection:
        retention.configure(connection, {"short": ["debug.", "d"], "long": ["debug.energy"], "standard": []})
    for metric in ("debug.frames", "debug.energy", "disk", "m"):
        put(store_engine, (timedelta(0), 1.0), metric=metric)
    assert retain(store_engine, THURSDAY + 8 * DAY, "short") == ["sample_short_20260305"]
    assert parts(store_engine) == ["sample_long_20260305", "sample_standard_20260305"]
    with store_engine.begin() as connection:
        statement = "SELECT metric, class FROM metrics.series ORDER BY metric"
        assert {row.metric: row[1] for row in connection.execute(text(statement))} == {
            "debug.energy": "long", "debug.frames": "short", "disk": "short", "m": "standard",
        }  # fmt: skip


def test_a_clock_that_was_never_set_makes_one_part(store_engine: Engine) -> None:
    put(store_engine, *((timedelta(days=-days), 1.0) for days in (20_000, 15_000, 9000)))
    assert parts(store_engine) == ["sample_standard_before"]


def test_a_large_week_is_followed_by_days(store_engine: Engine) -> None:
    put(store_engine, (timedelta(0), 1.0))
    with store_engine.begin() as connection:
        connection.execute(text("UPDATE pg_class SET reltuples = 4e7 WHERE relname = 'sample_standard_20260305'"))
    put(store_engine, (8 * DAY, 1.0), (10 * DAY, 1.0))
    assert parts(store_engine)[1:] == ["sample_standard_20260313", "sample_standard_20260315"]


def test_who_writes_by_the_old_beginning_commits_before_it_moves(store_engine: Engine) -> None:
    put(store_engine, (timedelta(0), 1.0))
    late = store_engine.connect()
    transaction = late.begin()
    samples.insert(late, [Sample("m", "edge-1", "test", {}, THURSDAY + timedelta(hours=1), 0, 5.0)])
    mover = threading.Thread(target=retain, args=(store_engine, THURSDAY + 8 * DAY))
    mover.start()
    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"

    def is_waiting() -> bool:
        with store_engine.begin() as connection:
            return bool(connection.execute(text(waits)).scalar_one())

    wait_until(is_waiting)
    transaction.commit()
    late.close()
    mover.join(20)
    assert parts(store_engine) == []
    assert [values[EXACT.index(Aggregation.COUNT)] for _, values in by_hour(store_engine)[0][1]] == [1.0, 1.0]


def test_a_question_that_reads_keeps_its_parts(store_engine: Engine) -> None:
    put(store_engine, (timedelta(0), 1.0))
    with store_engine.connect() as reader, reader.begin():
        query = Query(["m"], [Aggregation.SUM], THURSDAY, THURSDAY + DAY, of_unit(Unit.MINUTE))
        prepared = queries.prepare(reader, query)
        with pytest.raises(OperationalError, match="lock timeout"):
            retain(store_engine, THURSDAY + 8 * DAY)
        assert list(queries.work_out(reader, prepared).series[0].points()) == [(THURSDAY, [1.0])]
    assert retain(store_engine, THURSDAY + 8 * DAY) == ["sample_standard_20260305"]


@pytest.mark.parametrize(
    "changes",
    [
        {"granularity": of_unit(Unit.MINUTE)}, {"start": THURSDAY + timedelta(minutes=30)},
        {"aggregations": [Aggregation.PERCENTILE], "percentile": 50.0, "is_exact": True},
    ],
)  # fmt: skip
def test_what_only_samples_could_answer_is_refused(store_engine: Engine, changes: dict[str, Any]) -> None:
    put(store_engine, *((timedelta(hours=hour), float(hour)) for hour in range(24 * 20)))
    assert retain(store_engine, THURSDAY + 8 * DAY) == ["sample_standard_20260305"]
    with pytest.raises(InvalidInputError) as caught:
        by_hour(store_engine, **changes)
    assert caught.value.code == "samples_gone"
    assert by_hour(store_engine, **changes | {"start": THURSDAY + 10 * DAY}) != []
    near = by_hour(store_engine, aggregations=[Aggregation.PERCENTILE], percentile=50.0, granularity=None)
    assert near[0][1][0][1] == [pytest.approx(239.5, rel=0.01)]


hours = st.integers(0, 21 * 24 - 1)
actions = st.one_of(
    st.tuples(st.just("put"), st.lists(st.tuples(hours, st.none() | st.floats(-1e6, 1e6)), max_size=8)),
    st.tuples(st.just("retain"), st.integers(0, 21)),
    st.tuples(st.just("refresh"), st.none()),
)


@settings(
    max_examples=rounds(25, 400), deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@pytest.mark.prove
@given(st.lists(actions, max_size=12))
def test_hours_are_those_of_all_that_was_taken(law_engine: Engine, history: list[Any]) -> None:
    with law_engine.begin() as connection:
        connection.execute(
            text(
                "TRUNCATE metrics.dirty, metrics.open_hour, metrics.rollup_1h, metrics.rollup_1d,"
                " metrics.rollup_histogram"
            )
        )
        connection.execute(text("UPDATE metrics.retention SET raw_from = '1970-01-01Z', beyond = 0"))
        connection.execute(text("SELECT metrics.drop_part(class, name) FROM metrics.part"))
    taken: dict[int, list[float]] = {}
    kept_from, beyond = 0, 0
    for seq, (what, given_) in enumerate(history):
        if what == "put":
            rows = [(timedelta(hours=hour, seconds=number), value) for number, (hour, value) in enumerate(given_)]
            old = sum(hour < 24 * kept_from for hour, _ in given_)
            assert put(law_engine, *rows, seq=seq) == Inserted(len(rows) - old, 0, old)
            beyond += old
            for hour, value in given_:
                if hour >= 24 * kept_from and value is not None:
                    taken.setdefault(hour, []).append(value)
        elif what == "retain":
            kept_from = max(kept_from, given_)
            retain(law_engine, THURSDAY + given_ * DAY)
        else:
            with law_engine.begin() as connection:
                rollups.refresh_hours(connection, *FOREVER)
    asked = [Aggregation.COUNT, Aggregation.MIN, Aggregation.MAX, Aggregation.SUM]
    found = {
        (moment - THURSDAY) // timedelta(hours=1): values
        for _, points in by_hour(law_engine, aggregations=asked)
        for moment, values in points
    }
    assert found.keys() == taken.keys()
    for hour, numbers in taken.items():
        assert found[hour][:3] == [len(numbers), min(numbers), max(numbers)]
        assert found[hour][3] == pytest.approx(sum(numbers), abs=1e-6)
