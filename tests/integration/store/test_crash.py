"""A process that applies batches is killed at random moments: the store then holds whole batches, each once."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from primespark.store import database, gate, outbox
from tests.helpers import rounds
from tests.integration.store.builders import T0, batch, enrol, fact

FACTS_PER_BATCH = 20
DEVICE = "edge-1"


@pytest.mark.prove
def test_kills_leave_whole_batches(postgres_url: str, tmp_path: Path) -> None:
    chance = random.Random(11)  # a seed for the moments; what runs at them is left to the machine
    acknowledged = tmp_path / "acknowledged"
    acknowledged.touch()
    engine = database.connect(postgres_url)
    with engine.begin() as connection:
        enrol(connection, DEVICE)
    for _ in range(rounds(3, 50)):
        before = _count(acknowledged)
        process = subprocess.Popen([sys.executable, __file__, postgres_url, str(acknowledged)])
        deadline = time.monotonic() + 30
        while _count(acknowledged) < before + 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))  # the moment of the kill, not a synchronisation
        process.kill()
        process.wait(10)
    with engine.connect() as connection:
        stored = connection.execute(text("SELECT max(batch_seq) FROM sync.batch")).scalar_one()
        facts = list(connection.execute(text("SELECT seq FROM sync.fact ORDER BY seq")).scalars())
        sampled = list(connection.execute(text("SELECT seq FROM metrics.sample ORDER BY seq")).scalars())
        watermark = connection.execute(text("SELECT seq FROM sync.watermark")).scalar_one()
        log, after = [], 0
        while page := outbox.read(connection, after, 50):
            after = page[-1].log_seq
            log += [[row["seq"] for row in entry.rows] for entry in page]
    engine.dispose()
    expected = list(range(1, stored * FACTS_PER_BATCH + 1))
    assert facts == sampled == expected
    assert watermark == expected[-1]
    assert [seq for seqs in log for seq in seqs] == expected
    assert {len(seqs) for seqs in log} == {FACTS_PER_BATCH}
    # A kill after the commit and before the note leaves one more stored than noted.
    assert _count(acknowledged) <= stored <= _count(acknowledged) + 1


def _count(file: Path) -> int:
    return len(file.read_bytes())


def _apply_for_ever(url: str, acknowledged: Path) -> None:
    engine = database.connect(url, pool_size=1)
    number = _count(acknowledged) + 1
    with acknowledged.open("ab", buffering=0) as notes:
        while True:
            first = (number - 1) * FACTS_PER_BATCH + 1
            request = batch(number, [fact(seq) for seq in range(first, first + FACTS_PER_BATCH)], DEVICE)
            with engine.begin() as connection:
                gate.apply_batch(connection, request, f"digest {number}", T0)
            notes.write(b".")
            number += 1


if __name__ == "__main__":
    _apply_for_ever(sys.argv[1], Path(sys.argv[2]))
