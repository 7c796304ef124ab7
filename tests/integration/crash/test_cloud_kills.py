"""`kill -9` of the cloud's process at each point of taking a batch: it is taken once, and answered in the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import Engine, text

from primespark.embedded.ports import choose_port
from primespark.store import devices, outbox
from tests.integration.crash.doom import REACHED, Program, read_notes
from tests.integration.crash.doomed_cloud import CloudPoint, surround
from tests.integration.edge_agent.device import running_device

APPLIED = {CloudPoint.COMMITTED, CloudPoint.HALF_ANSWERED}


class CloudHome:
    """Where a cloud is started again at its address."""

    def __init__(self, folder: Path, store_url: str) -> None:
        self._log = folder / "cloud.log"
        port = choose_port(0, set())
        self.url = f"http://127.0.0.1:{port}"
        home = folder / "home"
        home.mkdir()
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PRIMESPARK_")},
            "PRIMESPARK_HOME": str(home), "PRIMESPARK_CLOUD__STORE__URL": store_url,
            "PRIMESPARK_CLOUD__PORT": str(port), "PRIMESPARK_FEATURES__STREAMS": "false",
        }  # fmt: skip

    def start(self, prepare: Callable[[], None] | None = None) -> Program:
        """The cloud, once it is ready."""
        program = Program("cloud", self._environment, self._log, prepare)
        try:
            program.wait_until(self._is_ready)
        except BaseException:
            program.kill()
            raise
        return program

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx2.HTTPError, OSError):
            return httpx2.get(f"{self.url}/readyz", timeout=2).status_code == 200
        return False


def stored(engine: Engine) -> list[tuple[int, int]]:
    """Seq and value of each fact in the store, in order."""
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT seq, value->>'n' FROM sync.fact WHERE stream = 'telemetry' ORDER BY seq")
        )
        return [(seq, int(number)) for seq, number in rows]


def told(engine: Engine) -> list[int]:
    """Seqs in the log that the rest of the cloud reads, in its order."""
    with engine.connect() as connection:
        return [row["seq"] for entry in outbox.read(connection, 0, 50) for row in entry.rows]


@pytest.mark.parametrize("point", CloudPoint, ids=lambda point: point.name.lower())
async def test_a_batch_is_taken_once_despite_a_kill(store_engine: Engine, tmp_path: Path, point: CloudPoint) -> None:
    notes = tmp_path / "notes"
    home = CloudHome(tmp_path, store_engine.url.render_as_string(hide_password=False))
    with store_engine.begin() as connection:
        token = devices.create_token(connection, 1, timedelta(hours=1))
    doomed = await asyncio.to_thread(home.start, partial(surround, point, 2, notes))
    try:
        async with running_device(tmp_path / "device", home.url, token=token) as device:
            await device.enqueue(0, 1, 2)
            await device.drained()
            await device.enqueue(3, 4)
            await asyncio.to_thread(doomed.killed)
            assert read_notes(notes) == [[REACHED]]
            assert len(stored(store_engine)) == (5 if point in APPLIED else 3)
            await device.enqueue(5)
            doomed = await asyncio.to_thread(home.start)
            await device.drained()
            status = await device.queue.status()
    finally:
        doomed.kill()
    assert stored(store_engine) == [(number + 1, number) for number in range(6)]
    assert told(store_engine) == [1, 2, 3, 4, 5, 6]
    if point in APPLIED:
        assert status.replayed_batches > 0
