"""Groups that are no message keys: through the repartition topic they come to what one worker for all would say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primespark.core.encoding import compress, decompress
from primespark.errors import InvalidInputError
from primespark.windows.engine import Output, Partition, WindowEngine
from primespark.windows.records import Batch
from primespark.windows.repartition import REPARTITION_TOPIC, Routed, RoutedMessage
from primespark.windows.results import WindowResult
from primespark.windows.rules import AggregationRule
from streams import routing
from streams.routing import from_routed_message, partition_of, to_routed_messages
from streams.state import StateLines
from tests.helpers import rounds
from tests.unit.windows.histories import TOPIC, make_rule

SOURCES = 3
SHARES = 2
END_MS = 10**9
Position = dict[Partition, int]


class Fleet:
    """A worker with all partitions of both topics, which may end at any moment and be followed by another."""

    def __init__(self, rule: AggregationRule, source: list[list[Batch]]) -> None:
        self._rule = rule
        self._source = source
        self.shares: list[list[bytes]] = [[] for _ in range(SHARES)]
        self.stored: dict[str, WindowResult] = {}
        self._snapshots: dict[Partition, StateLines] = {}
        self._waiting: list[tuple[int, bytes]] = []
        self._leftovers: list[tuple[int, bytes]] = []
        self._results: list[WindowResult] = []
        self._begin()

    def read(self, partition: int, count: int) -> bool:
        """The next messages of the source; whether there was one."""
        start = self.engine.next_offset(TOPIC, partition)
        batches = self._source[partition][start : start + count]
        if batches:
            self._said(self.engine.process_chunk(batches, 0))
        return bool(batches)

    def read_share(self, partition: int, count: int) -> bool:
        """The next messages of the repartition topic."""
        start = self.engine.next_offset(REPARTITION_TOPIC, partition)
        values = self.shares[partition][start : start + count]
        for offset, value in enumerate(values, start):
            self._said(
                self.engine.process_routed(
                    RoutedMessage(REPARTITION_TOPIC, partition, offset, *from_routed_message(value)), 0
                )
            )
        return bool(values)

    def deliver(self, count: int | None = None) -> None:
        """Publish what waits, of the repartition topic only so many messages."""
        for partition, value in self._waiting[:count]:
            self.shares[partition].append(value)
        self._waiting = [] if count is None else self._waiting[count:]
        for result in self._results:
            known = self.stored.get(result.key)
            if known is None or result.revision >= known.revision:
                self.stored[result.key] = result
        self._results = []

    def snapshot(self) -> None:
        self.deliver()
        for partition in self.engine.take_changed():
            lines = StateLines.encode(self.engine.take_changes(*partition))
            if partition in self._snapshots:
                self._snapshots[partition].apply(lines)
            else:
                self._snapshots[partition] = lines

    def crash(self, delivered: int) -> None:
        """End while publishing; the rest is published by a zombie, some time after."""
        self.deliver(delivered)
        self._leftovers += self._waiting
        self._begin()

    def zombie(self) -> None:
        for partition, value in self._leftovers:
            self.shares[partition].append(value)
        self._leftovers = []

    def finish(self) -> None:
        self.deliver()
        while any(
            [*(self.read(one, 5) for one in range(SOURCES)), *(self.read_share(one, 5) for one in range(SHARES))]
        ):
            self.deliver()
        self._said(self.engine.advance(END_MS))
        self.deliver()

    def _begin(self) -> None:
        self._waiting, self._results = [], []
        self.engine = WindowEngine([self._rule], fewest_columns=4)
        for topic, numbers in ((TOPIC, SOURCES), (REPARTITION_TOPIC, SHARES)):
            for number in range(numbers):
                saved = self._snapshots.get((topic, number))
                if saved is None:
                    self.engine.assign(topic, number, 0)
                else:
                    self.engine.restore(json.loads(json.dumps(saved.to_snapshot())), 0, restart_idle=True)

    def _said(self, output: Output) -> None:
        self._results += output.results
        for routed in output.routed:
            self._waiting.extend(to_routed_messages(routed, SOURCES, SHARES))


_rows = st.fixed_dictionaries(
    {"device_id": st.just("d"), "ts": st.integers(0, 60_000), "cpu_percent": st.integers(-50, 50)},
    optional={"site": st.sampled_from("abcde")},
)
_sources = st.lists(
    st.lists(st.lists(_rows, max_size=6), max_size=8), min_size=SOURCES, max_size=SOURCES
)  # fmt: skip
_windows = st.sampled_from(
    [{"size_seconds": 10}, {"window_type": "sliding", "size_seconds": 10, "slide_seconds": 4},
     {"window_type": "session", "session_gap_seconds": 3}, {"size_seconds": 10, "watermark_scope": "key"}]
)  # fmt: skip
_steps = st.lists(
    st.tuples(st.just("read"), st.integers(0, SOURCES - 1), st.integers(1, 4))
    | st.tuples(st.just("share"), st.integers(0, SHARES - 1), st.integers(1, 6))
    | st.tuples(st.sampled_from(["deliver", "snapshot", "zombie"]), st.just(0), st.just(0))
    | st.tuples(st.just("crash"), st.just(0), st.integers(0, 5)),
    max_size=40,
)


@settings(max_examples=rounds(200, 10_000))
@given(
    source=_sources, window=_windows, steps=_steps, function=st.sampled_from(["sum", "max", "count", "percentile"])
)  # fmt: skip
def test_crashes_and_zombies_change_nothing(
    source: Any, window: dict[str, Any], steps: Sequence[tuple[str, int, int]], function: str
) -> None:
    rule = make_rule(
        {**window, "allowed_lateness_seconds": None, "idle_timeout_seconds": None}, group_by=["site"],
        aggregation_function=function, percentile=50 if function == "percentile" else None,
        filters=[["cpu_percent", ">", -40]],
    )  # fmt: skip
    logs = [[Batch(TOPIC, p, o, rows) for o, rows in enumerate(log)] for p, log in enumerate(source)]
    fleet = Fleet(rule, logs)
    for name, partition, count in steps:
        match name:
            case "read":
                fleet.read(partition, count)
            case "share":
                fleet.read_share(partition, count)
            case "crash":
                fleet.crash(count)
            case _:
                getattr(fleet, name)()
    fleet.finish()
    assert _values(fleet.stored.values()) == _values(_by_one(rule, logs))
    for partition, log in enumerate(fleet.shares):
        names = {name for value in log for name in from_routed_message(value)[0].names}
        assert all(partition_of(name, SHARES) == partition for name in names)


def _by_one(rule: AggregationRule, logs: list[list[Batch]]) -> list[WindowResult]:
    """What one engine with all partitions says."""
    engine = WindowEngine([rule], merge_partitions=True)
    for partition in range(SOURCES):
        engine.assign(TOPIC, partition, 0)
    results = [one for log in logs for batch in log for one in engine.process(batch, 0).results]
    return results + engine.advance(END_MS).results


def _values(results: Any) -> dict[str, tuple[float | None, int]]:
    newest = {one.key: (one.value, one.count) for one in results}
    return {key: found for key, found in newest.items() if found[1]}


@settings(max_examples=rounds(150, 5_000))
@given(
    rows=st.lists(st.tuples(st.integers(0, SOURCES - 1), _rows), max_size=30), window=_windows,
    disorder=st.sampled_from([0, 2]), lateness=st.sampled_from([0, 5]),
)  # fmt: skip
def test_record_by_record_it_says_what_one_engine_says(
    rows: Any, window: dict[str, Any], disorder: int, lateness: int
) -> None:
    bounds = {"max_out_of_orderness_seconds": disorder, "allowed_lateness_seconds": lateness}
    rule = make_rule({**window, **bounds, "idle_timeout_seconds": None}, group_by=["site"])
    one, fleet = WindowEngine([rule], merge_partitions=True), Fleet(rule, [[], [], []])
    for partition in range(SOURCES):
        one.assign(TOPIC, partition, 0)
    for offset, (partition, row) in enumerate(rows):
        expected = one.process(Batch(TOPIC, partition, offset, [row]), 0)
        told = _through(fleet, Batch(TOPIC, partition, offset, [row]))
        assert sorted(told.results, key=repr) == sorted(expected.results, key=repr)
        assert [(late.topic, late.partition, late.offset, late.index) for late in told.late] == [
            (late.topic, late.partition, late.offset, late.index) for late in expected.late
        ]
        assert [late.row for late in told.late] == [
            {name: late.row[name] for name in ("ts", "site", "cpu_percent")} for late in expected.late
        ]
    assert fleet.engine.counters == one.counters
    assert fleet.engine.standing() == one.standing()


def test_a_source_made_anew_has_records_that_are_new() -> None:
    rule = make_rule({"watermark_scope": "key"}, group_by=["site"])
    row = {"ts": 5, "site": "a", "cpu_percent": 1.0}
    fleet = Fleet(rule, [[], [], []])
    for offset in range(3):
        _through(fleet, Batch(TOPIC, 0, offset, [row]))
    fleet.snapshot()
    saved = {key: json.loads(json.dumps(fleet.engine.snapshot(*key))) for key in fleet.engine.partitions}
    saved[TOPIC, 0] |= {"next_offset": 0, "begun_anew": 1}
    for snapshot in saved.values():
        fleet.engine.restore(snapshot, 0)
    assert _through(fleet, Batch(TOPIC, 0, 0, [{**row, "ts": 50_000}])).results[0].count == 3
    assert fleet.engine.duplicates == 0


def test_records_of_an_unknown_rule_or_of_groups_that_are_not_its_own_are_left_out_and_counted() -> None:
    rule = make_rule(group_by=["site"])
    fleet = Fleet(rule, [[], [], []])
    fingerprint = (
        fleet.engine.process(Batch(TOPIC, 0, 0, [{"ts": 1, "site": "a", "cpu_percent": 1}]), 0).routed[0].fingerprint
    )
    for offset, routed in enumerate([_routed(), _routed(fingerprint=fingerprint, names=[("a", "b")])]):
        said = fleet.engine.process_routed(RoutedMessage(REPARTITION_TOPIC, 0, offset, routed, 1), 0)
        assert (said.results, fleet.engine.unclaimed) == ([], 2 * offset + 2)
    assert fleet.engine.standing()["r"] == (None, 0)


def _through(fleet: Fleet, batch: Batch) -> Output:
    """A message, and at once what is routed of it."""
    output = fleet.engine.process(batch, 0)
    for routed in output.routed:
        for partition, value in to_routed_messages(routed, SOURCES, SHARES):
            fleet.shares[partition].append(value)
            message = RoutedMessage(
                REPARTITION_TOPIC, partition, len(fleet.shares[partition]) - 1, *from_routed_message(value)
            )
            said = fleet.engine.process_routed(message, 0)
            output.results += said.results
            output.late += said.late
    return output


def _routed(**changes: Any) -> Routed:
    fields = {
        "rule_id": "r", "fingerprint": "f", "topic": TOPIC, "origin": 0, "newest_ms": 9, "names": [("a",)],
        "places": [1, 2], "events": [9, 4], "codes": [0, 0], "values": [1.5, -0.0], **changes,
    }  # fmt: skip
    return Routed(**fields)


def test_what_is_read_is_what_was_sent() -> None:
    routed = _routed()
    messages = dict(to_routed_messages(routed, 4, 1))
    assert from_routed_message(messages[0]) == (routed, 4)


def test_a_large_one_is_divided_and_no_part_is_ahead_of_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MAX_ROUTED_ROWS", 1)
    values = [value for _, value in to_routed_messages(_routed(newest_ms=20, events=[4, 9]), 1, 1)]
    parts = [from_routed_message(value)[0] for value in values]
    assert [(part.places, part.newest_ms) for part in parts] == [([1], 4), ([2], 20)]


@pytest.mark.parametrize(
    "changes",
    [
        {"codes": [0, 1]}, {"places": [2, 1]}, {"places": [1, 1]}, {"values": [1.0]}, {"origin": 9},
        {"events": [9, 10**18]},
        {"names": [[1]]}, {"names": [["\0"]]}, {"names": [["x" * 2000]]}, {"newest_ms": "9"}, {"places": [-1, 2]},
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    ((_, value),) = to_routed_messages(_routed(), 4, 1)
    fields = json.loads(decompress(value, 10**6)) | changes
    with pytest.raises(InvalidInputError):
        from_routed_message(compress(json.dumps(fields).encode(), 1))


@pytest.mark.parametrize("value", [b"", b"x", compress(b"{}", 1), compress(b"[" * 100_000, 1)])
def test_what_is_no_message_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidInputError):
        from_routed_message(value)
