"""The view `metrics.metrics`: what SQL puts in is what the API would have."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DataError, IntegrityError, StatementError

from primespark.core.clock import utc_now
from primespark.store import retention, rollups, samples
from primespark.store.samples import MOST_AHEAD, Sample
from tests.helpers import rounds

T0 = datetime(2026, 3, 27, 22, tzinfo=UTC)
INSERT = text(
    "INSERT INTO metrics.metrics (time, metric_name, value, labels, source, device_id)"
    " VALUES (:time, :metric_name, :value, CAST(:labels AS jsonb), :source, :device_id)"
)
STATE = {
    "series": "SELECT metric, device_id, source, labels, class FROM metrics.series",
    "sample": "SELECT s.metric, s.labels, s.source, m.time, m.seq, m.value, m.quality FROM metrics.sample m"
    " JOIN metrics.series s USING (series_id)",
    "dirty": "SELECT DISTINCT s.metric, s.labels, s.source, d.bucket FROM metrics.dirty d"
    " JOIN metrics.series s USING (series_id)",
    "last": "SELECT s.metric, s.labels, s.source, m.time, m.seq, m.value FROM metrics.last_sample m"
    " JOIN metrics.series s USING (series_id)",
}


def row(**changes: Any) -> dict[str, Any]:
    return {
        "time": T0, "metric_name": "cpu_usage", "value": 75.5, "labels": '{"host": "edge-01"}', "source": "api",
        "device_id": "pi5-001",
    } | changes  # fmt: skip


def state(connection: Connection) -> dict[str, list[str]]:
    return {name: sorted(map(repr, connection.execute(text(query)))) for name, query in STATE.items()}


rows = st.lists(
    st.tuples(
        st.integers(0, 3), st.sampled_from(["cpu_usage", "short_lived"]), st.none() | st.floats(-1e6, 1e6),
        st.sampled_from(["{}", '{"host": "a"}']), st.sampled_from(["sql", "x"]),
    ),
    max_size=6,
)  # fmt: skip


@settings(max_examples=rounds(15, 500), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows)
def test_it_takes_what_the_ingest_takes(store_engine: Engine, history: list[Any]) -> None:
    given_rows = [
        row(time=T0 + timedelta(minutes=45 * at), metric_name=metric, value=value, labels=labels, source=source)
        for at, metric, value, labels, source in history
    ]
    told = []
    for way in ("view", "ingest"):
        with store_engine.connect() as connection, connection.begin() as transaction:
            retention.configure(connection, {"short": ["short_"]})
            for one in given_rows:
                if way == "view":
                    connection.execute(INSERT, one)
                    continue
                quality = "missing" if one["value"] is None else None
                labels = {"host": "a"} if one["labels"] != "{}" else {}
                sample = Sample(
                    one["metric_name"], one["device_id"], one["source"], labels, one["time"], 0, one["value"], quality
                )
                samples.insert(connection, [sample])
            told.append(state(connection))
            transaction.rollback()
    assert told[0] == told[1]


def test_what_was_put_in_is_shown_and_rolled_up(store_engine: Engine) -> None:
    with store_engine.begin() as connection:
        assert [connection.execute(INSERT, one).rowcount for one in (row(), row(value=1.0), row(value=None))] == [
            1,
            0,
            0,
        ]
        connection.execute(
            text("INSERT INTO metrics.metrics (time, metric_name, value) VALUES (:time, 'cpu_usage', 3)"), {"time": T0}
        )
        shown = connection.execute(text("SELECT * FROM metrics.metrics ORDER BY value")).all()
        assert rollups.refresh_hours(connection, T0, T0 + timedelta(hours=1)) == 2
    assert [tuple(one) for one in shown] == [
        (T0, "cpu_usage", 3.0, {}, "sql", ""), (T0, "cpu_usage", 75.5, {"host": "edge-01"}, "api", "pi5-001"),
    ]  # fmt: skip


def test_what_is_older_than_its_class_is_kept_is_counted(store_engine: Engine) -> None:
    with store_engine.begin() as connection:
        retention.begin_later(connection, "standard", T0 + timedelta(days=1))
        assert connection.execute(INSERT, row()).rowcount == 0
        beyond = text("SELECT beyond FROM metrics.retention WHERE class = 'standard'")
        assert connection.execute(beyond).scalar_one() == 1


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"time": None}, IntegrityError),
        ({"metric_name": None}, IntegrityError),
        ({"value": float("nan")}, DataError),
        ({"value": float("inf")}, DataError),
        ({"value": -1e141}, DataError),
        ({"time": datetime(1969, 12, 31, tzinfo=UTC)}, DataError),
        ({"time": utc_now() + MOST_AHEAD + timedelta(days=1)}, DataError),
        ({"metric_name": "m" * 129}, DataError),
        ({"labels": '{"a": "%s"}' % ("b" * 1024)}, DataError),
        ({"labels": '{"a": 1}'}, DataError),
        ({"labels": "[]"}, DataError),
    ],
)
def test_what_the_ingest_refuses_is_an_error(
    store_engine: Engine, changes: dict[str, Any], refused: type[StatementError]
) -> None:
    with pytest.raises(refused), store_engine.begin() as connection:
        connection.execute(INSERT, row(**changes))
    with store_engine.begin() as connection:
        assert not any(state(connection).values())
