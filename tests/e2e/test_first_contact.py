"""A device that began alone with a wrong clock meets the real cloud: its store holds all that was kept, once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from primespark.cli.demo.clients import until
from primespark.core.settings import Settings
from primespark.embedded.stack import Stack
from primespark.store import database, devices
from tests.e2e.samples import stored_and_sent
from tests.integration.edge_agent.test_islanded import alone
from tests.integration.edge_agent.test_process import running

DEVICE = "edge-1"
FACTS = text("SELECT stream, seq, epoch, time FROM sync.fact WHERE device_id = :device")
LOST = text("SELECT count(*) FROM sync.lost")


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Stack]:
    stack = Stack(Settings(), tmp_path / "cloud", only=("postgres", "broker", "cloud"))
    try:
        await stack.start()
        yield stack
    finally:
        await stack.stop()


@pytest.fixture
def store(cloud: Stack) -> Iterator[Engine]:
    engine = database.connect(cloud.store_url, pool_size=1)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("clock", ["@2012-03-01 12:00:00", "@2043-03-01 12:00:00"])
async def test_what_was_kept_with_a_wrong_clock_reaches_the_store_once(
    cloud: Stack, store: Engine, tmp_path: Path, clock: str
) -> None:
    home, began = tmp_path / "device", datetime.now(UTC)
    home.mkdir()
    kept = {_identity(item): datetime.fromisoformat(item["time"]) for item in alone(home, clock)["waiting"]}
    streams = {stream for stream, _ in kept}
    assert {"telemetry", "inference_results"} <= streams
    assert {time.year for time in kept.values()} == {int(clock[1:5])}
    with store.begin() as connection:
        token = devices.create_token(connection, 1, timedelta(hours=1))
    (home / "edge" / DEVICE / "enrolment.token").write_text(token)

    async def all_and_newer_ones_came() -> bool:
        came = _facts(store)
        return kept.keys() <= came.keys() and streams <= {stream for stream, _ in came.keys() - kept.keys()}

    with running(home, PRIMESPARK_NETWORK__CLOUD_URL=cloud.endpoints["cloud"]):
        await until("what was kept to arrive", all_and_newer_ones_came, 60)
    came = _facts(store)
    assert {epoch for epoch, _ in came.values()} == {1}
    # Each has its true time: moved by what the clock was wrong, which is the same for all of them.
    moved = [came[identity][1] - time for identity, time in kept.items()]
    assert max(moved) - min(moved) < timedelta(seconds=1)
    assert all(began <= came[identity][1] <= datetime.now(UTC) for identity in kept)
    assert _qualities(store, kept) == {"clock_repaired"}
    for stream in streams:
        numbers = sorted(seq for name, seq in came if name == stream)
        assert numbers == list(range(1, len(numbers) + 1))
    with store.connect() as connection:
        lost = connection.execute(LOST).scalar_one()
        stored, sent = stored_and_sent(connection)
    assert lost == 0
    assert stored == sent > 0


def _identity(item: dict[str, Any]) -> tuple[str, int]:
    return item["stream"], item["seq"]


def _qualities(store: Engine, kept: Iterable[tuple[str, int]]) -> set[str | None]:
    with store.connect() as connection:
        query = text("SELECT stream, seq, quality FROM sync.fact WHERE device_id = :device")
        found = {(row.stream, row.seq): row.quality for row in connection.execute(query, {"device": DEVICE})}
    return {found[identity] for identity in kept}


def _facts(store: Engine) -> dict[tuple[str, int], tuple[int, datetime]]:
    """Epoch and time of each fact of the device in the store; a second one under its stream and number is a fault."""
    with store.connect() as connection:
        rows = connection.execute(FACTS, {"device": DEVICE}).all()
    found = {(row.stream, row.seq): (row.epoch, row.time) for row in rows}
    assert len(found) == len(rows)
    return found
