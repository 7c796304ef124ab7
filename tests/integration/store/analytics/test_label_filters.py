"""Filters on the labels of ten thousand series: the series that plain Python finds, and found by the index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from primespark.store import database, samples
from primespark.store.analytics import queries
from primespark.store.analytics.aggregates import Aggregation
from primespark.store.analytics.queries import Query
from primespark.store.analytics.selection import Filter, Op
from primespark.store.samples import Sample
from tests.postgres import PostgresServer

T0 = datetime(2026, 3, 1, tzinfo=UTC)
SERIES = 10_000
Labels = dict[str, str]


def labels_of(number: int) -> Labels:
    """Every series has a host of its own; a hundred share a rack, half have no zone, and one has a note."""
    labels = {"host": f"h{number}", "rack": f"r{number % 100}"}
    if number % 2:
        labels["zone"] = f"z{number % 7}"
    return labels | ({"note": 'a "b" {c}'} if number == 4321 else {})


@pytest.fixture(scope="module")
def engine(postgres_server: PostgresServer) -> Iterator[Engine]:
    url = postgres_server.create_store()
    engine = database.connect(url)
    with engine.begin() as connection:
        rows = [Sample("m", "edge-1", "test", labels_of(number), T0, 0, float(number)) for number in range(SERIES)]
        samples.insert(connection, rows)
    # As the server does by itself within minutes: until then what is new is in no order in the index.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE metrics.series"))
    yield engine
    engine.dispose()
    postgres_server.drop(url)


CASES: list[tuple[list[Filter], Callable[[Labels], bool], bool]] = [
    ([Filter("labels.host", Op.EQUAL, "h77")], lambda it: it["host"] == "h77", True),
    ([Filter("labels.host", Op.EQUAL, "h")], lambda _: False, True),
    ([Filter("labels.host", Op.IN, ["h1", "h9999", "x"])], lambda it: it["host"] in ("h1", "h9999"), True),
    ([Filter("labels.note", Op.EQUAL, 'a "b" {c}')], lambda it: "note" in it, True),
    ([Filter("labels.rack", Op.EQUAL, "r5")], lambda it: it["rack"] == "r5", True),
    (
        [Filter("labels.rack", Op.EQUAL, "r5"), Filter("labels.zone", Op.NOT_EQUAL, "z1")],
        lambda it: it["rack"] == "r5" and it.get("zone") != "z1",
        True,
    ),
    ([Filter("labels.zone", Op.NOT_EQUAL, "z1")], lambda it: it.get("zone") != "z1", False),
    ([Filter("labels.zone", Op.EXISTS, value=False)], lambda it: "zone" not in it, False),
    ([Filter("labels.note", Op.EXISTS, value=True)], lambda it: "note" in it, False),
]


@pytest.mark.parametrize(("filters", "holds", "is_indexed"), CASES)
def test_a_filter_finds_its_series_by_the_index_where_it_can(
    engine: Engine, filters: list[Filter], holds: Callable[[Labels], bool], is_indexed: bool
) -> None:
    expected = [number for number in range(SERIES) if holds(labels_of(number))]
    plans: list[str] = []

    @event.listens_for(engine, "after_cursor_execute")
    def explain(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        *_begin, question = statement.split("; ")
        if "FROM metrics.series" in question:
            with cursor.connection.cursor() as another:
                another.execute(f"EXPLAIN {question}", parameters)
                plans.append("\n".join(line for (line,) in another.fetchall()))

    query = Query(["m"], [Aggregation.COUNT, Aggregation.SUM], T0, T0 + timedelta(hours=1), filters=filters)
    try:
        with engine.begin() as connection:
            answer = queries.run(connection, query)
    finally:
        event.remove(engine, "after_cursor_execute", explain)
    totals = [values for series in answer.series for _, values in series.points()]
    assert totals == ([[float(len(expected)), float(sum(expected))]] if expected else [])
    assert [("series_labels" in plan) for plan in plans] == [is_indexed]
