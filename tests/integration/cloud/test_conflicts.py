"""A conflict as people meet it: frozen, listed, decided by API and by command, and told to the device."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner

from primespark.cli.main import app
from primespark.core.settings import load_settings
from primespark.store import conflicts, documents
from primespark.store.reconciliation import DocumentRules
from primespark.sync.documents import Document
from primespark.sync.strategies import Strategy, StrategyRule
from tests.integration.cloud.test_gate import Gate, gate
from tests.integration.exchange.replicas import Exchange

__all__ = ["gate"]
RULES = DocumentRules([StrategyRule("configurations", strategy, strategy) for strategy in Strategy], ["manual"])


@pytest.fixture
def exchange(store_engine: Engine, tmp_path: Path) -> Iterator[Exchange]:
    exchange = Exchange(store_engine, tmp_path, RULES, {"edge-1": 0, "edge-2": 0})
    yield exchange
    exchange.close()


def meet(exchange: Exchange, key: str, device: dict[str, Any], cloud: dict[str, Any]) -> Document:
    """Both write a document that had `{"a": 0}`, then exchange; what the device has in the end."""
    edge = exchange.edges[0]
    write_cloud(exchange, key, {"a": 0})
    exchange.heal()
    exchange.change(edge, "edge-1", key, device)
    write_cloud(exchange, key, cloud)
    exchange.heal()
    found = exchange.run(edge.documents.read("edge-1", key))
    assert found is not None
    assert found.value == exchange.in_cloud("edge-1", key).value
    return found


def write_cloud(exchange: Exchange, key: str, patch: dict[str, Any], scope: str = "edge-1") -> None:
    with exchange.engine.begin() as connection:
        documents.write_cloud(connection, scope, key, patch)


def logged(engine: Engine, **filters: Any) -> list[conflicts.Conflict]:
    with engine.begin() as connection:
        return conflicts.page(connection, 0, 100, **filters)


@pytest.mark.parametrize(
    ("strategy", "stands", "winner"),
    [
        ("latest_wins", {"a": 2}, "cloud"), ("cloud_wins", {"a": 2}, "cloud"),
        ("edge_wins", {"a": 1, "mine": 1}, "edge-1"), ("merge", {"a": 2, "mine": 1}, "merge"),
        ("manual", {"a": 2}, None),
    ],
)  # fmt: skip
def test_each_strategy_decides_and_the_log_keeps_what_lost(
    exchange: Exchange, strategy: str, stands: dict[str, Any], winner: str | None
) -> None:
    assert meet(exchange, strategy, {"a": 1, "mine": 1}, {"a": 2}).value == stands
    (entry,) = logged(exchange.engine)
    assert (entry.strategy, entry.winner, entry.device_id) == (strategy, winner, "edge-1")
    assert (entry.cloud_version["value"], entry.device_version["value"]) == ({"a": 2}, {"a": 1, "mine": 1})
    assert (entry.resolved_at is None) == (winner is None)


@pytest.mark.parametrize("strategy", list(Strategy))
def test_what_each_side_owns_is_never_in_conflict(exchange: Exchange, strategy: Strategy) -> None:
    found = meet(exchange, strategy, {"reported": {"n": 1}}, {"desired": {"n": 2}})
    assert found.value == {"a": 0, "reported": {"n": 1}, "desired": {"n": 2}}
    assert logged(exchange.engine) == []


@pytest.mark.parametrize("strategy", list(Strategy))
def test_a_device_shows_its_own_write_until_the_cloud_has_judged_it(exchange: Exchange, strategy: Strategy) -> None:
    edge = exchange.edges[0]
    write_cloud(exchange, strategy, {"a": 0})
    exchange.heal()
    exchange.change(edge, "edge-1", strategy, {"a": 1})
    write_cloud(exchange, strategy, {"a": 2, "desired": {"n": 1}})
    exchange.pull(edge)
    shown = exchange.run(edge.documents.read("edge-1", strategy))
    assert shown is not None
    assert shown.value == {"a": 1, "desired": {"n": 1}}
    assert "cloud" in shown.vv
    assert shown.vv["cloud"] < exchange.in_cloud("edge-1", strategy).vv["cloud"]


def test_a_frozen_document_takes_no_write_and_the_others_flow(exchange: Exchange) -> None:
    meet(exchange, "manual", {"a": 1}, {"a": 2})
    with pytest.raises(Exception, match="wait for a decision") as refused:
        write_cloud(exchange, "manual", {"a": 3})
    assert getattr(refused.value, "code", "") == "record_frozen"
    write_cloud(exchange, "manual", {"desired": {"n": 1}})
    write_cloud(exchange, "manual-too", {"a": 1})
    edge = exchange.edges[0]
    exchange.change(edge, "edge-1", "manual", {"a": 4, "reported": {"n": 2}})
    exchange.heal()
    found = exchange.run(edge.documents.read("edge-1", "manual"))
    assert found is not None
    assert found.value == {"a": 2, "desired": {"n": 1}, "reported": {"n": 2}}
    # The newest of the device's versions waits.
    (entry,) = logged(exchange.engine, only_open=True)
    assert entry.device_version["value"] == {"a": 4}


def test_a_decision_reaches_every_device_and_closes_all_that_waits(exchange: Exchange) -> None:
    write_cloud(exchange, "manual", {"a": 0}, scope="fleet")
    exchange.heal()
    for number, edge in enumerate(exchange.edges, 1):
        exchange.change(edge, "fleet", "manual", {"a": number})
    write_cloud(exchange, "manual", {"a": 9}, scope="fleet")
    exchange.heal()
    entries = logged(exchange.engine, only_open=True)
    assert [entry.device_id for entry in entries] == ["edge-1", "edge-2"]
    with exchange.engine.begin() as connection:
        conflicts.resolve(connection, entries[1].conflict_id, "test", winner="edge-2")
    exchange.heal()
    for edge in exchange.edges:
        found = exchange.run(edge.documents.read("fleet", "manual"))
        assert found is not None
        assert found.value == {"a": 2}
    assert logged(exchange.engine, only_open=True) == []
    write_cloud(exchange, "manual", {"a": 10}, scope="fleet")


def test_the_log_of_a_document_is_bounded(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conflicts, "KEPT_PER_DOCUMENT", 3)
    for number in range(1, 6):
        exchange.change(exchange.edges[0], "edge-1", "cloud_wins", {"a": number})
        write_cloud(exchange, "cloud_wins", {"a": -number})
        exchange.heal()
    versions = [entry.device_version["value"] for entry in logged(exchange.engine)]
    assert versions == [{"a": 3}, {"a": 4}, {"a": 5}]


@pytest.fixture
def command(store_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PRIMESPARK_CLOUD__STORE__URL", store_engine.url.render_as_string(hide_password=False))

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["sync", *arguments])

    return run


def test_the_commands_show_and_decide(exchange: Exchange, command: Any) -> None:
    meet(exchange, "manual", {"a": 1}, {"a": 2})
    shown = command("conflicts").output
    assert "edge-1/manual" in shown
    assert "open" in shown
    (item,) = json.loads(command("conflicts", "--json").output)["items"]
    number = str(item["conflict_id"])
    for wrong in (["--winner", "edge-2"], [], ["--winner", "cloud", "--value", "{}"], ["--value", "[1]"],
                  ["--value", "{"], ["--value", "@/nowhere"], ["--value", '{"desired": {"a": 1}}']):  # fmt: skip
        refused = command("resolve", number, *wrong)
        assert refused.exit_code != 0
        assert not isinstance(refused.exception, SystemExit) or refused.exception.code != 0
    decided = command("resolve", number, "--winner", "edge-1")
    assert decided.output.strip() == 'edge-1/manual is now {"a": 1}'
    assert json.loads(command("conflicts", "--json").output)["items"] == []
    (item,) = json.loads(command("conflicts", "--all", "--json").output)["items"]
    assert item["winner"] == "edge-1"
    assert item["resolved_by"].startswith("shell:")
    assert command("resolve", number, "--winner", "cloud").exit_code != 0
    exchange.heal()
    found = exchange.run(exchange.edges[0].documents.read("edge-1", "manual"))
    assert found is not None
    assert found.value == {"a": 1}


async def test_the_api_shows_and_decides(gate: Gate, tmp_path: Path) -> None:
    def make() -> None:
        exchange = Exchange(gate.cloud.engine, tmp_path, RULES, {"edge-1": 0, "edge-2": 0})
        meet(exchange, "manual", {"a": 1}, {"a": 2})
        exchange.close()

    await asyncio.to_thread(make)
    answer = await gate.client.get("/sync/v1/conflicts", params={"open": "true"}, headers=gate.admin)
    (item,) = answer.json()["items"]
    assert (item["cloud_version"]["value"], item["device_version"]["value"]) == ({"a": 2}, {"a": 1})
    at = f"/sync/v1/conflicts/{item['conflict_id']}/resolve"
    expected = {
        '{"winner": "nobody"}': (422, "bad_resolution"), "{}": (422, "bad_resolution"),
        '{"winner": "cloud", "value": {}}': (422, "bad_resolution"),
        '{"value": {"reported": {}}}': (422, "bad_resolution"),
    }  # fmt: skip
    for body, told in expected.items():
        refused = await gate.client.post(at, content=body, headers=gate.admin | {"Content-Type": "application/json"})
        assert (refused.status_code, refused.json()["code"]) == told
    write = {"Content-Type": "application/merge-patch+json", **gate.admin}
    frozen = await gate.client.patch(
        "/api/v1/devices/edge-1/records/configurations/manual", content='{"a": 5}', headers=write
    )
    assert (frozen.status_code, frozen.json()["code"]) == (409, "record_frozen")
    decided = await gate.client.post(at, json={"value": {"a": 7}}, headers=gate.admin)
    assert decided.json()["value"] == {"a": 7}
    again = await gate.client.post(at, json={"winner": "cloud"}, headers=gate.admin)
    assert (again.status_code, again.json()["code"]) == (409, "conflict_resolved")
    missing = await gate.client.post("/sync/v1/conflicts/999999/resolve", json={"winner": "cloud"}, headers=gate.admin)
    assert missing.status_code == 404
    (item,) = (await gate.client.get("/sync/v1/conflicts", headers=gate.admin)).json()["items"]
    assert (item["winner"], item["resolved_by"]) == ("value", "person:admin")
    key = await gate.enrol("edge-3")
    assert (await gate.client.get("/sync/v1/conflicts", headers=key)).status_code == 403


def test_the_settings_name_strategies(gate: Gate, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "sync:\n  fleet_writable: [shared/]\n  strategies:\n    - {prefix: lamp, strategy: manual}\n"
    )
    rules = replace(gate.cloud, settings=load_settings(tmp_path / "s.yaml")).document_rules
    assert rules.strategies == [StrategyRule("configurations", "lamp", Strategy.MANUAL)]
    assert rules.lets_write("edge-1", "fleet", "shared/x")
    assert not rules.lets_write("edge-1", "fleet", "other")
    assert not rules.lets_write("edge-1", "edge-2", "shared/x")
