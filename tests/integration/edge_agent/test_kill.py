"""A process that enqueues is killed at random moments: what the queue answered for is there afterwards."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_agent.database import Database
from edge_agent.queue import OfflineQueue
from primespark.core.settings import OfflineSettings
from tests.helpers import rounds
from tests.integration.edge_agent.enqueuer import STREAMS

KILLS = rounds(3, 50)


@pytest.mark.prove
def test_acknowledged_facts_survive_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    chance = random.Random(3)
    acknowledged: dict[str, int] = dict.fromkeys(STREAMS, 0)
    for _ in range(KILLS):
        _remember(acknowledged, _enqueue_until_killed(path, chance.uniform(0.05, 0.4)))
    assert min(acknowledged.values()) > 20

    database = Database(path)
    rows = database.submit(
        lambda connection: connection.execute("SELECT stream, seq FROM operation ORDER BY id").fetchall()
    ).result()
    states = database.submit(
        lambda connection: dict(connection.execute("SELECT name, last_seq FROM stream").fetchall())
    ).result()
    OfflineQueue(database, OfflineSettings())
    database.close()
    for stream in STREAMS:
        seqs = [seq for name, seq in rows if name == stream]
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) == states[stream] >= acknowledged[stream]


def _enqueue_until_killed(path: Path, seconds: float) -> list[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.edge_agent.enqueuer", str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = [process.stdout.readline()]
    time.sleep(seconds)  # the moment of the kill, not a synchronisation
    process.kill()
    lines += process.stdout.read().splitlines(keepends=True)
    process.wait()
    return lines


def _remember(acknowledged: dict[str, int], lines: list[str]) -> None:
    for line in lines:
        if line.endswith("\n"):
            stream, seq = line.split()
            assert int(seq) > 0
            acknowledged[stream] = max(acknowledged[stream], int(seq))
