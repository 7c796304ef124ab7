"""Power cuts: what the queue answered for is on the disk, whatever the drive had not yet written of the rest."""

from __future__ import annotations

import random
import shutil
import sqlite3
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge_agent.database import Database
from edge_agent.outgoing import Outgoing
from edge_agent.queue import NewFact, OfflineQueue
from primespark.core.settings import OfflineSettings
from primespark.sync.records import DataClass
from tests.helpers import rounds
from tests.integration.crash.traced_disk import Call, Disk, trace

CUTS = rounds(120, 2000)


@dataclass(slots=True)
class Promises:
    """What was said until the power was cut."""

    enqueued: dict[int, int] = field(default_factory=dict)
    batch: tuple[int, str] | None = None
    may_be_gone: bool = False

    def hear(self, line: str) -> None:
        kind, *words = line.split()
        if kind == "enqueued":
            self.enqueued[int(words[0])] = int(words[1])
        elif kind == "batch":
            self.batch = int(words[0]), words[1]
        elif kind == "acknowledging":
            self.may_be_gone = True
        else:
            self.batch, self.may_be_gone = None, False


def traced(folder: Path, synchronous: str = "FULL") -> list[Call]:
    """What a queue wrote and said in its lives."""
    if shutil.which("strace") is None:
        pytest.skip("no strace (Debian: strace)")
    file = folder / "device" / "queue.db"
    child = [sys.executable, "-m", "tests.integration.crash.traced_queue", str(file), "3", synchronous]
    return trace(folder / "trace", child)


def cut(calls: list[Call], folder: Path, at: int, chance: random.Random) -> tuple[Promises, Path]:
    """The folder as a cut after so many calls leaves it, and what had been promised."""
    disk, promises = Disk(folder / "device"), Promises()
    for call in calls[:at]:
        said = disk.take(call)
        if said is not None:
            promises.hear(said)
    left = folder / "left"
    shutil.rmtree(left, ignore_errors=True)
    left.mkdir()
    disk.leave(left, chance)
    return promises, left


def broken_promises(promises: Promises, left: Path) -> list[str]:
    """Open what was left as the device does; what is not as it was promised."""
    database = Database(left / "queue.db")
    queue = OfflineQueue(database, OfflineSettings(minimum_free_disk_bytes=0))
    Outgoing(database, "edge-1", 10, 100_000)

    def read(
        connection: sqlite3.Connection,
    ) -> tuple[list[tuple[int, bytes]], list[tuple[int, int]], list[tuple[int, str]]]:
        return (
            connection.execute("SELECT seq, tail FROM operation ORDER BY seq").fetchall(),
            connection.execute("SELECT acknowledged_seq, last_seq FROM stream").fetchall(),
            connection.execute("SELECT batch_seq, headers FROM batch").fetchall(),
        )

    operations, streams, batches = database.submit(read).result()
    (next_seq,) = queue.submit([NewFact(DataClass.TELEMETRY, {"n": 0})]).result()
    database.close()
    broken = [f"set aside: {file.name}" for file in left.glob("*.corrupt-*")]
    acknowledged, last = streams[0] if streams else (0, 0)
    if [seq for seq, _ in operations] != list(range(acknowledged + 1, last + 1)) or next_seq != last + 1:
        broken.append(f"a gap: {acknowledged=} {last=} {next_seq=}")
    kept = dict(operations)
    for seq, number in promises.enqueued.items():
        if seq > acknowledged and f'"n":{number},'.encode() not in kept.get(seq, b""):
            broken.append(f"fact {seq} is lost")
    if promises.batch is not None:
        (batch_seq, digest) = promises.batch
        is_kept = any(seq == batch_seq and digest in headers for seq, headers in batches)
        if not is_kept and not (promises.may_be_gone and not batches):
            broken.append(f"batch {batch_seq} is lost")
    return broken


@pytest.mark.prove
def test_what_was_answered_for_survives_power_cuts(tmp_path: Path) -> None:
    chance = random.Random(17)
    calls = traced(tmp_path)
    for _ in range(CUTS):
        at = chance.randint(1, len(calls))
        promises, left = cut(calls, tmp_path, at, chance)
        assert broken_promises(promises, left) == [], f"cut after call {at}"
    promises, left = cut(calls, tmp_path, len(calls), chance)
    assert len(promises.enqueued) == 54
    assert broken_promises(promises, left) == []


@pytest.mark.prove
def test_a_queue_that_does_not_wait_for_the_disk_is_found_out(tmp_path: Path) -> None:
    chance = random.Random(17)
    calls = traced(tmp_path, "NORMAL")
    found = (broken_promises(*cut(calls, tmp_path, chance.randint(1, len(calls)), chance)) for _ in range(CUTS))
    assert any("is lost" in broken for all_broken in found for broken in all_broken)
