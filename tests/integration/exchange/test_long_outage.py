"""Three days without a link, by a clock of the test; then the backlog at its rate, and what happens now before it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from edge_agent.outgoing import Outgoing
from edge_agent.queue import NewFact
from primespark.store.reconciliation import DocumentRules
from primespark.sync.records import DataClass
from tests.integration.exchange.replicas import Edge, Exchange, Fault

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)
EVERY_S = 30
READINGS = 72 * 3600 // EVERY_S
PER_SECOND = 50
BATCH = 500


class Clock:
    """Seconds that pass when the test says so."""

    now_s = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("edge_agent.outgoing.monotonic", lambda: clock.now_s)
    return clock


def read(exchange: Exchange, edge: Edge, numbers: range) -> None:
    """Readings, enqueued together."""
    facts = [
        NewFact(DataClass.TELEMETRY, {"number": number}, time=BEGAN + timedelta(seconds=EVERY_S * number))
        for number in numbers
    ]
    exchange.run(edge.queue.enqueue(facts))


def stored(engine: Engine, stream: str) -> int:
    with engine.begin() as connection:
        statement = "SELECT count(*) FROM sync.fact WHERE stream = :stream"
        return int(connection.execute(text(statement), {"stream": stream}).scalar_one())


def test_three_days_without_a_link(store_engine: Engine, tmp_path: Path, clock: Clock) -> None:
    exchange = Exchange(store_engine, tmp_path, DocumentRules(), {"edge-1": 0})
    edge = exchange.edges[0]
    edge.outgoing = Outgoing(edge.database, "edge-1", BATCH, 1_000_000, PER_SECOND)
    for first in range(0, READINGS, 360):
        read(exchange, edge, range(first, first + 360))
        clock.now_s += 360 * EVERY_S
        # Once an hour it tries: what is fixed for sending stays as it is.
        exchange.push(edge, Fault.REQUEST_LOST)
    assert exchange.run(edge.queue.status()).pending == READINGS

    healed_s, number, live = clock.now_s, READINGS, 0
    due_s = clock.now_s
    while (left := stored(store_engine, "telemetry")) < READINGS:
        if clock.now_s >= due_s:
            read(exchange, edge, range(number, number + 1))
            number, live, due_s = number + 1, live + 1, due_s + EVERY_S
        if not exchange.push(edge):
            clock.now_s += min(edge.outgoing.pause_s, due_s - clock.now_s)
        # The batch that was fixed before the outage goes first; then nothing that happens waits for the backlog.
        assert left == 0 or stored(store_engine, "telemetry.live") >= live - 1
    elapsed_s = clock.now_s - healed_s
    assert READINGS / PER_SECOND * 0.9 <= elapsed_s <= READINGS / PER_SECOND * 1.1
    assert live >= elapsed_s // EVERY_S

    exchange.heal()
    with store_engine.begin() as connection:
        rows = connection.execute(text("SELECT CAST(value->>'number' AS int), time FROM sync.fact")).all()
        assert connection.execute(text("SELECT count(*) FROM sync.lost")).scalar_one() == 0
    assert sorted(tuple(row) for row in rows) == [
        (one, BEGAN + timedelta(seconds=EVERY_S * one)) for one in range(number)
    ]
    exchange.close()
