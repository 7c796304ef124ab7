"""The meaning of windows by example: edges, lateness, revisions, the future, idleness, what is skipped."""

from __future__ import annotations

import json
from typing import Any

import pytest

from primespark.errors import IntegrityError
from primespark.windows.engine import WindowEngine
from primespark.windows.records import Batch
from primespark.windows.results import ResultKind, WindowResult
from tests.unit.windows.histories import TOPIC, Feed, make_engine, make_rule, reborn
from tests.unit.windows.oracle import PARTITIONS, Step

KEY = {"watermark_scope": "key"}
Told = tuple[str, int, float | None, int, str, int]


def rows(engine: WindowEngine, *items: dict[str, Any], offset: int = 0, partition: int = 0, **more: Any) -> list[Told]:
    batch = Batch(TOPIC, partition, offset, items, **more)
    return [told(result) for result in engine.process(batch, more.get("at_ms") or 0).results]


def told(result: WindowResult) -> Told:
    return (
        result.group_key, result.window_start, result.value, result.count, result.kind.value, result.revision
    )  # fmt: skip


def at(ts: int, value: object = 1.0, device: str = "a") -> dict[str, Any]:
    return {"device_id": device, "ts": ts, "cpu_percent": value}


def test_a_window_holds_its_start_and_not_its_end() -> None:
    engine = make_engine(make_rule(KEY))
    assert rows(engine, at(0, 1), at(9_999, 2)) == []
    assert rows(engine, at(10_000, 4), offset=1) == [("a", 0, 3.0, 2, "final", 1)]
    assert rows(engine, at(20_000, 8), offset=2) == [("a", 10_000, 4.0, 1, "final", 1)]


def test_windows_before_the_epoch_are_aligned_by_floor() -> None:
    engine = make_engine(make_rule(KEY))
    assert rows(engine, at(-1), at(0)) == [("a", -10_000, 1.0, 1, "final", 1)]


def test_the_watermark_waits_for_the_allowed_disorder() -> None:
    engine = make_engine(make_rule({**KEY, "max_out_of_orderness_seconds": 2}))
    assert rows(engine, at(1_000), at(11_999), at(9_000)) == []
    assert rows(engine, at(12_000), offset=1) == [("a", 0, 2.0, 2, "final", 1)]


def test_late_records_give_revisions_until_the_lateness_is_over() -> None:
    engine = make_engine(make_rule({**KEY, "allowed_lateness_seconds": 5}))
    assert rows(engine, at(1_000), at(10_000)) == [("a", 0, 1.0, 1, "final", 1)]
    assert rows(engine, at(2_000, 2), at(3_000, 4), offset=1) == [
        ("a", 0, 3.0, 2, "late_update", 2),
        ("a", 0, 7.0, 3, "late_update", 3),
    ]
    assert rows(engine, at(14_999), at(4_000, 8), offset=2) == [("a", 0, 15.0, 4, "late_update", 4)]
    output = engine.process(Batch(TOPIC, 0, 3, [at(15_000), at(5_000, 99)]), 0)
    assert output.results == []
    assert [(late.index, late.row["cpu_percent"]) for late in output.late] == [(1, 99)]
    assert engine.counters["r"].late_dropped == 1


def test_a_window_whose_first_record_is_late_begins_with_a_final() -> None:
    engine = make_engine(make_rule({**KEY, "allowed_lateness_seconds": 60}))
    assert rows(engine, at(25_000), at(1_000)) == [("a", 0, 1.0, 1, "final", 1)]


def test_without_a_bound_on_lateness_nothing_is_late() -> None:
    engine = make_engine(make_rule({**KEY, "allowed_lateness_seconds": None}))
    rows(engine, at(1_000), at(10**12))
    assert rows(engine, at(2_000), offset=1) == [("a", 0, 2.0, 2, "late_update", 2)]


def test_with_no_lateness_a_window_is_forgotten_as_it_fires() -> None:
    engine = make_engine(make_rule({**KEY, "allowed_lateness_seconds": 0}))
    assert rows(engine, at(1_000), at(10_000), at(1_001)) == [("a", 0, 1.0, 1, "final", 1)]
    assert engine.counters["r"].late_dropped == 1


