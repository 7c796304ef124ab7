"""Times made true before they are sent, against a machine whose true time the test knows."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_agent.database import Database
from edge_agent.device_clock import DeviceClock
from edge_agent.outgoing import Outgoing
from edge_agent.queue import NewFact, OfflineQueue
from edge_agent.schema import STEPS, VERSION
from primespark.core.clock import Clock
from primespark.core.settings import OfflineSettings
from primespark.sync.records import DataClass, PushRequest, PushResponse
from tests.helpers import rounds
from tests.unit.edge_agent.test_queue import HLC, payload

TOLERANCE_S = 5.0
SECOND = 1_000_000_000
T0 = datetime(2026, 11, 20, tzinfo=UTC)


class Machine:
    """A device in virtual time, whose wall clock is wrong by `wrong_s`."""

    def __init__(self, path: Path) -> None:
        self.database = Database(path)
        self.now_ns, self.number = int(T0.timestamp()) * SECOND, 0
        self.wrong_s = 0.0
        self.true_times: list[datetime] = []
        self.stamped: list[datetime] = []
        self.boots: list[int] = []
        # Boots with contact, and those of which it was kept: with the next facts or the next batch.
        self.contacts: set[int] = set()
        self.reached: set[int] = set()
        self.boot(0.0)

    def boot(self, wrong_s: float) -> None:
        self.number, self.booted_ns, self.wrong_s = self.number + 1, self.now_ns, wrong_s
        clock = Clock(lambda: self.now_ns + int(self.wrong_s * SECOND), lambda: self.now_ns - self.booted_ns)
        self.clock = DeviceClock(TOLERANCE_S, clock, f"boot-{self.number}")
        self.queue = OfflineQueue(self.database, OfflineSettings(), clock=self.clock)
        self.outgoing = Outgoing(self.database, "edge-1", 7, 100_000, clock=self.clock)

    def live(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND)

    def enqueue(self, ago_s: float) -> None:
        """A fact of `ago_s` before."""
        true = self.now_ns - int(ago_s * SECOND)
        time = T0 + timedelta(
            microseconds=(true + int(self.wrong_s * SECOND)) // 1000 - int(T0.timestamp()) * 1_000_000
        )
        self.true_times.append(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=true // 1000))
        self.stamped.append(time)
        self.boots.append(self.number)
        value = {"n": len(self.true_times) - 1}
        new = NewFact(DataClass.TELEMETRY, value, time, f"boot-{self.number}", self.now_ns - self.booted_ns)
        self.live(0.01)
        self.queue.submit([new]).result()
        self.reached |= self.contacts & {self.number}

    def contact(self, way_s: float, held_s: float, share: float) -> None:
        """An answer; `share` of the way is there, the rest back."""
        sent = self.now_ns
        self.live(way_s * share + held_s)
        told = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=self.now_ns // 1000)
        self.live(way_s * (1 - share))
        self.clock.learn(told, held_s, sent - self.booted_ns, self.now_ns - self.booted_ns)
        self.contacts.add(self.number)

    async def send_all(self) -> list[Any]:
        self.reached |= self.contacts & {self.number}
        await self.outgoing.begin_epoch(1)
        sent = []
        while (batch := await self.outgoing.next_batch()) is not None:
            sent += payload(batch).records
            answer = PushResponse(
                status="applied", ack_batch_seq=batch.batch_seq, results=[], server_hlc=HLC, server_epoch=1
            )
            await self.outgoing.acknowledge(batch.batch_seq, answer)
        return sent


WRONG = st.one_of(st.just(0.0), st.floats(-1e9, 1e9), st.floats(-20, 20))
STEP = st.one_of(
    st.tuples(st.just("boot"), WRONG),
    st.tuples(st.just("set"), WRONG),
    st.tuples(st.just("enqueue"), st.one_of(st.just(0.0), st.floats(0, 3))),
    st.tuples(st.just("contact"), st.floats(0, 2), st.floats(0, 30), st.floats(0, 1)),
    st.tuples(st.just("live"), st.floats(1, 1e6)),
)


@pytest.mark.prove
@settings(max_examples=rounds(60, 2000), deadline=None)
@given(steps=st.lists(STEP, max_size=30))
@example(steps=[("boot", 0.0), ("enqueue", 0.0), ("set", 1e6), ("enqueue", 3.0), ("contact", 0.1, 0.0, 0.5)])
@example(steps=[("boot", 1e6), ("enqueue", 0.0), ("set", 0.0), ("enqueue", 3.0), ("contact", 0.1, 0.0, 0.5)])
def test_each_time_is_true_or_said_to_be_unknown(steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder) / "queue.db")
        for name, *arguments in steps:
            if name == "set":
                machine.live(1)
                machine.wrong_s = arguments[0]
            else:
                getattr(machine, name)(*arguments)
        sent = asyncio.run(machine.send_all())
        pending = machine.database.submit(
            lambda connection: connection.execute("SELECT sum(bytes), sum(pending) FROM stream").fetchone()
        ).result()
        machine.database.close()
    assert [fact.value["n"] for fact in sent] == list(range(len(machine.true_times)))
    assert pending in ((0, 0), (None, None))
    for fact in sent:
        number = fact.value["n"]
        if machine.boots[number] not in machine.reached:
            assert (fact.time, fact.quality) == (machine.stamped[number], "clock_unknown")
            continue
        # Half of a way of 2 s, and what two steps of the clock may differ by without being told apart.
        wrong_s = abs((fact.time - machine.true_times[number]).total_seconds())
        assert wrong_s <= (1.3 if fact.quality else TOLERANCE_S + 2.3)
        if fact.quality is None:
            assert fact.time == machine.stamped[number]


async def _sent_alone(machine: Machine) -> PushRequest:
    await machine.outgoing.begin_epoch(1)
    batch = await machine.outgoing.next_batch()
    assert batch is not None
    return payload(batch)


async def test_what_is_fixed_is_never_changed(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "queue.db")
    machine.boot(-1e6)
    machine.enqueue(0)
    (first,) = (await _sent_alone(machine)).records
    machine.contact(0, 0, 0)
    assert (await _sent_alone(machine)).records == [first]
    assert getattr(first, "quality", "") == "clock_unknown"
    machine.database.close()


async def test_a_batch_made_smaller_repairs_nothing_twice(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "queue.db")
    machine.boot(-1e6)
    machine.enqueue(0)
    machine.enqueue(0)
    machine.contact(0, 0, 0)
    both = await _sent_alone(machine)
    await machine.outgoing.reject(1, "invalid_input")
    assert (await _sent_alone(machine)).records == both.records[:1]
    assert getattr(both.records[0], "time", None) == machine.true_times[0]
    machine.database.close()


async def test_facts_rolled_back_do_not_hide_the_clock_that_stamped_the_next(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "queue.db")
    machine.boot(-1e6)
    too_many = [NewFact(DataClass.TELEMETRY, {}, stream=f"s{number}") for number in range(65)]
    assert machine.queue.submit(too_many).exception() is not None
    machine.enqueue(0)
    machine.contact(0, 0, 0)
    (fact,) = (await _sent_alone(machine)).records
    assert getattr(fact, "time", None) == machine.true_times[0]
    machine.database.close()


async def test_a_less_exact_answer_changes_nothing_until_the_clocks_may_have_parted(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "queue.db")
    machine.contact(0.1, 0, 0.5)
    exact = machine.clock.reading
    machine.contact(2, 0, 0)
    assert machine.clock.reading == exact
    machine.live(100_000)
    machine.contact(2, 0, 0)
    assert machine.clock.reading != exact
    assert machine.clock.reading is not None
    assert machine.clock.reading.error_ns == SECOND + 1000
    machine.database.close()


def test_a_file_of_before_clocks_keeps_its_facts(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    with sqlite3.connect(path) as older:
        older.executescript("; ".join(STEPS[:2]) + "; PRAGMA user_version = 2")
        tail = '"data_class":"telemetry","time":"2026-01-01T00:00:00Z","boot_id":"b","monotonic_ns":1,"value":{}}'
        older.execute("INSERT INTO operation (stream, seq, tail) VALUES ('telemetry', 1, ?)", (tail.encode(),))
        older.execute("INSERT INTO stream (name, last_seq, pending, bytes) VALUES ('telemetry', 1, 1, 100)")
    machine = Machine(path)
    (sent,) = asyncio.run(machine.send_all())
    assert json.loads(sent.model_dump_json(exclude={"seq", "stream"})) == {
        "op": "append", "quality": None, "blob": None, **json.loads("{" + tail),
    }  # fmt: skip
    with sqlite3.connect(path) as newer:
        assert newer.execute("PRAGMA user_version").fetchone() == (VERSION,)
    machine.database.close()
