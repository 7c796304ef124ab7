"""What a round does to devices and people who talk with the running gate."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from primespark.cli.main import app
from primespark.core.clock import utc_now
from primespark.store import documents, rounds
from tests.integration.cloud.test_gate import Gate, gate
from tests.integration.edge_agent.device import until

__all__ = ["gate"]
DAY = timedelta(days=1)
RULES = rounds.Rules(overdue_after=timedelta(minutes=15), tombstone_age=DAY, inactive_after=30 * DAY)


def close(gate: Gate, ahead: timedelta = timedelta()) -> rounds.Round:
    with gate.cloud.engine.begin() as connection:
        return rounds.close_round(connection, utc_now() + ahead, RULES)


def run(gate: Gate, statement: str) -> list[Any]:
    """The first column of what a statement gives."""
    with gate.cloud.engine.begin() as connection:
        found = connection.execute(text(statement))
        return list(found.scalars()) if found.returns_rows else []


def write(gate: Gate, scope: str, patch: dict[str, Any]) -> None:
    with gate.cloud.engine.begin() as connection:
        documents.write_cloud(connection, scope, "twin", patch)


async def test_a_device_that_missed_removed_deletions_is_told_to_read_all_anew(gate: Gate) -> None:
    key = await gate.enrol()
    write(gate, "fleet", {"desired": {"n": 1}})
    first = (await gate.client.get("/sync/v1/pull", headers=key)).json()
    write(gate, "fleet", {"desired": None})
    run(gate, "UPDATE sync.document SET updated_at = now() - interval '2 days'")
    run(gate, "UPDATE sync.device SET last_seen_at = now() - interval '31 days'")
    assert close(gate).tombstones == 1
    answer = await gate.client.get("/sync/v1/pull", params={"cursor": first["next_cursor"]}, headers=key)
    assert (answer.status_code, answer.json()["code"]) == (410, "must_resync")
    assert answer.headers["content-type"] == "application/problem+json"
    again = (await gate.client.get("/sync/v1/pull", headers=key)).json()
    assert again["changes"] == []
    last = await gate.client.get("/sync/v1/pull", params={"cursor": again["next_cursor"]}, headers=key)
    assert last.status_code == 200


async def test_a_waiting_pull_whose_change_was_not_announced_is_woken(gate: Gate) -> None:
    key = await gate.enrol()
    write(gate, "edge-1", {"desired": {"n": 1}})
    cursor = (await gate.client.get("/sync/v1/pull", headers=key)).json()["next_cursor"]
    run(gate, "UPDATE sync.device SET cursor_at = now() - interval '1 hour'")
    waiting = asyncio.create_task(
        gate.client.get("/sync/v1/pull", params={"cursor": cursor, "wait": 50}, headers=key, timeout=60)
    )
    # It has read, and taken note of that, in one transaction.
    await until(lambda: run(gate, "SELECT cursor FROM sync.device") == [cursor])
    # As if the notification of a change had been lost: the rows are there, and nobody said so.
    run(gate, "INSERT INTO sync.log (kind, data_class, rows, scope, key) VALUES ('document', 'configurations', 1,"
              " 'edge-1', 'twin')")  # fmt: skip
    run(gate, "UPDATE sync.document SET log_seq = (SELECT max(log_seq) FROM sync.log),"
              " updated_at = now() - interval '3 minutes'")  # fmt: skip
    assert close(gate).woken == ("edge-1",)
    page = (await asyncio.wait_for(waiting, 10)).json()
    assert [change["change"]["key"] for change in page["changes"]] == ["twin"]


async def test_overdue_devices_are_shown(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    key = await gate.enrol()
    await gate.client.get("/sync/v1/pull", headers=key)
    run(gate, "UPDATE sync.device SET last_seen_at = now() - interval '1 hour'")
    assert close(gate).overdue == ("edge-1",)
    shown = (await gate.client.get("/api/v1/devices/edge-1", headers=gate.admin)).json()
    (listed,) = (await gate.client.get("/api/v1/devices", headers=gate.admin)).json()["items"]
    assert shown["overdue_since"] == listed["overdue_since"] is not None
    assert shown["last_seen_at"] < shown["overdue_since"]
    monkeypatch.setenv("PRIMESPARK_CLOUD__STORE__URL", gate.cloud.engine.url.render_as_string(hide_password=False))
    printed = await asyncio.to_thread(CliRunner().invoke, app, ["device", "list", "--json"])
    (item,) = json.loads(printed.output)["items"]
    assert item["overdue_since"] is not None
    table = await asyncio.to_thread(CliRunner().invoke, app, ["device", "list"])
    assert "overdue" in table.output
    await gate.client.get("/sync/v1/pull", headers=key)
    assert (await gate.client.get("/api/v1/devices/edge-1", headers=gate.admin)).json()["overdue_since"] is None