def test_a_record_too_far_in_the_future_closes_no_window() -> None:
    engine = make_engine(make_rule({**KEY, "max_future_seconds": 60}))
    assert rows(engine, at(1_000), at(70_001), at_ms=10_000) == []
    assert engine.counters["r"].future == 1
    assert rows(engine, at(70_000), offset=1, at_ms=10_000) == [("a", 0, 1.0, 1, "final", 1)]
    assert rows(engine, at(10**12), offset=2, at_ms=None) != []


def test_by_key_one_device_does_not_close_the_windows_of_another() -> None:
    engine = make_engine(make_rule(KEY))
    rows(engine, at(1_000, device="a"), at(1_000, device="d"))
    assert rows(engine, at(99_000, device="a"), offset=1) == [("a", 0, 1.0, 1, "final", 1)]
    assert rows(engine, at(2_000, device="d"), offset=2) == []


def test_by_partition_the_slowest_partition_holds_all_back() -> None:
    engine = make_engine(make_rule({"watermark_scope": "partition", "idle_timeout_seconds": None}))
    assert rows(engine, at(1_000), at(99_000)) == []
    assert rows(engine, at(50_000, device="b"), partition=1) == []
    assert rows(engine, at(12_000, device="c"), partition=2) == [("a", 0, 1.0, 1, "final", 1)]
    assert engine.tick(10**9).results == []


def test_by_partition_a_silent_partition_holds_nothing_back_for_longer_than_the_timeout() -> None:
    engine = make_engine(make_rule({"watermark_scope": "partition", "idle_timeout_seconds": 30}))
    feed = Feed(engine)
    for step in (Step(20_000, 0, "a", 1_000, 1.0), Step(20_000, 0, "a", 99_000, 1.0)):
        assert feed.step(step).results == []
    assert engine.tick(29_999).results == []
    assert [told(result) for result in engine.tick(30_000).results] == [("a", 0, 1.0, 1, "final", 1)]


@pytest.mark.parametrize("written_at", [0, 10**12])
def test_a_partition_that_is_taken_over_is_idle_by_the_clock_of_who_took_it(written_at: int) -> None:
    rule = make_rule({"watermark_scope": "partition", "idle_timeout_seconds": 30})
    engine, successor = make_engine(rule, clock_ms=written_at), WindowEngine([rule])
    for number in PARTITIONS:
        successor.restore(engine.snapshot(TOPIC, number), 5_000, restart_idle=True)
    feed = Feed(successor)
    for step in (Step(20_000, 0, "a", 1_000, 1.0), Step(20_000, 0, "a", 99_000, 1.0)):
        assert feed.step(step).results == []
    assert successor.tick(34_999).results == []
    assert [told(result) for result in successor.tick(35_000).results] == [("a", 0, 1.0, 1, "final", 1)]


def test_while_all_partitions_are_silent_time_stands_still() -> None:
    engine = make_engine(make_rule({"watermark_scope": "partition", "idle_timeout_seconds": 30}))
    Feed(engine).step(Step(0, 0, "a", 1_000, 1.0))
    assert engine.tick(10**9).results == []


def test_a_partition_that_comes_later_does_not_turn_time_back() -> None:
    engine = make_engine(make_rule({"watermark_scope": "partition", "idle_timeout_seconds": None}))
    engine.revoke(TOPIC, 2)
    engine.revoke(TOPIC, 1)
    assert rows(engine, at(1_000), at(30_000)) == [("a", 0, 1.0, 1, "final", 1)]
    engine.assign(TOPIC, 1, 0)
    assert rows(engine, at(2_000), offset=1) == [("a", 0, 2.0, 2, "late_update", 2)]
    assert rows(engine, at(99_000), offset=2) == []


@pytest.mark.parametrize("value", [True, "1", None, [1], float("nan"), float("inf"), 10**400, {}])
def test_what_is_no_finite_number_is_counted_as_invalid(value: object) -> None:
    engine = make_engine(make_rule(KEY))
    assert rows(engine, at(0, value), at(10_000)) == []
    assert engine.counters["r"].invalid == 1


@pytest.mark.parametrize("moment", [True, 1.0, "5", None, 10**15, -(10**15)])
def test_a_time_that_is_no_integer_in_range_is_counted_as_invalid(moment: Any) -> None:
    engine = make_engine(make_rule(KEY))
    assert rows(engine, at(moment), {"device_id": "a", "cpu_percent": 1.0}) == []
    assert engine.counters["r"].invalid == 2


