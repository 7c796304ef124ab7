"""Timestamps of writes made true before they are sent, against a machine whose true time the test knows."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_agent import stamps
from edge_agent.database import Database
from edge_agent.device_clock import DeviceClock
from edge_agent.documents import Documents
from edge_agent.outgoing import Outgoing
from edge_agent.schema import STEPS
from primespark.core.clock import Clock, Timestamp
from primespark.sync.records import DocumentChange, PushResponse
from tests.helpers import rounds
from tests.unit.edge_agent.test_queue import payload

TOLERANCE_S = 5.0
SECOND = 1_000_000_000
T0_NS = int(datetime(2026, 11, 20, tzinfo=UTC).timestamp()) * SECOND
YEAR_S = 365.0 * 86_400


class Machine:
    """A device in virtual time, whose wall clock is wrong by `wrong_s`."""

    def __init__(self, path: Path) -> None:
        self.database = Database(path)
        self.now_ns, self.number = T0_NS, 0
        self.written: list[tuple[int, int]] = []
        self.began: dict[int, int] = {}
        # Boots with contact, and those of which it was kept: with the next write or the next batch.
        self.contacts: set[int] = set()
        self.known: set[int] = set()
        self.seen = ""
        self.boot(0.0)

    def boot(self, wrong_s: float) -> None:
        self.number, self.booted_ns, self.wrong_s = self.number + 1, self.now_ns, wrong_s
        self.began[self.number] = self.now_ns
        clock = Clock(lambda: self.now_ns + int(self.wrong_s * SECOND), lambda: self.now_ns - self.booted_ns)
        self.clock = DeviceClock(TOLERANCE_S, clock, f"boot-{self.number}")
        self.documents = Documents(self.database, "edge-1", clock=self.clock)
        self.outgoing = Outgoing(self.database, "edge-1", 500, 1_000_000, clock=self.clock)

    def set(self, wrong_s: float) -> None:
        self.wrong_s = wrong_s

    def live(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND)

    async def write(self, count: int) -> None:
        for _ in range(count):
            self.live(0.01)
            name = f"n{len(self.written)}"
            self.written.append((self.now_ns, self.number))
            await self.documents.patch("k", {name: 1})
            self.known |= self.contacts & {self.number}

    def contact(self, way_s: float, share: float) -> None:
        sent = self.now_ns
        self.live(way_s * share)
        told = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=self.now_ns // 1000)
        self.live(way_s * (1 - share))
        self.clock.learn(told, 0.0, sent - self.booted_ns, self.now_ns - self.booted_ns)
        self.contacts.add(self.number)

    def server_hlc(self) -> str:
        return str(Timestamp(self.now_ns // 1_000_000, 0, "cloud"))

    async def send(self) -> DocumentChange | None:
        """What a device sends once it has contact, and the answer to it."""
        if self.number not in self.contacts:
            self.contact(0.1, 0.5)
        self.known.add(self.number)
        await self.outgoing.begin_epoch(1)
        batch = await self.outgoing.next_batch()
        if batch is None:
            return None
        (change,) = payload(batch).records
        assert isinstance(change, DocumentChange)
        assert Timestamp.parse(change.hlc).unix_ms <= self.now_ns / 1e6 + 60_000, "the cloud would replace it"
        self.live(0.01)
        answer = PushResponse(
            status="applied", ack_batch_seq=batch.batch_seq, results=[], server_hlc=self.server_hlc(), server_epoch=1
        )
        await self.outgoing.acknowledge(batch.batch_seq, answer)
        return change


async def run(machine: Machine, steps: list[Any]) -> dict[str, str]:
    """The timestamps as they were sent first, by leaf."""
    sent: dict[str, str] = {}
    for name, *arguments in [*steps, ("send",)]:
        answer = getattr(machine, name)(*arguments)
        change = await answer if asyncio.iscoroutine(answer) else None
        if isinstance(change, DocumentChange):
            again = {leaf: stamp for leaf, stamp in change.leaf_hlc.items() if leaf in sent}
            assert again == {leaf: sent[leaf] for leaf in again}, "what was sent never changes"
            sent |= change.leaf_hlc
    return sent


WRONG = st.one_of(st.just(0.0), st.floats(-60 * YEAR_S, 60 * YEAR_S), st.floats(-20, 20))
STEP = st.one_of(
    st.tuples(st.just("boot"), WRONG),
    st.tuples(st.just("set"), WRONG),
    st.tuples(st.just("write"), st.integers(1, 3)),
    st.tuples(st.just("contact"), st.floats(0, 2), st.floats(0, 1)),
    st.tuples(st.just("send")),
    st.tuples(st.just("live"), st.floats(1, 1e6)),
)


@pytest.mark.prove
@settings(max_examples=rounds(40, 1000), deadline=None)
@given(steps=st.lists(STEP, max_size=25))
@example(steps=[("boot", -8.0), ("write", 1), ("contact", 0.0, 0.0), ("boot", 0.0)])
@example(steps=[("boot", 17 * YEAR_S), ("write", 2), ("contact", 0.1, 0.5), ("write", 1), ("send",), ("write", 1)])
@example(
    steps=[("boot", -56 * YEAR_S), ("write", 2), ("live", 1e5), ("write", 1), ("boot", -56 * YEAR_S), ("write", 1)]
)
@example(steps=[("write", 1), ("send",), ("live", 1e6), ("boot", -YEAR_S), ("write", 1), ("live", 1e6), ("boot", 0.0)])
def test_each_timestamp_is_of_its_time_and_their_order_is_that_of_the_writes(steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder) / "queue.db")
        sent = asyncio.run(run(machine, steps))
        machine.database.close()
    made = [Timestamp.parse(sent[f"/n{number}"]) for number in range(len(machine.written))]
    assert all(earlier < later for earlier, later in pairwise(made))
    for stamp, (written_ns, boot) in zip(made, machine.written, strict=True):
        behind_s = stamp.unix_ms / 1000 - written_ns / 1e9
        if boot in machine.known:
            # A clock within the tolerance is left as it is, and half of a way of 2 s is not known.
            assert abs(behind_s) <= TOLERANCE_S + 2.5
            continue
        # Nobody knows when that was; but before the device was started again, and contact was had.
        next_known = min(number for number in machine.known if number > boot)
        assert stamp.unix_ms <= machine.began[next_known] / 1e6 + (TOLERANCE_S + 2.5) * 1000


async def test_what_a_device_saw_stays_before_what_it_wrote(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "queue.db")
    machine.boot(17 * YEAR_S)
    await machine.write(1)
    machine.contact(0.0, 0.0)
    # By the cloud's clock half a minute ahead of what the device learned of it.
    machine.live(30)
    seen = machine.server_hlc()
    machine.now_ns -= 30 * SECOND
    await machine.database.run(lambda connection: stamps.Stamps("edge-1", machine.clock).observe(connection, seen))
    await machine.write(1)
    change = await machine.send()
    assert change is not None
    assert change.leaf_hlc["/n0"] < seen < change.leaf_hlc["/n1"]
    assert Timestamp.parse(change.leaf_hlc["/n0"]).unix_ms == machine.written[0][0] // 1_000_000
    machine.database.close()


async def test_a_boot_without_contact_wrote_as_late_as_it_can_have(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "queue.db")
    await machine.write(1)
    await machine.send()
    machine.boot(-56 * YEAR_S)
    machine.live(1000)
    await machine.write(2)
    machine.live(1000)
    machine.boot(-56 * YEAR_S)
    machine.live(1000)
    await machine.write(1)
    change = await machine.send()
    assert change is not None
    first, second, third = (Timestamp.parse(change.leaf_hlc[f"/n{number}"]) for number in (1, 2, 3))
    # A reading is off by as much as half of its way of 0.1 s.
    assert first.unix_ms == second.unix_ms == pytest.approx(machine.booted_ns / 1e6, abs=60)
    assert first < second
    assert third.unix_ms == pytest.approx(machine.written[3][0] / 1e6, abs=60)
    machine.database.close()


@pytest.mark.parametrize("has_contact", [False, True])
async def test_a_file_of_before_whose_clock_was_far_ahead_is_not_bound_to_that_for_ever(
    tmp_path: Path, has_contact: bool
) -> None:
    path = tmp_path / "queue.db"
    with sqlite3.connect(path) as older:
        older.executescript("; ".join(STEPS[:6]) + "; PRAGMA user_version = 6")
        ahead = f"{T0_NS // 1_000_000 + 10**12}-0000-edge-1"
        older.execute("INSERT INTO meta (name, value) VALUES ('hlc', ?)", (ahead,))
        older.execute(
            "INSERT INTO document (scope, key, value, vv, leaf_hlc, dirty, written_hlc) VALUES"
            " ('edge-1', 'k', '{\"old\": 1}', '{\"edge-1\": 4294967297}', ?, 0, ?)",
            (f'{{"/old": "{ahead}"}}', ahead),
        )
    machine = Machine(path)
    if has_contact:
        machine.contact(0.0, 0.0)
    await machine.write(1)
    change = await machine.send()
    assert change is not None
    assert change.leaf_hlc["/old"] == ahead
    assert Timestamp.parse(change.leaf_hlc["/n0"]).unix_ms == machine.written[0][0] // 1_000_000
    machine.database.close()


async def test_what_is_noted_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "MAX_EARLY", 5)
    machine = Machine(tmp_path / "queue.db")
    await machine.write(20)
    count = "SELECT count(*) FROM early_stamp"
    assert (await machine.database.run(lambda connection: connection.execute(count).fetchone()))[0] <= 6
    change = await machine.send()
    assert change is not None
    assert len(set(change.leaf_hlc.values())) == 20
    machine.database.close()
