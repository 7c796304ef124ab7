"""Laws of the gate: each fact once under any loss, and a log whose order is commit order."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from primespark.errors import ConflictError
from primespark.store import outbox, sync_log
from primespark.sync.records import Fact, Lost, PushRequest
from tests.helpers import rounds
from tests.integration.store.builders import batch, enrol, fact, lost, push

STREAMS = ("telemetry", "inference_results")
_names = (f"device-{number}" for number in itertools.count())


class LostReplyError(Exception):
    """The transaction did not commit."""


class Device:
    """A device as the protocol has it: one batch in flight, its bytes fixed, sent until it is acknowledged."""

    def __init__(self, device_id: str) -> None:
        self.device_id = device_id
        self.next_seq = dict.fromkeys(STREAMS, 1)
        self.batch_seq = 0
        self.in_flight: PushRequest | None = None
        self.history: list[PushRequest] = []
        self.facts: dict[tuple[str, int], dict[str, Any]] = {}
        self.lost: set[tuple[str, int]] = set()

    def prepare(self, plan: list[tuple[str, str, int]]) -> None:
        records: list[Fact | Lost] = []
        for what, stream, size in plan:
            first = self.next_seq[stream]
            if what == "lost":
                records.append(lost(first, first + size - 1, stream))
                self.lost |= {(stream, seq) for seq in range(first, first + size)}
                self.next_seq[stream] += size
            elif what == "again" and first > 1:
                old = max(1, first - size)  # a queue that sends a fact twice
                if (stream, old) in self.facts:
                    records.append(fact(old, self.facts[stream, old], stream))
            else:
                for seq in range(first, first + size):
                    self.facts[stream, seq] = {"cpu_percent": float(seq), "batch": self.batch_seq}
                    records.append(fact(seq, self.facts[stream, seq], stream))
                self.next_seq[stream] += size
        self.batch_seq += 1
        self.in_flight = batch(self.batch_seq, records, self.device_id)
        self.history.append(self.in_flight)


plans = st.lists(
    st.tuples(st.sampled_from(["facts", "facts", "lost", "again"]), st.sampled_from(STREAMS), st.integers(1, 3)),
    max_size=4,
)
steps = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from(["send", "send", "rolled back", "reply lost", "stale"]), plans),
    max_size=14,
)


@pytest.mark.prove
@settings(
    max_examples=rounds(40, 600), suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(steps)
def test_each_fact_is_stored_once_whatever_is_lost(law_engine: Engine, history: list[tuple[int, str, Any]]) -> None:
    fleet = [Device(next(_names)) for _ in range(2)]
    with law_engine.begin() as connection:
        for device in fleet:
            enrol(connection, device.device_id)
    for at, outcome, plan in history:
        device = fleet[at]
        if device.in_flight is None:
            device.prepare(plan)
        _send(law_engine, device, outcome)
    for device in fleet:
        if device.in_flight is not None:
            _send(law_engine, device, "send")
        assert _stored(law_engine, device.device_id) == device.facts
        assert _lost(law_engine, device.device_id) == device.lost
        assert _samples(law_engine, device.device_id) == sum(1 for stream, _ in device.facts if stream == "telemetry")
        assert _published(law_engine, device.device_id) == sorted(device.facts)


def _send(engine: Engine, device: Device, outcome: str) -> None:
    assert device.in_flight is not None
    if outcome == "stale":  # a copy that the network held back
        old = device.history[0]
        try:
            with engine.begin() as connection:
                answer = push(connection, old)
            assert answer.status == "replayed" or old is device.in_flight
        except ConflictError:
            raise AssertionError("a held back copy is no conflict") from None
        return
    try:
        with engine.begin() as connection:
            answer = push(connection, device.in_flight)
            assert answer.ack_batch_seq == device.batch_seq
            if outcome == "rolled back":
                raise LostReplyError
    except LostReplyError:
        return
    if outcome == "send":
        device.in_flight = None


def _stored(engine: Engine, device_id: str) -> dict[tuple[str, int], Any]:
    with engine.connect() as connection:
        query = text("SELECT stream, seq, value FROM sync.fact WHERE device_id = :d")
        return {(row.stream, row.seq): row.value for row in connection.execute(query, {"d": device_id})}


def _lost(engine: Engine, device_id: str) -> set[tuple[str, int]]:
    with engine.connect() as connection:
        query = text("SELECT stream, seq_from, seq_to FROM sync.lost WHERE device_id = :d")
        ranges = connection.execute(query, {"d": device_id}).all()
    seqs = [(row.stream, seq) for row in ranges for seq in range(row.seq_from, row.seq_to + 1)]
    assert len(seqs) == len(set(seqs))
    return set(seqs)


def _samples(engine: Engine, device_id: str) -> int:
    with engine.connect() as connection:
        query = (
            "SELECT count(*) FROM metrics.sample JOIN metrics.series USING (series_id)"
            " WHERE device_id = :d AND metric = 'cpu_percent'"
        )
        return int(connection.execute(text(query), {"d": device_id}).scalar_one())


def _published(engine: Engine, device_id: str) -> list[tuple[str, int]]:
    with engine.connect() as connection:
        found, after = [], 0
        while batches := outbox.read(connection, after, 7):
            after = batches[-1].log_seq
            found += [(row["stream"], row["seq"]) for b in batches for row in b.rows if row["device_id"] == device_id]
    return sorted(found)


def test_a_cursor_misses_nothing_while_many_devices_push(store_engine: Engine) -> None:
    device_ids = [f"edge-{number}" for number in range(6)]
    batches = 15
    with store_engine.begin() as connection:
        for device_id in device_ids:
            enrol(connection, device_id)
    committed: list[str] = []
    done = threading.Event()
    seen: list[tuple[int, str, int]] = []

    def work(device_id: str) -> None:
        for number in range(1, batches + 1):
            with store_engine.begin() as connection:
                push(connection, batch(number, [fact(number)], device_id))
            committed.append(device_id)

    def follow() -> None:
        after = 0
        while True:
            is_last = done.is_set()
            with store_engine.connect() as connection:
                page = outbox.read(connection, after, 3)
            for entry in page:
                seen.append((entry.log_seq, entry.device_id, entry.rows[0]["seq"]))
                after = entry.log_seq
            if is_last and not page:
                return

    follower = threading.Thread(target=follow)
    follower.start()
    with ThreadPoolExecutor(len(device_ids)) as pool:
        list(pool.map(work, device_ids))
    done.set()
    follower.join(30)
    expected = {(device_id, number) for device_id in device_ids for number in range(1, batches + 1)}
    assert {(device_id, seq) for _, device_id, seq in seen} == expected
    assert len(seen) == len(expected)
    assert [entry[0] for entry in seen] == sorted(entry[0] for entry in seen)
    with store_engine.connect() as connection:
        summary = sync_log.summarise(connection, 0, 1000)
        assert summary.next_cursor == sync_log.newest(connection) == seen[-1][0]
        telemetry = summary.classes["telemetry"]
    assert telemetry.devices == tuple(device_ids)
    assert (telemetry.batches, telemetry.rows) == (len(expected), len(expected))


def test_a_later_number_waits_for_the_commit_of_an_earlier_one(store_engine: Engine) -> None:
    with store_engine.begin() as connection:
        enrol(connection, "slow")
        enrol(connection, "fast")
    first = store_engine.connect()
    transaction = first.begin()
    push(first, batch(1, [fact(1)], "slow"))

    def push_fast() -> None:
        with store_engine.begin() as connection:
            push(connection, batch(1, [fact(1)], "fast"))

    other = threading.Thread(target=push_fast)
    other.start()
    with store_engine.connect() as connection:
        waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        while not connection.execute(waiting).scalar_one():
            connection.rollback()
        assert outbox.read(connection, 0, 10) == []
    transaction.commit()
    first.close()
    other.join(10)
    with store_engine.connect() as connection:
        assert [entry.device_id for entry in outbox.read(connection, 0, 10)] == ["slow", "fast"]