@pytest.mark.parametrize("device", [None, [], {}, float("nan"), "a\0b", "x" * 1025, "\ud800"])
def test_a_row_without_a_usable_group_is_counted_as_ungrouped(device: Any) -> None:
    engine = make_engine(make_rule(KEY))
    rows(engine, at(0, device=device), {"ts": 0, "cpu_percent": 1.0})
    assert engine.counters["r"].ungrouped == 2


def test_without_a_value_field_rows_are_counted() -> None:
    engine = make_engine(make_rule(KEY, aggregation_function="count", value_field=None))
    assert rows(engine, at(0, "x"), at(1, None), at(10_000)) == [("a", 0, 2.0, 2, "final", 1)]


def test_groups_of_several_fields_cannot_be_mistaken_for_each_other() -> None:
    engine = make_engine(make_rule(KEY, group_by=["device_id", "zone"]))
    names = [("a,b", "c"), ("a", "b,c"), ("a\\", "b"), ("a", "\\b")]
    items = [{"device_id": one, "zone": two, "ts": ts, "cpu_percent": 1} for one, two in names for ts in (0, 10_000)]
    assert len({name for name, *_ in rows(engine, *items)}) == 4


def test_results_of_one_step_are_in_order_of_end_start_and_group() -> None:
    engine = make_engine(make_rule({"watermark_scope": "partition", "idle_timeout_seconds": 1}))
    rows(engine, at(12_000, device="b"), at(1_000, device="c"), at(1_000, device="a"), at(11_000, device="a"))
    rows(engine, at(50_000, device="a"), offset=1)
    assert [(result.window_start, result.group[0]) for result in engine.tick(0).results] == []
    feed = engine.process(Batch(TOPIC, 0, 2, [at(50_001)]), 2_000)
    assert [(result.window_start, result.group[0]) for result in feed.results] == [
        (0, "a"), (0, "c"), (10_000, "a"), (10_000, "b"),
    ]  # fmt: skip


def test_a_message_whose_log_position_is_not_higher_is_a_duplicate() -> None:
    engine = make_engine(make_rule(KEY))
    rows(engine, at(0), offset=0, log_seq=5)
    for offset, log_seq in enumerate((5, 4), 1):
        assert rows(engine, at(1), at(2), offset=offset, log_seq=log_seq) == []
    assert engine.duplicates == 4
    assert rows(engine, at(10_000), offset=3, log_seq=6) == [("a", 0, 1.0, 1, "final", 1)]
    other = make_engine(make_rule(KEY))
    rows(other, at(0), partition=0, log_seq=5)
    rows(other, at(0, device="b"), partition=1, log_seq=5)
    assert other.duplicates == 0


def test_the_log_fence_survives_a_restart() -> None:
    rule = make_rule(KEY)
    engine = make_engine(rule)
    rows(engine, at(0), log_seq=5)
    successor = reborn(engine, [rule], 0)
    assert rows(successor, at(1), offset=1, log_seq=5) == []
    assert successor.duplicates == 1


def test_state_of_a_rule_that_was_changed_is_not_taken_up() -> None:
    engine = make_engine(make_rule(KEY))
    rows(engine, at(1_000, 5))
    changed = make_rule(KEY, aggregation_function="count")
    successor = reborn(engine, [changed], 0)
    assert successor.next_offset(TOPIC, 0) == 1
    assert rows(successor, at(10_000), offset=1) == []


def test_a_rule_added_later_starts_empty_beside_the_old_one() -> None:
    old = make_rule(KEY)
    engine = make_engine(old)
    rows(engine, at(1_000, 5))
    new = make_rule(KEY, rule_id="new", aggregation_function="count")
    successor = reborn(engine, [old, new], 0)
    assert rows(successor, at(10_000), offset=1) == [("a", 0, 5.0, 1, "final", 1)]


def test_a_snapshot_of_another_version_is_refused() -> None:
    engine = make_engine(make_rule(KEY))
    snapshot = {**engine.snapshot(TOPIC, 0), "version": 99}
    with pytest.raises(IntegrityError, match="99"):
        engine.restore(snapshot, 0)


