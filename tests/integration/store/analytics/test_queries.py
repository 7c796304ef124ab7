"""Answers against the samples themselves, whatever was late, and whenever rollups were refreshed."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, text

from primespark.errors import InvalidInputError
from primespark.store import rollups, samples
from primespark.store.analytics import queries
from primespark.store.analytics.aggregates import Aggregation
from primespark.store.analytics.buckets import Unit, of_seconds, of_unit
from primespark.store.analytics.fill import Fill
from primespark.store.analytics.queries import Answer, Query
from primespark.store.analytics.selection import Filter, Op
from primespark.store.samples import Sample
from tests.helpers import rounds
from tests.series import series_of

# Five days around the change of the clock in Berlin.
T0 = datetime(2026, 3, 27, tzinfo=UTC)
SPAN_S = 5 * 86_400
DEVICES = ("edge-1", "edge-2")
PLACES = ("north", "south", None)


def ask(engine: Engine, **query: Any) -> Answer:
    with engine.begin() as connection:
        return queries.run(connection, Query(**query))


values = st.one_of(
    st.floats(-1e6, 1e6), st.floats(1e9, 1e9 + 1), st.sampled_from([0.0, -0.0, 1e-300, -1e-300, 5e-324, 1e100])
)
# Few hours, so that samples meet.
seconds = st.one_of(
    st.integers(0, SPAN_S - 1),
    st.builds(lambda day, hour, second: day * 86_400 + hour * 3600 + second, st.integers(0, 4), st.integers(0, 2),
              st.integers(0, 7199)),
)  # fmt: skip
rows = st.lists(
    st.tuples(seconds, st.sampled_from("ab"), st.sampled_from(DEVICES), st.sampled_from(PLACES), values), max_size=20
)
granularities = st.one_of(
    st.none(),
    st.sampled_from(list(Unit)).map(of_unit),
    st.builds(of_unit, st.sampled_from(list(Unit)), st.sampled_from(["Europe/Berlin", "Asia/Kolkata"]).map(ZoneInfo)),
    st.sampled_from([600, 5400, 7200, 90_000, 2 * 86_400]).map(of_seconds),
)
filters = st.lists(
    st.one_of(
        st.builds(Filter, st.just("device_id"), st.sampled_from([Op.EQUAL, Op.NOT_EQUAL]), st.sampled_from(DEVICES)),
        st.builds(Filter, st.just("labels.place"), st.sampled_from([Op.EQUAL, Op.NOT_EQUAL]), st.just("north")),
        st.builds(Filter, st.just("labels.place"), st.just(Op.IN), st.lists(st.sampled_from(["north", "south"]))),
        st.builds(Filter, st.sampled_from(["labels.place", "labels.none"]), st.just(Op.EXISTS), st.booleans()),
    ),
    max_size=2,
)
group_bys = st.lists(st.sampled_from(["device_id", "labels.place", "source"]), max_size=2, unique=True)


@settings(
    max_examples=rounds(120, 3000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@pytest.mark.prove
@given(st.lists(st.tuples(rows, st.booleans()), max_size=5), st.data())
def test_answers_are_those_of_the_samples(law_engine: Engine, history: list[Any], data: st.DataObject) -> None:
    stored = _store(law_engine, history)
    for _ in range(4):
        granularity = data.draw(granularities)
        start = T0 + timedelta(seconds=data.draw(st.one_of(st.integers(0, SPAN_S - 1), st.just(0))))
        length_s = data.draw(st.one_of(st.integers(1, SPAN_S), st.just(86_400)))
        if granularity and granularity.width == timedelta(seconds=1):
            length_s = min(length_s, 40_000)
        query = Query(
            metrics=data.draw(st.sampled_from([["a"], ["a", "b"], ["none"]])),
            aggregations=data.draw(st.permutations(list(Aggregation)))[: data.draw(st.integers(1, 8))],
            start=start, end=start + timedelta(seconds=length_s), granularity=granularity,
            group_by=data.draw(group_bys), filters=data.draw(filters),
        )  # fmt: skip
        if Aggregation.PERCENTILE in query.aggregations:
            percentile = data.draw(st.sampled_from([0, 5, 50, 95, 99.9, 100]))
            query = replace(query, percentile=percentile, is_exact=data.draw(st.booleans()))
        few = data.draw(st.sampled_from([0, queries.FEW_SAMPLES]))
        with pytest.MonkeyPatch.context() as patch, law_engine.begin() as connection:
            patch.setattr(queries, "FEW_SAMPLES", few)
            answer = queries.run(connection, query)
        _compare(query, answer, stored)


def _store(engine: Engine, history: list[Any]) -> list[Sample]:
    with engine.begin() as connection:
        connection.execute(
            text(
                "TRUNCATE metrics.sample_standard, metrics.dirty, metrics.rollup_1h, metrics.rollup_1d,"
                " metrics.rollup_histogram, metrics.last_sample"
            )
        )
    stored: list[Sample] = []
    for given_rows, is_refreshed in history:
        new = [
            Sample(
                metric=metric, device_id=device, source="test", labels={"place": place} if place else {},
                time=T0 + timedelta(seconds=second), seq=len(stored) + number, value=value,
                quality="sensor_failed" if value is None else None,
            )
            for number, (second, metric, device, place, value) in enumerate(given_rows)
        ]  # fmt: skip
        stored += new
        with engine.begin() as connection:
            samples.insert(connection, new)
        if is_refreshed:
            with engine.begin() as connection:
                rollups.refresh_hours(connection, T0, T0 + timedelta(seconds=SPAN_S))
    return stored


def _matches(sample: Sample, condition: Filter) -> bool:
    name = condition.field
    found = sample.labels.get(name[7:]) if name.startswith("labels.") else getattr(sample, name)
    if condition.op is Op.EXISTS:
        return (found is not None) is condition.value
    if condition.op is Op.IN:
        return found in condition.value
    return (found == condition.value) is (condition.op is Op.EQUAL)


def _expected(query: Query, stored: list[Sample]) -> dict[tuple[tuple[Any, ...], datetime], list[float]]:
    starts = query.granularity.starts(query.start, query.end, 10**6) if query.granularity else [query.start]
    fields = (["metric_name"] if len(query.metrics) > 1 else []) + list(query.group_by)
    found: dict[tuple[tuple[Any, ...], datetime], list[float]] = {}
    for sample in stored:
        if sample.metric not in query.metrics or not query.start <= sample.time < query.end:
            continue
        if not all(_matches(sample, condition) for condition in query.filters):
            continue
        parts = {"metric_name": sample.metric, "device_id": sample.device_id, "source": sample.source}
        group = tuple(parts[name] if name in parts else sample.labels.get(name[7:]) for name in fields)
        moment = starts[bisect_right(starts, sample.time) - 1]
        if sample.value is not None:
            found.setdefault((group, moment), []).append(sample.value)
    return found


def _compare(query: Query, answer: Answer, stored: list[Sample]) -> None:
    expected = _expected(query, stored)
    found = {
        (tuple(series.group.values()), moment): values for series in answer.series for moment, values in series.points()
    }
    assert found.keys() == expected.keys()
    for series in answer.series:
        assert list(series.times) == sorted(series.times)
    for key, given_values in expected.items():
        numbers = np.array(given_values, dtype=np.longdouble)
        for aggregation, value in zip(query.aggregations, found[key], strict=True):
            _compare_value(aggregation, value, numbers, query, answer)


def _compare_value(aggregation: Aggregation, value: Any, numbers: Any, query: Query, answer: Answer) -> None:
    n, largest = len(numbers), float(np.abs(numbers).max())
    # What is nearer to zero than 1e-290 counts as zero, see `metrics.ratio`.
    rounding = 4 * n * largest * 2.0**-52 + 1e-289
    spread = float(((numbers - numbers.mean()) ** 2).sum())
    if aggregation is Aggregation.COUNT:
        assert value == n
    elif aggregation in (Aggregation.MIN, Aggregation.MAX):
        assert value == float(numbers.min() if aggregation is Aggregation.MIN else numbers.max())
    elif aggregation is Aggregation.SUM:
        assert value == pytest.approx(float(numbers.sum()), rel=1e-12, abs=rounding)
    elif aggregation is Aggregation.AVG:
        assert value == pytest.approx(float(numbers.mean()), rel=1e-12, abs=rounding)
    elif aggregation is Aggregation.PERCENTILE:
        assert query.percentile is not None
        exact = float(np.percentile(numbers.astype(float), query.percentile))
        rank = query.percentile / 100 * (n - 1)
        ordered = np.sort(numbers.astype(float))
        low, high = float(ordered[math.floor(rank)]), float(ordered[math.ceil(rank)])
        error = rounding if answer.is_exact else 0.01 * max(abs(low), abs(high)) + rounding
        assert value == pytest.approx(exact, rel=1e-12, abs=error)
    elif n == 1:
        assert value is None
    else:
        slack = rounding * math.sqrt(spread) + rounding**2
        variance = value if aggregation is Aggregation.VARIANCE else value**2
        assert variance == pytest.approx(spread / (n - 1), rel=1e-9, abs=slack)


def put(engine: Engine, *given_rows: tuple[float, float], **parts: Any) -> None:
    fields: dict[str, Any] = {"metric": "m", "device_id": "edge-1", "source": "test", "labels": {}} | parts
    rows = [Sample(time=T0 + timedelta(seconds=second), seq=0, value=value, **fields) for second, value in given_rows]
    with engine.begin() as connection:
        samples.insert(connection, rows)


def test_a_query_is_bounded(store_engine: Engine) -> None:
    put(store_engine, (0, 1.0), (1, 1.0), (2, 1.0))
    query = Query(["m"], [Aggregation.SUM], T0, T0 + timedelta(seconds=2), of_unit(Unit.SECOND))
    with store_engine.begin() as connection:
        (series,) = queries.run(connection, query, max_points=2).series
        assert len(series.times) == 2
    for changed in (
        replace(query, end=T0 + timedelta(hours=1)),
        replace(query, end=T0 + timedelta(hours=1), fill=Fill.ZERO),
        replace(query, start=T0 - timedelta(days=20_000), granularity=of_unit(Unit.MONTH)),
    ):
        with pytest.raises(InvalidInputError) as caught, store_engine.begin() as connection:
            queries.run(connection, changed, max_points=2)
        assert caught.value.code == "too_many_points"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"end": T0}, "bad_time_range"),
        ({"start": datetime(1960, 1, 1, tzinfo=UTC)}, "bad_time"),
        ({"aggregations": []}, "unknown_aggregation"),
        ({"aggregations": [Aggregation.SUM, Aggregation.SUM]}, "unknown_aggregation"),
        ({"aggregations": [Aggregation.PERCENTILE]}, "bad_percentile"),
        ({"percentile": 95.0}, "bad_percentile"),
        ({"aggregations": [Aggregation.PERCENTILE], "percentile": float("nan")}, "bad_percentile"),
        ({"metrics": ["m"] * 33}, "too_many_parts"),
        ({"metrics": ["\0"]}, "unstorable_value"),
        ({"group_by": ["value"]}, "unknown_field"),
        ({"group_by": ["labels."]}, "unknown_field"),
        ({"group_by": ["labels.\0"]}, "unstorable_value"),
        ({"filters": [Filter("time", Op.EQUAL, "x")]}, "unknown_field"),
        ({"filters": [Filter("device_id", Op.EQUAL, 1)]}, "bad_filter"),
        ({"filters": [Filter("device_id", Op.IN, "edge-1")]}, "bad_filter"),
        ({"filters": [Filter("labels.a", Op.IN, [["x"]])]}, "bad_filter"),
        ({"filters": [Filter("labels.a", Op.EXISTS, "yes")]}, "bad_filter"),
        ({"filters": [Filter("labels.a", Op.EQUAL, "\ud800")]}, "unstorable_value"),
    ],
)
def test_a_bad_question_is_refused(store_engine: Engine, changes: dict[str, Any], code: str) -> None:
    query = Query(["m"], [Aggregation.SUM], T0, T0 + timedelta(hours=1), of_unit(Unit.MINUTE))
    with pytest.raises(InvalidInputError) as caught, store_engine.begin() as connection:
        queries.run(connection, replace(query, **changes))
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["x' OR 1=1 --", 'a"b', "a\\", "%s", ":series", "ü{}[]"])
def test_names_and_labels_are_only_ever_compared(store_engine: Engine, name: str) -> None:
    put(store_engine, (0, 1.0), metric=name, source=name, labels={name: name})
    put(store_engine, (0, 5.0), metric="other")
    query = Query([name], [Aggregation.SUM], T0, T0 + timedelta(hours=1), None, [f"labels.{name}", "source"])
    query = replace(query, filters=[Filter(f"labels.{name}", Op.EQUAL, name), Filter("source", Op.IN, [name, "x"])])
    with store_engine.begin() as connection:
        answer = queries.run(connection, query)
    assert answer.series == [series_of({f"labels.{name}": name, "source": name}, [(T0, [1.0])])]


def test_an_answer_is_of_one_moment(store_engine: Engine) -> None:
    put(store_engine, (0, 1.0))
    query = Query(["m"], [Aggregation.SUM], T0, T0 + timedelta(hours=1), of_unit(Unit.HOUR))
    with store_engine.begin() as connection:
        assert queries.run(connection, query).stale_hours == 1
        # Whoever writes and refreshes meanwhile changes nothing within the transaction.
        put(store_engine, (1, 1.0))
        with store_engine.begin() as other:
            assert rollups.refresh_hours(other, T0, T0 + timedelta(hours=1)) == 1
        reading = text("SELECT count(*) FROM metrics.sample"), text("SELECT count(*) FROM metrics.rollup_1h")
        assert [connection.execute(statement).scalar_one() for statement in reading] == [1, 0]
    with store_engine.begin() as connection:
        answer = queries.run(connection, query)
    assert (answer.stale_hours, list(answer.series[0].points())) == (0, [(T0, [2.0])])


def test_thirty_days_by_hour_touch_no_sample(store_engine: Engine) -> None:
    put(store_engine, *((3600.0 * hour, 1.0) for hour in range(30 * 24)))
    with store_engine.begin() as connection:
        rollups.refresh_hours(connection, T0, T0 + timedelta(days=30))
        connection.execute(text("ANALYZE"))
    query = Query(["m"], list(Aggregation), T0, T0 + timedelta(days=30), of_unit(Unit.HOUR), percentile=95.0)
    touched: set[str] = set()

    @event.listens_for(store_engine, "before_cursor_execute")
    def explain(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        if statement.startswith("WITH chosen"):
            cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
            touched.update(re.findall(r'"Relation Name": "(\w+)"', json.dumps(cursor.fetchone())))

    try:
        with pytest.MonkeyPatch.context() as patch, store_engine.begin() as connection:
            patch.setattr(queries, "FEW_SAMPLES", 0)
            answer = queries.run(connection, query)
    finally:
        event.remove(store_engine, "before_cursor_execute", explain)
    assert len(answer.series[0].times) == 720
    # No part or chunk of samples either, whatever its name.
    assert touched == {"rollup_1h", "rollup_histogram"}


def test_a_spread_near_a_large_mean_keeps_its_digits(store_engine: Engine) -> None:
    numbers = 1e9 + np.random.default_rng(7).normal(0.0, 0.3, 3000)
    put(store_engine, *((24.0 * number, float(value)) for number, value in enumerate(numbers)))
    with store_engine.begin() as connection:
        rollups.refresh_hours(connection, T0, T0 + timedelta(days=1))
    query = Query(["m"], [Aggregation.STDDEV], T0, T0 + timedelta(days=1), of_unit(Unit.DAY))
    for refreshed in (query, replace(query, end=T0 + timedelta(hours=19, minutes=59))):
        (series,) = ask(store_engine, **{name: getattr(refreshed, name) for name in Query.__slots__}).series
        upto = numbers[: int((refreshed.end - T0).total_seconds() // 24) + 1]
        assert series.columns[0][0] == pytest.approx(np.std(upto, ddof=1), rel=1e-6)
