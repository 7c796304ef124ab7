"""Summaries against the samples themselves, read from rollups or not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, text

from primespark.errors import InvalidInputError
from primespark.store import retention, rollups, samples
from primespark.store.analytics.summary import Gaps, MetricSummary, summarise
from primespark.store.samples import Sample
from tests.helpers import rounds

T0 = datetime(2026, 3, 27, tzinfo=UTC)
HOUR = timedelta(hours=1)
SPAN_S = 4 * 86_400


def sample(second: float, value: float | None = 1.0, seq: int = 0, **other: Any) -> Sample:
    given: dict[str, Any] = {"metric": "a", "device_id": "edge-1", "source": "test", "labels": {}} | other
    quality = "sensor_failed" if value is None else None
    return Sample(time=T0 + timedelta(seconds=second), seq=seq, value=value, quality=quality, **given)


def store(engine: Engine, *rows: Sample) -> None:
    with engine.begin() as connection:
        samples.insert(connection, rows)


def refresh(engine: Engine) -> None:
    with engine.begin() as connection:
        rollups.refresh_hours(connection, T0 - HOUR, T0 + timedelta(days=40))


def ask(engine: Engine, start_s: float = 0, end_s: float = SPAN_S, **other: Any) -> list[MetricSummary]:
    with engine.begin() as connection:
        start, end = T0 + timedelta(seconds=start_s), T0 + timedelta(seconds=end_s)
        return summarise(connection, start, end, limit=1000, **other).items


seconds = st.one_of(
    st.integers(0, SPAN_S - 1),
    st.builds(lambda hour, second: hour * 3600 + second, st.integers(0, 6), st.integers(0, 3599)),
)
rows = st.lists(
    st.tuples(seconds, st.sampled_from("ab"), st.sampled_from(["", "edge-1"]), st.sampled_from("xy"),
              st.none() | st.floats(-1e6, 1e6)),
    max_size=30,
)  # fmt: skip


@settings(
    max_examples=rounds(40, 2000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(rows, st.booleans()), max_size=4), st.lists(st.integers(0, SPAN_S), min_size=2, max_size=2))
def test_summaries_are_those_of_the_samples(law_engine: Engine, history: list[Any], edges: list[int]) -> None:
    with law_engine.begin() as connection:
        connection.execute(
            text(
                "TRUNCATE metrics.sample_standard, metrics.dirty, metrics.rollup_1h, metrics.rollup_1d,"
                " metrics.rollup_histogram, metrics.last_sample"
            )
        )
    stored: list[Sample] = []
    for given_rows, is_refreshed in history:
        new = [
            sample(second, value, len(stored) + number, metric=metric, device_id=device, labels={"place": place})
            for number, (second, metric, device, place, value) in enumerate(given_rows)
        ]
        stored += new
        store(law_engine, *new)
        if is_refreshed:
            refresh(law_engine)
    start, end = min(edges), max(edges) + 1
    found = ask(law_engine, start, end)
    valued = [row for row in stored if row.value is not None]
    inside = [row for row in valued if T0 + timedelta(seconds=start) <= row.time < T0 + timedelta(seconds=end)]
    pairs = sorted({(row.metric, row.device_id) for row in inside})
    assert [(one.metric, one.device_id) for one in found] == pairs
    for one in found:
        of_pair = [row for row in inside if (row.metric, row.device_id) == (one.metric, one.device_id)]
        _compare(one, sorted(of_pair, key=lambda row: (row.time, row.seq)))


def _compare(one: MetricSummary, inside: list[Sample]) -> None:
    values = np.array([row.value for row in inside], float)
    assert (one.count, one.first, one.last) == (len(inside), inside[0].time, inside[-1].time)
    assert (one.last_value, one.minimum, one.maximum) == (inside[-1].value, values.min(), values.max())
    assert one.average == pytest.approx(values.mean(), rel=1e-9, abs=1e-6)
    # Of so few samples it is exact.
    assert one.percentile_95 == pytest.approx(np.percentile(values, 95), rel=1e-9, abs=1e-6)
    span = one.last - one.first
    assert one.rate_per_s == (pytest.approx((one.count - 1) / span.total_seconds()) if span else None)
    lengths = []
    for before, after in pairwise(row.time for row in inside):
        whole_hour = before.replace(minute=0, second=0, microsecond=0) + HOUR
        if whole_hour + HOUR <= after and (after - before) * (one.count - 1) > 3 * span:
            lengths.append(after - before)
    assert one.gaps == Gaps(len(lengths), max(lengths, default=timedelta(0)), sum(lengths, timedelta(0)))


def test_an_outage_is_a_gap_and_a_pause_without_a_whole_hour_is_none(store_engine: Engine) -> None:
    every_minute = [*range(0, 3600, 60), *range(3 * 3600 + 600, 6 * 3600, 60)]
    store(store_engine, *(sample(second) for second in every_minute if not 4 * 3600 < second < 5 * 3600))
    (found,) = ask(store_engine)
    # From 00:59 to 03:10; between 04:00 and 05:00 lies no whole hour that began without a sample.
    assert found.gaps == Gaps(1, timedelta(minutes=131), timedelta(minutes=131))


def test_what_comes_once_in_three_hours_has_no_gaps(store_engine: Engine) -> None:
    store(store_engine, *(sample(hour * 3600) for hour in range(0, 96, 3)))
    refresh(store_engine)
    (found,) = ask(store_engine)
    assert found.gaps == Gaps()
    assert found.rate_per_s == pytest.approx(1 / 10_800)


def test_gaps_of_a_long_range_are_found_without_its_samples(store_engine: Engine) -> None:
    minutes = [minute for minute in range(30 * 24 * 60) if not 10_000 < minute < 11_000]
    store(store_engine, *(sample(minute * 60, float(minute)) for minute in minutes))
    refresh(store_engine)
    with store_engine.begin() as connection:
        connection.execute(text("ANALYZE metrics.sample, metrics.rollup_1h"))
    asked: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "following" in statement:
            asked.append((statement, parameters))

    event.listen(store_engine, "before_cursor_execute", note)
    (found,) = ask(store_engine, end_s=30 * 86_400)
    event.remove(store_engine, "before_cursor_execute", note)
    assert found.gaps == Gaps(1, timedelta(minutes=1000), timedelta(minutes=1000))
    assert found.percentile_95 == pytest.approx(np.percentile(minutes, 95), rel=0.01)
    ((statement, parameters),) = asked
    with store_engine.begin() as connection:
        cursor = connection.connection.cursor()
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        (((top,),),) = [cursor.fetchall()]
    assert sum(_samples_read(top[0]["Plan"])) < 1000


def _samples_read(node: dict[str, Any]) -> Iterator[float]:
    if node.get("Relation Name") == "sample":
        yield node["Actual Rows"] * node["Actual Loops"]
    for child in node.get("Plans", []):
        yield from _samples_read(child)


def test_where_samples_are_gone_their_hours_stand_for_their_times(store_engine: Engine) -> None:
    store(store_engine, *(sample(second, second) for second in (600, 700, 3 * 3600 + 60, 90_000, 90_060)))
    kept_from = T0 + timedelta(days=1)
    with store_engine.begin() as connection:
        assert retention.begin_later(connection, "standard", kept_from) == kept_from
    refresh(store_engine)
    with store_engine.begin() as connection:
        connection.execute(text("DELETE FROM metrics.sample_standard WHERE time < :moment"), {"moment": kept_from})
    with store_engine.begin() as connection:
        found = summarise(connection, T0, T0 + timedelta(days=2))
        assert found.by_hours_before == kept_from
        assert summarise(connection, kept_from, T0 + timedelta(days=2)).by_hours_before is None
    (one,) = found.items
    assert (one.count, one.first, one.last) == (5, T0, T0 + timedelta(seconds=90_060))
    assert (one.last_value, one.minimum, one.maximum) == (90_060, 600, 90_060)
    # Between the hours from 00:00 and 03:00 lie two; from 04:00 on there is nothing until 01:00 of the next day.
    assert one.gaps == Gaps(1, timedelta(hours=21), timedelta(hours=21))
    assert ask(store_engine, end_s=86_400)[0].last_value == 3 * 3600 + 60


def test_pages_have_every_metric_and_device_once(store_engine: Engine) -> None:
    store(store_engine, *(sample(0, metric=metric, device_id=device) for metric in "abc" for device in ("", "x")))
    store(store_engine, sample(SPAN_S, metric="b", device_id="later"))
    seen, cursor = [], None
    for _ in range(9):
        with store_engine.begin() as connection:
            found = summarise(connection, T0, T0 + HOUR, limit=2, cursor=cursor)
        assert len(found.items) <= 2
        seen += [(one.metric, one.device_id) for one in found.items]
        cursor = found.next_cursor
        if cursor is None:
            break
    assert seen == [(metric, device) for metric in "abc" for device in ("", "x")]
    assert [one.device_id for one in ask(store_engine, metric="b", device_id="x")] == ["x"]
    assert [one.metric for one in ask(store_engine, device_id="")] == ["a", "b", "c"]


@pytest.mark.parametrize("cursor", ["x", "W10", "WzEsMl0=", "WyJhIiwiXHUwMDAwIl0=", "é"])
def test_what_is_no_cursor_is_refused(store_engine: Engine, cursor: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        ask(store_engine, cursor=cursor)
    assert refused.value.code == "bad_cursor"
