"""Device, gate and database are killed while they work; the store then holds exactly what was acknowledged."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from primespark.cli.demo.clients import DeviceClient, until
from primespark.core.settings import Settings
from primespark.embedded.stack import DEFAULT_AGENTS, AgentSpec, Stack
from primespark.embedded.supervisor import State
from primespark.store import database
from tests.e2e.samples import stored_and_sent
from tests.helpers import rounds

KILLS = rounds(3, 15)
# Frames come fast, so a kill at a random moment falls into capture, enqueue, push or ingest.
BUSY = {
    "PRIMESPARK_EDGE__CAPTURE__FRAMES_PER_SECOND": "20",
    "PRIMESPARK_EDGE__TELEMETRY__INTERVAL_S": "0.05",
    "PRIMESPARK_EDGE__TELEMETRY__REPLAY_RECORDING": "true",
    "PRIMESPARK_SYNC__BATCH_RECORDS": "50",
    "PRIMESPARK_SYNC__BATCH_WAIT_S": "0.1",
    "PRIMESPARK_SYNC__RETRY_BASE_S": "0.1",
    "PRIMESPARK_SYNC__RETRY_MAX_S": "0.5",
}


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    agents = tuple(AgentSpec(agent.device_id, environment=BUSY) for agent in DEFAULT_AGENTS)
    stack = Stack(Settings(), tmp_path / "home", agents=agents, only=("postgres", "broker", "cloud", "edge"))
    try:
        await stack.start()
        yield stack
    finally:
        await stack.stop()


@pytest.mark.prove
async def test_the_store_holds_exactly_what_was_acknowledged(stack: Stack) -> None:
    chance = random.Random(7)  # a seed for the moments; what runs at them is left to the machine
    clients = [
        DeviceClient(agent.device_id, stack.endpoints[agent.device_id], stack.key_file(agent.device_id))
        for agent in DEFAULT_AGENTS
    ]
    seen: dict[tuple[str, str], int] = {}
    for _ in range(KILLS):
        for victim in (clients[0].device_id, "cloud", "postgres"):
            await asyncio.sleep(chance.uniform(0.3, 1.5))  # the moment of the kill, not a synchronisation
            await _remember_acknowledged(clients, seen)
            await _kill(stack, victim)
    before = dict(seen)

    async def moved_on() -> bool:
        await _remember_acknowledged(clients, seen)
        return all(seen.get(key, 0) > last for key, last in before.items() if key[1] == "inference_results")

    # Two further rounds of acknowledgements on every device: whatever was in flight at a kill has been sent again.
    for _ in range(2):
        await until("devices to go on", moved_on, 30)
        before = dict(seen)
    for client in clients:
        await client.aclose()

    engine = database.connect(stack.store_url, pool_size=1)
    with engine.connect() as connection:
        for (device_id, stream), last in seen.items():
            rows = connection.execute(
                text("SELECT epoch, seq FROM sync.fact WHERE device_id = :d AND stream = :s AND seq <= :last"),
                {"d": device_id, "s": stream, "last": last},
            ).all()
            assert sorted(row.seq for row in rows) == list(range(1, last + 1)), (device_id, stream)
            # Of a stream that is new nothing may be acknowledged yet.
            assert {row.epoch for row in rows} <= {1}, (device_id, stream)
        lost = connection.execute(text("SELECT count(*) FROM sync.lost")).scalar_one()
        stored, sent = stored_and_sent(connection)
    engine.dispose()
    assert seen[clients[0].device_id, "inference_results"] > 20
    assert lost == 0
    assert stored == sent > 0


async def _remember_acknowledged(clients: list[DeviceClient], seen: dict[tuple[str, str], int]) -> None:
    for client in clients:

        async def answered(client: DeviceClient = client) -> bool:
            status = await client.get("/api/v1/offline/status")
            for stream, state in status["streams"].items():
                key, last = (client.device_id, stream), int(state["acknowledged_seq"])
                assert last >= seen.get(key, 0), "an acknowledgement was taken back"
                seen[key] = last
            return True

        await until(f"{client.device_id} to answer", answered, 30)


async def _kill(stack: Stack, name: str) -> None:
    # A victim that was killed a moment ago may be on its way up again.
    await until(f"{name} to run", lambda: _is_running(stack, name), 30)
    victim = stack.supervisor.process_ids()[name]
    os.kill(victim, signal.SIGKILL)

    async def is_another() -> bool:
        return stack.supervisor.process_ids().get(name) not in (None, victim)

    await until(f"{name} to be started again", is_another, 30)


async def _is_running(stack: Stack, name: str) -> bool:
    return stack.supervisor.states()[name] in {State.STARTING, State.READY}
