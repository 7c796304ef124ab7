"""A dry run says what the worker then says, of facts on their whole way: gate, relay, broker, worker, store."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from primespark.cloud.main import build, build_app
from primespark.core.clock import to_rfc3339, utc_now
from primespark.core.settings import load_settings
from tests.helpers import wait_until
from tests.integration.cloud.test_gate import Gate, batch, fact
from tests.integration.streams.stage import Stage
from tests.kafka import brokers

RULE = {
    "rule_id": "hot", "source_topic": "edge.telemetry", "target_topic": "cloud.hot",
    "aggregation_function": "percentile", "percentile": 90, "value_field": "temperature_c",
    "window_config": {"window_type": "session", "session_gap_seconds": 15, "watermark_scope": "key"},
}  # fmt: skip


def facts(start: datetime) -> list[dict[str, Any]]:
    """Sessions of several lengths; the last row is far enough ahead to end all before it."""
    moments = [0, 10, 20, 60, 70, 71, 120, 200, 210, 215, 230, 600]
    return [
        fact(seq, time=to_rfc3339(start + timedelta(seconds=second)), value={"temperature_c": 20.0 + second % 7})
        for seq, second in enumerate(moments, 1)
    ]


@pytest.mark.prove
async def test_a_rule_fires_what_its_dry_run_said(postgres_url: str, tmp_path: Path) -> None:
    # A broker of its own: in that of other tests are positions of other logs.
    with brokers.embedded_broker(tmp_path / "broker") as broker:
        stage = await asyncio.to_thread(Stage, broker, postgres_url, tmp_path)
        kafka = {"bootstrap_servers": broker.bootstrap_servers, "embedded": True}
        settings = load_settings(overrides={"cloud": {"store": {"url": postgres_url}, "kafka": kafka}})
        cloud = await asyncio.to_thread(build, settings, tmp_path)
        app = build_app(cloud)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://cloud") as client,
        ):
            try:
                await play(Gate(client, cloud, (tmp_path / "cloud" / "admin.key").read_text()), stage)
            finally:
                await asyncio.to_thread(stage.close)
        cloud.engine.dispose()


async def play(gate: Gate, stage: Stage) -> None:
    worker = await asyncio.to_thread(stage.start_ready)
    key, start = await gate.enrol(), utc_now() - timedelta(hours=1)
    added = await gate.client.post("/api/v1/streams/rules", json=RULE, headers=gate.admin)
    assert added.status_code == 201, added.text
    pushed = facts(start)
    for number in range(3):
        answer = await gate.push(key, batch(number + 1, pushed[4 * number : 4 * number + 4]))
        assert answer.status_code == 200, answer.text
    tried = await gate.client.post("/api/v1/streams/rules/dry-run", json=RULE, headers=gate.admin)
    said = {
        (result["group"][0], result["window_start"]): (result["value"], result["count"], result["revision"])
        for result in tried.json()["results"]
    }
    assert [count for _, count, _ in said.values()] == [3, 3, 1, 4]
    await asyncio.to_thread(wait_until, lambda: stage.windows("hot") == said, 30)
    assert worker.counter("duplicates") == 0
    values = [json.loads(record.value)["value"] for record in await asyncio.to_thread(stage.read, "cloud.hot")]
    assert sorted(values) == sorted(value for value, _, _ in said.values())
