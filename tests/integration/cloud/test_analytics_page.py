"""The examples of docs/analytics.md, run in their order."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner

from primespark.cli.main import app
from primespark.store import rollups, samples
from primespark.store.samples import Sample
from primespark.store.schema import metadata
from tests.integration.cloud.test_gate import Gate, gate

__all__ = ["gate"]
PAGE = (Path(__file__).parents[3] / "docs" / "analytics.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"```http\n(GET|POST) (\S+)\n(.*?)```\n```json\n(.*?)```", re.DOTALL)


async def ask(gate: Gate, method: str, path: str, body: str) -> Any:
    content = body.encode() or None
    headers = gate.admin | ({"Content-Type": "application/json"} if content else {})
    answer = await gate.client.request(method, path, content=content, headers=headers)
    return answer.json()


async def test_each_example_is_answered_as_printed(gate: Gate) -> None:
    examples = EXAMPLE.findall(PAGE)
    assert len(examples) == PAGE.count("```http\n") > 10
    for method, path, body, expected in examples:
        assert await ask(gate, method, path, body) == json.loads(expected), (path, body)
        with gate.cloud.engine.begin() as connection:
            rollups.refresh_hours(connection, datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC))


def test_the_statements_run(store_engine: Engine) -> None:
    (statements,) = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    with store_engine.begin() as connection:
        assert [tuple(row) for row in connection.exec_driver_sql(statements)] == [("pi5-001", 75.5)]


def test_the_command_prints_its_line(store_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    given = json.loads(EXAMPLE.findall(PAGE)[0][2])["metrics"]
    rows = [
        Sample(
            one["metric_name"], one["device_id"], "api", one.get("labels", {}), datetime.fromisoformat(one["time"]), 0,
            one["value"], one.get("quality"),
        )
        for one in given
    ]  # fmt: skip
    with store_engine.begin() as connection:
        samples.insert(connection, rows)
    monkeypatch.setenv("PRIMESPARK_CLOUD__STORE__URL", store_engine.url.render_as_string(hide_password=False))
    ((command, printed),) = re.findall(r"```text\n\$ primespark (.*?)\n(.*?)```", PAGE, re.DOTALL)
    assert CliRunner(env={"COLUMNS": "100"}).invoke(app, command.split()).output == printed


def test_the_picture_shows_what_is_there() -> None:
    pictured = dict(re.findall(r"^    (\w+) \{ (.*?)\}$", PAGE, re.DOTALL | re.MULTILINE))
    for name, columns in pictured.items():
        table = metadata.tables[f"metrics.{'sample_standard' if name == 'sample' else name}"]
        assert {line.split()[1] for line in columns.splitlines()} <= set(table.columns.keys()), name
