"""A partition's chain of snapshots, whoever writes, dies or compacts when: the owner's last closed snapshot counts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from primespark.core.encoding import compress
from primespark.errors import ConflictError
from streams import chain, chain_writer
from streams.chain import ChainReader
from streams.chain_writer import ChainWriter
from tests.helpers import rounds


def changes(number: int, groups: dict[str, int], removed: tuple[str, ...] = (), topic: str = "in") -> dict[str, Any]:
    states = [[[name], 0, None, [[7, value]], []] for name, value in groups.items()]
    rules: dict[str, Any] = {"r": {"fingerprint": "f", "watermark": [0], "is_whole": False, "groups": states}}
    rules["r"]["removed"] = [[[name], [7]] for name in removed]
    return {"version": 1, "topic": topic, "partition": 0, "next_offset": number, "log_seq": -1, "rules": rules}


def told(snapshot: dict[str, Any]) -> tuple[int, dict[str, int]]:
    rule = snapshot["rules"].get("r", {"groups": []})
    return snapshot["next_offset"], {names[0]: value for names, _, _, [[_, value]] in rule["groups"]}


class Log:
    """A partition of a compacted topic; a record without a value deletes its key."""

    def __init__(self) -> None:
        self.records: list[tuple[int, bytes, bytes | None]] = []
        self._offsets = itertools.count()

    def append(self, key: bytes, value: bytes | None) -> None:
        self.records.append((next(self._offsets), key, value))

    def compact(self, chosen: Callable[[bytes], bool]) -> None:
        """Of chosen keys only the last record stays; one that deletes and is alone goes."""
        last = {key: offset for offset, key, _ in self.records}
        first = {key: offset for offset, key, _ in reversed(self.records)}
        self.records = [
            (offset, key, value)
            for offset, key, value in self.records
            if not chosen(key) or (offset == last[key] and (value is not None or first[key] != offset))
        ]


class Worker:
    """Takes a partition over and writes, one record a step."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._reader = ChainReader("in", 0)
        self._next = 0
        self.read()
        self.writer = ChainWriter(self._reader)
        self.pending: list[tuple[bytes, bytes]] = []
        self.garbage: list[bytes] = []
        self.is_whole = False
        self.has_begun = False
        self.value: dict[str, int] = {}
        self.number = 0

    def read(self) -> None:
        for offset, key, value in self._log.records:
            if offset >= self._next:
                self._reader.take(key, value)
                self._next = offset + 1

    def begin(self) -> tuple[int, dict[str, int]]:
        self._log.append(*self.writer.claim)
        self.read()
        state = self.writer.begin()
        self.has_begun = True
        self.number, self.value = told(state.to_snapshot()) if state is not None else (0, {})
        return self.number, dict(self.value)


class Chains(RuleBasedStateMachine):
    """One worker after the other; those before may go on writing, and die, between any two records."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self.workers: list[Worker] = []
        self.expected: tuple[int, dict[str, int]] = (0, {})
        self._numbers = itertools.count(1)

    @rule()
    def read_ahead(self) -> None:
        """A worker reads, and may claim later or never."""
        self.workers.append(Worker(self.log))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        if worker.has_begun:
            return
        try:
            found = worker.begin()
        except ConflictError:
            self.workers.remove(worker)
            return
        assert found == self.expected

    @precondition(lambda self: any(worker.has_begun for worker in self.workers))
    @rule(
        data=st.data(), groups=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 10**6)),
        removed=st.sets(st.sampled_from("abcdef")),
    )  # fmt: skip
    def write(self, data: st.DataObject, groups: dict[str, int], removed: set[str]) -> None:
        """Begin a snapshot, also where another was begun and it is not known what became of it."""
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.has_begun]))
        gone = tuple(removed - groups.keys())
        worker.number = next(self._numbers)
        worker.value = {name: value for name, value in worker.value.items() if name not in gone} | groups
        # What is repeated has all that was not acknowledged.
        repeated = worker.value if worker.pending else groups
        try:
            worker.pending, worker.is_whole = worker.writer.write(
                changes(worker.number, repeated, tuple(set("abcdef") - worker.value.keys()))
            )
        except ConflictError:
            self.workers.remove(worker)

    @precondition(lambda self: any(worker.pending for worker in self.workers))
    @rule(data=st.data(), is_repeated=st.booleans())
    def append(self, data: st.DataObject, is_repeated: bool) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.pending]))
        record = worker.pending.pop(0)
        self.log.append(*record)
        if is_repeated:
            self.log.append(*record)
        if worker.pending:
            return
        worker.writer.acknowledge()
        if worker is self._owner():
            self.expected = (worker.number, dict(worker.value))
        if worker.is_whole:
            worker.read()
            try:
                worker.garbage += worker.writer.superseded()
            except ConflictError:
                self.workers.remove(worker)

    @precondition(lambda self: any(worker.garbage for worker in self.workers))
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """Also long after it was found out what may be deleted."""
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.garbage]))
        for key in worker.garbage:
            self.log.append(key, None)
        worker.garbage = []

    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        keys = sorted({key for _, key, _ in self.log.records})
        chosen = data.draw(st.sets(st.sampled_from(keys))) if keys else set()
        self.log.compact(chosen.__contains__)

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        self.workers.remove(data.draw(st.sampled_from(self.workers)))

    def teardown(self) -> None:
        assert Worker(self.log).begin() == self.expected

    def _owner(self) -> Worker | None:
        """By an account of its own: who claimed last; a claim that was not the first of its term was refused."""
        latest = (0, "")
        for _, key, value in self.log.records:
            fields = key.decode().split("|")
            if value is not None and fields[4] == "0" and int(fields[2]) > latest[0]:
                latest = (int(fields[2]), fields[3])
        owners = [w for w in self.workers if w.has_begun and w.writer.claim[0].decode().split("|")[3] == latest[1]]
        return owners[0] if owners else None


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few bytes, and whole snapshots every few records."""
    monkeypatch.setattr(chain, "CHUNK_BYTES", 60)
    monkeypatch.setattr(chain_writer, "_LEAST_CHANGES_BYTES", 300)
    monkeypatch.setattr(chain_writer, "_MOST_RECORDS", 12)


