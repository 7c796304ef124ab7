"""Lanes of the gate with a real PostgreSQL: batches that wait for a lock hold up neither pulls nor people."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial

import httpx2
from sqlalchemy import Engine, func, select, text

from primespark.cloud.lanes import Lane, Lanes
from primespark.cloud.main import build_app
from primespark.store import sync_log
from tests.integration.cloud.test_gate import Gate, batch, fact, gate
from tests.integration.cloud.test_otlp import post as open_telemetry
from tests.integration.cloud.test_remote_write import post as remote_write
from tests.unit.cloud.test_otlp import VALID as OTLP
from tests.unit.cloud.test_remote_write import VALID, packed

__all__ = ["gate"]
SIZE, MOST_WAITING = 12, 8
PUSHING = 3
_WAITING = text(
    "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database"
    " WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
)


@contextmanager
def sync_log_locked(engine: Engine) -> Iterator[None]:
    """Nobody appends to the sync log meanwhile, so no batch is committed."""
    with engine.connect() as connection, connection.begin():
        sync_log.lock(connection)
        yield


def waiting_for_lock(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(_WAITING).scalar_one())


async def until_waiting(engine: Engine, count: int) -> None:
    async with asyncio.timeout(10):
        while await asyncio.to_thread(waiting_for_lock, engine) < count:  # noqa: ASYNC110 (a database)
            await asyncio.sleep(0.01)


@asynccontextmanager
async def bounded(gate: Gate, most_waiting: Mapping[Lane, int]) -> AsyncIterator[Gate]:
    """The gate again, with room for so many who wait."""
    cloud = replace(gate.cloud, lanes=Lanes(10, most_waiting))
    transport = httpx2.ASGITransport(app=build_app(cloud))
    async with httpx2.AsyncClient(transport=transport, base_url="http://cloud") as client:
        yield Gate(client, cloud, gate.admin["Authorization"].removeprefix("Bearer "))


async def test_a_storm_of_batches_that_wait_holds_up_neither_pulls_nor_people(gate: Gate, store_engine: Engine) -> None:
    keys = [await gate.enrol(f"edge-{number}") for number in range(SIZE)]
    async with bounded(gate, {Lane.PUSHES: MOST_WAITING}) as narrow:
        with sync_log_locked(store_engine):
            pushes = [
                asyncio.create_task(narrow.push(key, batch(1, [fact(1)], f"edge-{number}")))
                for number, key in enumerate(keys)
            ]
            await until_waiting(store_engine, PUSHING)
            done, _ = await asyncio.wait(pushes, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            async with asyncio.timeout(5):
                people = await asyncio.gather(*(narrow.client.get("/api/v1/devices", headers=gate.admin) for _ in keys))
                pulls = await asyncio.gather(*(narrow.client.get("/sync/v1/pull", headers=key) for key in keys))
                ready = await narrow.client.get("/readyz")
            assert {answer.status_code for answer in (*people, *pulls, ready)} == {200}
            assert waiting_for_lock(store_engine) == PUSHING
        answers = await asyncio.wait_for(asyncio.gather(*pushes), 10)
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == SIZE - MOST_WAITING - PUSHING == len(done)
    for answer in refused:
        assert answer.json()["code"] == "gate_overloaded"
        assert int(answer.headers["Retry-After"]) > 0
    assert [answer.status_code for answer in answers if answer not in refused] == [200] * (SIZE - len(refused))
    assert gate.count("sync.fact") == SIZE - len(refused)


async def test_people_who_wait_hold_up_no_device(gate: Gate, store_engine: Engine) -> None:
    key = await gate.enrol()
    with sync_log_locked(store_engine):
        writes = [asyncio.create_task(write(gate, number)) for number in range(SIZE)]
        await until_waiting(store_engine, 2)
        async with asyncio.timeout(5):
            assert (await gate.client.get("/sync/v1/pull", headers=key)).status_code == 200
    answers = await asyncio.wait_for(asyncio.gather(*writes), 10)
    assert {answer.status_code for answer in answers} == {201}
    with store_engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(text("sync.document"))).scalar_one() == SIZE


async def test_a_storm_of_telemetry_that_waits_holds_up_neither_devices_nor_people(
    gate: Gate, store_engine: Engine
) -> None:
    key = await gate.enrol()
    async with bounded(gate, {Lane.TELEMETRY: MOST_WAITING}) as narrow:
        # Whoever writes samples waits for who changes from when on they are kept.
        with store_engine.connect() as connection, connection.begin():
            connection.execute(text("SELECT pg_advisory_xact_lock(7301008)"))
            doors = [partial(remote_write, narrow, packed(VALID)), partial(open_telemetry, narrow, OTLP)] * SIZE
            sent = [asyncio.create_task(send()) for send in doors]
            await until_waiting(store_engine, 1)
            async with asyncio.timeout(5):
                people = [narrow.client.get("/api/v1/devices", headers=gate.admin) for _ in range(SIZE)]
                pulls = [narrow.client.get("/sync/v1/pull", headers=key) for _ in range(SIZE)]
                answers = await asyncio.gather(*people, *pulls, narrow.client.get("/readyz"))
            assert {answer.status_code for answer in answers} == {200}
        told = await asyncio.wait_for(asyncio.gather(*sent), 20)
    refused = [answer for answer in told if answer.status_code == 503]
    assert refused
    assert {answer.headers["Retry-After"] for answer in refused} == {"2"}
    assert {answer.status_code for answer in told if answer not in refused} == {200, 204}


async def write(gate: Gate, number: int) -> httpx2.Response:
    path = f"/api/v1/fleet/records/configurations/light-{number}"
    return await gate.client.put(path, json={"on": True}, headers=gate.admin)
