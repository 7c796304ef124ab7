"""A disk that is full, for real: a small filesystem of its own, filled to its last byte by others."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.database import Database
from edge_agent.database_file import LOG_BYTES
from edge_agent.outgoing import Outgoing
from edge_agent.queue import NewFact, OfflineQueue
from primespark.core.settings import OfflineSettings
from primespark.errors import ConfigurationError, PrimeSparkError
from primespark.sync.records import DataClass
from tests.unit.edge_agent.test_queue_order import begin, send

DISK_BYTES = 5 * LOG_BYTES
LIMITS = OfflineSettings(minimum_free_disk_bytes=1024 * 1024)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root, to mount a filesystem")
    yield place
    # A test that failed has the file open still.
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Somebody else takes what is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast


def fact(number: int) -> NewFact:
    return NewFact(DataClass.TELEMETRY, {"n": number, "text": "x" * 1000})


async def refusals(queue: OfflineQueue, first: int, count: int) -> tuple[list[int], set[str]]:
    """Numbers that were taken, and the codes of the refusals of the others."""
    taken, codes = [], set()
    for number in range(first, first + count):
        try:
            await queue.enqueue([fact(number)])
            taken.append(number)
        except PrimeSparkError as error:
            codes.add(error.code)
    return taken, codes


async def test_what_was_taken_is_sent_though_others_fill_the_disk(disk: Path) -> None:
    database = Database(disk / "queue.db", LOG_BYTES)
    queue = OfflineQueue(database, LIMITS)
    outgoing = await begin(database, 100, backlog_records_per_s=10**9)
    taken, codes = await refusals(queue, 0, 2000)
    assert (len(taken), codes) == (2000, set())
    ballast = fill(disk)
    refused, codes = await refusals(queue, 5000, 5)
    assert (refused, codes) == ([], {"queue_full"})

    # Sending writes too, as each batch is fixed before it goes: into the log, which has its space from the start.
    sent: list[int] = []
    while records := await send(outgoing):
        sent += [record.value["n"] for record in records]
    assert sent == taken
    assert database.failure is None
    ballast.unlink()
    taken, codes = await refusals(queue, 6000, 10)
    assert (len(taken), codes) == (10, set())
    database.close()


async def test_a_device_that_starts_on_a_full_disk_says_so_and_keeps_what_waits(disk: Path) -> None:
    database = Database(disk / "queue.db", LOG_BYTES)
    await OfflineQueue(database, LIMITS).enqueue([fact(0), fact(1)])
    await begin(database)
    database.close()
    ballast = fill(disk)
    with pytest.raises(ConfigurationError) as told:
        Database(disk / "queue.db", LOG_BYTES)
    assert "free space" in str(told.value.remedy)
    ballast.unlink()
    database = Database(disk / "queue.db", LOG_BYTES)
    outgoing = Outgoing(database, "edge-1", 100, 1_000_000)
    assert [record.value["n"] for record in await send(outgoing)] == [0, 1]
    database.close()


async def test_a_queue_that_fills_its_disk_itself_loses_nothing_it_took(disk: Path) -> None:
    """Without a reserve: the file grows until the disk refuses, in the middle of whatever it was doing."""
    database = Database(disk / "queue.db")
    queue = OfflineQueue(database, OfflineSettings(minimum_free_disk_bytes=0, capacity_bytes=10**12))
    outgoing = Outgoing(database, "edge-1", 100, 1_000_000, 10**9)
    await outgoing.begin_epoch(1)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(DISK_BYTES - 6 * 1024 * 1024))
    taken, codes = await refusals(queue, 0, 1500)
    assert 100 < len(taken) < 1500
    assert codes == {"queue_full"}
    assert (await queue.status()).pending == len(taken)
    database.close()

    again = Database(disk / "queue.db")
    queue = OfflineQueue(again, OfflineSettings(minimum_free_disk_bytes=0))
    waiting = await queue.waiting(0, 10_000)
    assert [entry.seq for entry in waiting] == list(range(1, len(taken) + 1))
    ballast.unlink()
    more, codes = await refusals(queue, 7000, 10)
    assert (len(more), codes, again.failure) == (10, set(), None)
    again.close()
