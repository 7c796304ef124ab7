"""From a result in the store back to its file, model, device and batch: through the real device, gate and store."""

from __future__ import annotations

import asyncio
import hashlib
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from edge_agent.inference_service import InferenceService
from edge_agent.slots.in_service import Slots
from primespark.cli.main import app
from primespark.core.capture_settings import CaptureSettings
from primespark.core.clock import utc_now
from primespark.core.settings import InferenceSettings
from primespark.inference.models import DETECTOR, load_bundled
from primespark.store import pipeline
from tests.integration.edge_agent.cameras import build_capture
from tests.integration.edge_agent.device import Device, running_device, until
from tests.integration.edge_agent.test_with_cloud import RunningCloud, running_cloud

__all__ = ["running_cloud"]


async def look(device: Device, folder: Path, cloud: RunningCloud) -> str:
    """Let the real detector look at the file of a folder until the cloud has its result; the detector's digest."""
    service = InferenceService(Slots(), InferenceSettings())
    settings = CaptureSettings.model_validate(
        {"sources": [{"name": "yard", "path": str(folder), "frames_per_second": 100}], "loop": False}
    )
    capture = build_capture(settings, service, device.database)[0]
    detector = load_bundled(DETECTOR, 1, 0.4)
    looking = asyncio.create_task(capture.run(detector))
    stored = "SELECT count(*) FROM sync.fact WHERE stream = 'inference_results'"
    await until(lambda: cloud.ask(stored) == [(1,)])
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    service.close()
    return detector.digest


def ask(cloud: RunningCloud, key: str, **query: Any) -> httpx2.Response:
    return httpx2.get(
        f"http://127.0.0.1:{cloud.port}/api/v1/lineage", params=query, headers={"Authorization": f"Bearer {key}"}
    )


async def test_a_result_leads_back_to_its_file_model_device_and_batch(
    running_cloud: RunningCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(folder / "a.png")
    digest = hashlib.sha256((folder / "a.png").read_bytes()).hexdigest()
    before = utc_now()
    url = f"http://127.0.0.1:{running_cloud.port}"
    async with running_device(tmp_path / "device", url, token=running_cloud.token()) as device:
        await device.enqueue(1)
        await device.drained()
        model_digest = await look(device, folder, running_cloud)
    with running_cloud.cloud.engine.begin() as connection:
        made = {"artifact": model_digest, "manifest": "5" * 64}
        pipeline.save_stage(connection, "run-7", "deployment", made)
    key = (tmp_path / "home" / "cloud" / "admin.key").read_text()
    asked = {"device_id": "edge-1", "stream": "inference_results", "seq": 1}
    answer = await asyncio.to_thread(ask, running_cloud, key, **asked)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["frame"] == {"name": found["frame"]["name"], "sha256": digest, "digest_of": "file"}
    assert found["frame"]["name"].endswith("a.png")
    assert found["model"] == {
        "name": DETECTOR, "version": found["model"]["version"], "digest": model_digest, "manifest": "5" * 64,
        "run_id": "run-7",
    }  # fmt: skip
    assert (found["device_id"], found["epoch"], found["data_class"]) == ("edge-1", 1, "inference_results")
    (batch_seq, log_seq), *more = running_cloud.ask(
        "SELECT batch_seq, log_seq FROM sync.log WHERE data_class = 'inference_results'"
    )
    assert not more
    assert (found["batch_seq"], found["log_seq"]) == (batch_seq, log_seq)
    assert batch_seq == 2
    assert before - timedelta(seconds=1) < datetime.fromisoformat(found["received_at"]) < utc_now()
    # The same by command, and of a fact that is no result.
    monkeypatch.setenv("PRIMESPARK_CLOUD__STORE__URL", running_cloud.cloud.engine.url.render_as_string(False))
    shown = await asyncio.to_thread(CliRunner().invoke, app, ["lineage", "edge-1", "inference_results", "1", "--json"])
    assert json.loads(shown.output) == found
    plain = (await asyncio.to_thread(ask, running_cloud, key, **asked | {"stream": "telemetry"})).json()
    assert (plain["batch_seq"], plain["frame"], plain["model"]) == (1, None, None)
    table = await asyncio.to_thread(CliRunner().invoke, app, ["lineage", "edge-1", "inference_results", "1"])
    assert digest[:20] in table.output.replace("\n", "")


async def test_what_is_not_there_is_told(running_cloud: RunningCloud, tmp_path: Path) -> None:
    key = (tmp_path / "home" / "cloud" / "admin.key").read_text()
    with running_cloud.cloud.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO sync.lost VALUES ('edge-1', 1, 'telemetry', 5, 9, 'queue_full')"
        )  # fmt: skip

    async def code(**query: Any) -> tuple[int, str]:
        answer = await asyncio.to_thread(ask, running_cloud, key, **query)
        return answer.status_code, answer.json()["code"]

    asked = {"device_id": "edge-1", "stream": "telemetry", "seq": 6}
    assert await code(**asked) == (404, "fact_lost")
    assert await code(**asked | {"epoch": 2}) == (404, "not_found")
    assert await code(**asked | {"seq": 4}) == (404, "not_found")
    assert await code(**asked | {"seq": 0}) == (422, "invalid_input")
    assert await code(**asked | {"seq": 2**63}) == (422, "invalid_input")
    assert await code(**asked | {"stream": "\x00"}) == (422, "invalid_input")
    assert await code(**asked | {"device_id": "fleet"}) == (422, "invalid_input")
    assert (await asyncio.to_thread(ask, running_cloud, "no-key-at-all", **asked)).status_code == 401


async def test_a_model_nobody_trained_here_is_found_by_the_documents_that_point_at_it(
    running_cloud: RunningCloud, tmp_path: Path
) -> None:
    running_cloud.desire({"models": {"yard": {"version": 3, "manifest": "6" * 64, "artifacts": ["7" * 64, "8" * 64]}}})
    with running_cloud.cloud.engine.begin() as connection:
        value = {"event": "person", "frame": "yard-2", "source": "yard", "model": "yard", "model_version": 3,
                 "model_digest": "8" * 64}  # fmt: skip
        connection.exec_driver_sql(
            "INSERT INTO sync.fact VALUES ('edge-1', 1, 'events', 1, 'inference_results', now(), 'b', 1, %s)",
            (json.dumps(value),),
        )
    key = (tmp_path / "home" / "cloud" / "admin.key").read_text()
    asked = {"device_id": "edge-1", "stream": "events", "seq": 1}
    found = (await asyncio.to_thread(ask, running_cloud, key, **asked)).json()
    assert found["model"] == {
        "name": "yard", "version": 3, "digest": "8" * 64, "manifest": "6" * 64, "run_id": None
    }  # fmt: skip
    assert found["frame"] == {"name": "yard-2", "sha256": None, "digest_of": None}
    assert (found["batch_seq"], found["received_at"], found["log_seq"]) == (None, None, None)