def test_a_disabled_rule_reads_nothing() -> None:
    engine = WindowEngine([make_rule(enabled=False)])
    assert engine.source_topics == []


def test_only_what_changed_is_snapshotted_again() -> None:
    engine = make_engine(make_rule(KEY))
    engine.take_changed()
    rows(engine, at(0, device="b"), partition=1)
    assert engine.take_changed() == [(TOPIC, 1)]
    assert engine.take_changed() == []
    engine.skip(TOPIC, 2, 0)
    assert engine.take_changed() == [(TOPIC, 2)]
    assert engine.next_offset(TOPIC, 2) == 1


def test_forgotten_windows_leave_the_snapshot() -> None:
    """State is bounded by size and lateness, not by history."""
    engine = make_engine(make_rule({**KEY, "allowed_lateness_seconds": 0}))
    sizes = []
    for minute in range(50):
        rows(engine, at(minute * 60_000), offset=minute)
        sizes.append(len(json.dumps(engine.snapshot(TOPIC, 0))))
    assert max(sizes[5:]) - min(sizes[5:]) < 40


def test_a_group_without_windows_is_forgotten_where_it_has_no_watermark_of_its_own() -> None:
    window = {"watermark_scope": "partition", "idle_timeout_seconds": 1, "allowed_lateness_seconds": 0}
    engine = make_engine(make_rule(window))
    engine.process(Batch(TOPIC, 0, 0, [at(0, device=f"d{number}") for number in range(100)]), 5_000)
    engine.process(Batch(TOPIC, 0, 1, [at(10**6)]), 5_000)
    assert len(engine.snapshot(TOPIC, 0)["rules"]["r"]["groups"]) == 1


def test_a_group_that_is_forgotten_without_ever_having_had_a_window_is_told() -> None:
    engine = make_engine(make_rule({"watermark_scope": "partition", "allowed_lateness_seconds": 0}))
    for partition in (1, 2):
        engine.process(Batch(TOPIC, partition, 0, [at(20_000, device=f"d{partition}")]), 0)
    engine.process(Batch(TOPIC, 0, 0, [at(20_000)]), 0)
    engine.process(Batch(TOPIC, 0, 1, [at(0, device="late")]), 0)
    assert ["late"] in [names for names, *_ in engine.take_changes(TOPIC, 0)["rules"]["r"]["groups"]]
    for partition in PARTITIONS:
        engine.process(Batch(TOPIC, partition, 2, [at(21_000, device=f"d{partition}")]), 0)
    assert engine.take_changes(TOPIC, 0)["rules"]["r"]["removed"] == [[["late"], []]]


def test_a_result_as_message_and_as_row() -> None:
    result = WindowResult("r", ("a", "x,y"), -1_500, 8_500, 1.5, 2, ResultKind.LATE_UPDATE, 3)
    assert result.key == "r|a,x\\,y|-1500|8500"
    assert result.to_message() == {
        "rule_id": "r", "group": ["a", "x,y"], "window_start": -1_500, "window_end": 8_500, "value": 1.5, "count": 2,
        "kind": "late_update", "revision": 3,
    }  # fmt: skip
    row = result.to_row()
    assert row["window_start"].isoformat() == "1969-12-31T23:59:58.500000+00:00"
    assert (row["window_end"] - row["window_start"]).total_seconds() == 10


@pytest.mark.parametrize("window", [{"size_seconds": 10}, {"window_type": "session", "session_gap_seconds": 1}])
def test_of_a_group_the_parts_that_changed_are_told_and_those_that_went(window: dict[str, Any]) -> None:
    engine = make_engine(make_rule({**window, "watermark_scope": "key", "allowed_lateness_seconds": 20}))
    told = []
    for offset, moment in enumerate([0, 15_000, 16_000, 36_000]):
        engine.process(Batch(TOPIC, 0, offset, [at(moment)]), 0)
        ((_, _, _, parts, gone),) = engine.take_changes(TOPIC, 0)["rules"]["r"]["groups"]
        told.append(([part[0] for part in parts], gone))
    first, second, third, last = told
    begin = 10_000 if "size_seconds" in window else 15_000
    assert first == ([0], [])
    assert begin in second[0]
    assert third == ([begin], [])
    assert (last[0][-1] in (30_000, 36_000), last[1]) == (True, [0])
