"""The cloud's clock is set, by an hour or by months, there and back: no write is lost and none is frozen out."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from primespark.core.clock import HybridLogicalClock, Timestamp, wall_clock_ms
from primespark.store import documents, reconciliation, server
from primespark.store.reconciliation import DocumentRules
from primespark.sync.strategies import Strategy, StrategyRule
from tests.integration.exchange.replicas import Exchange

RULES = DocumentRules([StrategyRule("configurations", strategy, strategy) for strategy in Strategy])
STEPS_H = (0, 24 * 40, 0, -24 * 40, 1, 0)


@pytest.mark.parametrize("strategy", list(Strategy))
def test_who_saw_a_write_writes_after_it(
    store_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: Strategy
) -> None:
    exchange = Exchange(store_engine, tmp_path, RULES, {"edge-1": 0})
    edge, key, ahead_ms, stamps = exchange.edges[0], strategy.value, [0], []

    def now_ms() -> int:
        return wall_clock_ms() + ahead_ms[0]

    def clock_of(row: server.Server) -> HybridLogicalClock:
        return HybridLogicalClock(server.REPLICA, now_ms, Timestamp.parse(row.last_hlc) if row.last_hlc else None)

    monkeypatch.setattr(server, "_clock", clock_of)
    monkeypatch.setattr(reconciliation, "wall_clock_ms", now_ms)
    for number, ahead_h in enumerate(STEPS_H):
        ahead_ms[0] = int(timedelta(hours=ahead_h).total_seconds() * 1000)
        with store_engine.begin() as connection:
            documents.write_cloud(connection, "edge-1", key, {"n": 2 * number})
        stamps.append(exchange.in_cloud("edge-1", key).hlc)
        exchange.heal()
        exchange.change(edge, "edge-1", key, {"n": 2 * number + 1})
        exchange.heal()
        held = exchange.run(edge.documents.read("edge-1", key))
        assert held is not None
        assert held.value == exchange.in_cloud("edge-1", key).value == {"n": 2 * number + 1}
        stamps.append(exchange.in_cloud("edge-1", key).hlc)
    assert stamps == sorted(stamps)
    exchange.close()
