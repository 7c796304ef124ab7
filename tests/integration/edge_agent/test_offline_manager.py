"""The specification's usage example, as printed but for the module path; beside the agent, whose queue it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.offline_manager import OperationType, Priority, get_offline_manager
from primespark.core.settings import OfflineSettings
from tests.integration.edge_agent.device import running_device
from tests.integration.edge_agent.gate import RunningGate


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3)


@pytest.fixture
def folder(gate: RunningGate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PRIMESPARK_HOME", str(tmp_path))
    monkeypatch.setenv("PRIMESPARK_NETWORK__CLOUD_URL", gate.url)
    get_offline_manager.cache_clear()
    yield tmp_path / "edge" / "edge-1"
    get_offline_manager.cache_clear()


async def test_the_usage_example(
    gate: RunningGate, folder: Path, image: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    manager = get_offline_manager()
    await manager.initialize()

    # Queue operation
    operation_id = await manager.queue_operation(
        operation_type=OperationType.INFERENCE,
        payload={"model": "yolov8", "data": image},
        priority=Priority.HIGH
    )  # fmt: skip

    # Check status
    print(f"Online: {manager.is_online()}")
    print(f"Queue size: {manager.get_status()['queue_size']}")

    assert "Online: True\nQueue size: 1\n" in capsys.readouterr().out
    assert operation_id == "operations.inference_results.high/1"
    await manager.shutdown()
    async with running_device(folder, gate.url) as device:
        await device.drained()
    (fact,) = gate.oracle.facts
    assert (fact["data_class"], fact["value"]["model"]) == ("inference_results", "yolov8")
    assert fact["value"]["data"].keys() == {"png_base64"}


async def test_the_agent_that_runs_beside_sends_what_is_queued_by_priority(gate: RunningGate, folder: Path) -> None:
    manager = get_offline_manager()
    await manager.initialize()
    gate.oracle.faults.extend([(503, "unavailable")] * 10_000)
    async with running_device(folder, gate.url, limits=OfflineSettings(minimum_free_disk_bytes=0)) as device:
        for number, priority in enumerate([Priority.LOW, Priority.NORMAL, Priority.CRITICAL]):
            await manager.queue_operation(OperationType.TELEMETRY, {"n": number, "raw": b"\0"}, priority)
            await device.enqueue(number)
        # As the agent's reports do: a look at the file shows what another process left there.
        assert (await device.queue.status()).pending == manager.get_status()["queue_size"] == 6
        gate.oracle.faults.clear()
        await device.drained()
    await manager.shutdown()
    assert sorted(fact["value"]["n"] for fact in gate.oracle.facts) == [0, 0, 1, 1, 2, 2]
    ours = [fact["stream"].rsplit(".", 1)[1] for fact in gate.oracle.facts if "raw" in fact["value"]]
    assert sorted(ours) == ["critical", "low", "normal"]


async def test_without_a_cloud_it_is_offline_and_keeps_what_it_is_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PRIMESPARK_NETWORK__CLOUD_URL")
    for _ in range(2):
        get_offline_manager.cache_clear()
        manager = get_offline_manager()
        await manager.initialize()
        await manager.queue_operation(OperationType.METRICS, {"metric": "a", "value": 1.0})
        assert not manager.is_online()
        await manager.shutdown()
    manager = get_offline_manager()
    await manager.initialize()
    assert manager.get_status()["queue_size"] == 2
    await manager.shutdown()