@pytest.mark.prove
def test_the_last_closed_snapshot_of_the_owner_counts() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Chains, settings=settings(max_examples=rounds(60, 3000), stateful_step_count=50, deadline=None)
    )


def test_what_a_zombie_writes_is_refused_and_deletes_nothing() -> None:
    log = Log()
    zombie = Worker(log)
    zombie.begin()
    for record in zombie.writer.write(changes(1, {"a": 1}))[0]:
        log.append(*record)
    zombie.writer.acknowledge()
    late = zombie.writer.write(changes(2, {"a": 2}))[0]
    owner = Worker(log)
    assert owner.begin() == (1, {"a": 1})
    for record in late:
        log.append(*record)
    zombie.read()
    with pytest.raises(ConflictError, match="taken over"):
        zombie.writer.write(changes(3, {"a": 3}))
    with pytest.raises(ConflictError, match="taken over"):
        zombie.writer.superseded()
    successor = Worker(log)
    assert successor.begin() == (1, {"a": 1})
    assert successor._reader.refused == len(late)


def test_of_two_claims_for_one_term_the_first_holds() -> None:
    log = Log()
    first, second = Worker(log), Worker(log)
    first.begin()
    with pytest.raises(ConflictError, match="at the same time"):
        second.begin()


def test_of_a_snapshot_of_an_earlier_version_the_offset_counts_and_a_whole_one_follows() -> None:
    log = Log()
    for number in (1, 2):
        log.append(b"in|0", compress(json.dumps(changes(number, {"a": 1, "b": number})).encode()))
    worker = Worker(log)
    assert worker.begin() == (2, {})
    records, is_whole = worker.writer.write(changes(3, {"c": 3}))
    assert is_whole
    for record in records:
        log.append(*record)
    worker.writer.acknowledge()
    log.append(b"in|0", compress(json.dumps(changes(9, {"z": 9})).encode()))
    worker.read()
    assert b"in|0" in worker.writer.superseded()
    assert Worker(log).begin() == (3, {"c": 3})


def test_a_snapshot_with_a_damaged_chunk_does_not_count_nor_what_follows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chain_writer, "_MOST_RECORDS", 100)
    monkeypatch.setattr(chain_writer, "_LEAST_CHANGES_BYTES", 10_000)
    log = Log()
    worker = Worker(log)
    worker.begin()
    for number in (1, 2, 3):
        for key, value in worker.writer.write(changes(number, {"a": number}))[0]:
            log.append(key, value[:-1] + b"x" if number == 2 else value)
        worker.writer.acknowledge()
    assert Worker(log).begin() == (1, {"a": 1})


def test_records_of_other_partitions_and_foreign_keys_change_nothing() -> None:
    log = Log()
    for key in (b"in2|0|9|w|0|0", b"in|1|9|w|0|0", b"in|0|x|w|0|0", b"in|0|", b"\xff", b"in|0|9|w|1|1"):
        log.append(key, b"{}\n")
    assert Worker(log).begin() == (0, {})
