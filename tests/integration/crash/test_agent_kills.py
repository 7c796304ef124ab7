"""`kill -9` of the device's process at each point of a push cycle: all it answered for arrives, each once, in order."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from primespark.embedded.ports import choose_port
from tests.helpers import rounds, wait_until
from tests.integration.crash.doom import REACHED, Program, read_notes
from tests.integration.crash.doomed_agent import Point, surround
from tests.integration.edge_agent.conftest import gate, served_gate
from tests.integration.edge_agent.device import running_device
from tests.integration.edge_agent.gate import TOKEN, RunningGate
from tests.integration.edge_agent.test_process import environment

__all__ = ["gate", "served_gate"]
# Points at which the disk holds a batch that the cloud did not confirm, and at which the cloud has applied it.
UNDER_WAY = {
    Point.BATCH_COMMITTED,
    Point.HALF_SENT,
    Point.SENT,
    Point.ANSWERED,
    Point.ACKNOWLEDGEMENT_WRITTEN,
}
APPLIED = {Point.SENT, Point.ANSWERED, Point.ACKNOWLEDGEMENT_WRITTEN}
SETTINGS = {
    "PRIMESPARK_FEATURES__CAPTURE": "false",
    "PRIMESPARK_EDGE__TELEMETRY__INTERVAL_S": "0.01",
    "PRIMESPARK_SYNC__BATCH_RECORDS": "20",
    "PRIMESPARK_SYNC__BATCH_WAIT_S": "0.05",
    "PRIMESPARK_SYNC__RETRY_BASE_S": "0.05",
    "PRIMESPARK_SYNC__RETRY_MAX_S": "0.2",
}


class Doomed:
    """A device's home, and the process that dies in it."""

    def __init__(self, home: Path, gate: RunningGate) -> None:
        self._home, self._gate = home, gate
        self._notes = home / "notes"
        self.folder = home / "edge" / "edge-1"
        self.folder.mkdir(parents=True)
        (self.folder / "enrolment.token").write_text(TOKEN)

    def die_at(self, point: Point, times: int) -> None:
        """Run the device until it dies at the point."""
        reached = self._lines().count([REACHED])
        settings = {**SETTINGS, "PRIMESPARK_NETWORK__CLOUD_URL": self._gate.url}
        variables = environment(self._home, choose_port(0, set()), **settings)
        prepare = partial(surround, point, times, self._notes)
        Program("edge", variables, self._home / "edge.log", prepare).killed()
        assert self._lines().count([REACHED]) == reached + 1, f"not reached: {point}"

    def answered(self) -> dict[tuple[str, int], Any]:
        """What the queue has answered for, by stream and seq."""
        return {(line[0], line[1]): line[2] for line in self._lines() if line != [REACHED]}

    def batch_on_disk(self) -> dict[str, str] | None:
        """Headers of the batch under way; read from a copy, as a look would already mend what the kill left."""
        copy = Path(shutil.copytree(self.folder, self._home / "looked at", dirs_exist_ok=True))
        connection = sqlite3.connect(copy / "queue.db")
        row = connection.execute("SELECT headers FROM batch").fetchone()
        connection.close()
        shutil.rmtree(copy)
        return None if row is None else dict(json.loads(row[0]))

    def _lines(self) -> list[list[Any]]:
        return read_notes(self._notes)


async def restart_until_all_is_sent(doomed: Doomed, gate: RunningGate) -> None:
    """The same device again, without anything new to say."""
    async with running_device(doomed.folder, gate.url, token="") as device:
        await device.drained()
        status = await device.queue.status()
    assert {state.pending for state in status.streams.values()} == {0}
    assert doomed.batch_on_disk() is None


def check_arrived(gate: RunningGate, answered: dict[tuple[str, int], Any]) -> None:
    """The law: what was answered for is in the cloud with its value, and each stream is without gap or double."""
    oracle = gate.oracle
    arrived = [(fact["stream"], fact["seq"]) for fact in oracle.facts]
    for stream in {stream for stream, _ in arrived}:
        seqs = [seq for name, seq in arrived if name == stream]
        assert seqs == list(range(1, len(seqs) + 1))
    values = {(fact["stream"], fact["seq"]): fact["value"] for fact in oracle.facts}
    assert answered
    assert {place: values.get(place) for place in answered} == answered
    assert {fact["epoch"] for fact in oracle.facts} == {1}
    assert not oracle.lost


@pytest.mark.parametrize("point", Point, ids=lambda point: point.name.lower())
async def test_nothing_is_lost_or_doubled_by_a_kill(gate: RunningGate, tmp_path: Path, point: Point) -> None:
    doomed = Doomed(tmp_path, gate)
    doomed.die_at(point, 3)
    under_way = doomed.batch_on_disk()
    assert (under_way is not None) == (point in UNDER_WAY)
    if point in APPLIED:
        wait_until(lambda: len(gate.oracle.answers) == 3)
    await restart_until_all_is_sent(doomed, gate)
    check_arrived(gate, doomed.answered())
    # A batch that was applied is answered a second time, and any other was not there; its bytes are those on disk.
    assert gate.oracle.replays == (point in APPLIED)
    if under_way is not None:
        device, epoch, batch_seq = under_way["Idempotency-Key"].split("/")
        digest, _ = gate.oracle.answers[device, int(epoch), int(batch_seq)]
        assert digest == under_way["Content-Digest"]


@pytest.mark.prove
async def test_nothing_is_lost_or_doubled_by_kills_one_after_another(gate: RunningGate, tmp_path: Path) -> None:
    chance = random.Random(5)
    doomed = Doomed(tmp_path, gate)
    points = [point for _ in range(rounds(1, 6)) for point in chance.sample(list(Point), rounds(2, len(Point)))]
    for point in points:
        # With 1, what the kill before left under way is the first to be come by.
        doomed.die_at(point, chance.randint(1, 4))
    await restart_until_all_is_sent(doomed, gate)
    check_arrived(gate, doomed.answered())
