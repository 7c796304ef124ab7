"""Replays by example, and the law that a replay says what the engine says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from typer.testing import CliRunner

from primespark.cli.main import app
from primespark.errors import InvalidInputError
from primespark.windows.replay import Replay, partitions_of, read_event
from primespark.windows.rules import AggregationRule
from tests.unit.windows.histories import Feed, histories, make_engine, make_rule, rules
from tests.unit.windows.oracle import PARTITIONS, Step

KEY = {"watermark_scope": "key"}


def play(lines: list[dict[str, Any]], *given_rules: AggregationRule, manual: bool = False) -> tuple[list[Any], Any]:
    events = [read_event(json.dumps(line)) for line in lines]
    replay = Replay(given_rules, partitions_of(events), manual_watermark=manual)
    said = [
        (one["group"], one["window_start"], one["value"], one["count"], one["kind"], one["revision"])
        for event in events
        for one in replay.play(event)
    ]  # fmt: skip
    return said, replay.totals()


def record(ts: Any, value: float = 1.0, device: str = "a", **more: Any) -> dict[str, Any]:
    return {"ts": ts, "row": {"device_id": device, "cpu_percent": value}} | more


@given(rules(), histories())
def test_it_says_what_the_engine_says(rule: AggregationRule, history: list[Step]) -> None:
    feed = Feed(make_engine(rule))
    replay = Replay([rule], PARTITIONS)
    for step in history:
        expected = [result.to_message() for result in feed.step(step).results]
        line = {"tick": step.clock_ms}
        if step.partition is not None:
            line = record(step.ts, step.value, step.device, partition=step.partition, at=step.clock_ms)
        assert list(replay.play(read_event(json.dumps(line)))) == expected
    counted = feed.engine.counters["r"]
    assert replay.totals()["counters"]["late_dropped"] == counted.late_dropped


def test_flush_fires_what_is_open_and_after_it_all_is_late() -> None:
    said, totals = play([record(1000), record(25_000, 2), {"flush": True}, record(26_000)], make_rule(KEY))
    assert said == [(["a"], 0, 1.0, 1, "final", 1), (["a"], 20_000, 2.0, 1, "final", 1)]
    assert totals["counters"]["late_dropped"] == 1


def test_by_hand_records_leave_the_watermark_where_it_is() -> None:
    lines = [record(1000), record(50_000), {"advance_watermark": 10_000}, record(2000, 2), {"advance_watermark": 5000}]
    for window in (KEY, {}):
        said, _ = play(lines, make_rule(window), manual=True)
        assert said == [(["a"], 0, 1.0, 1, "final", 1), (["a"], 0, 3.0, 2, "late_update", 2)]


def test_a_restart_changes_nothing_but_the_engine() -> None:
    lines = [record(1000, offset=3), record(11_000), record(0), record(1, offset=2)]
    with_restarts = [line for one in lines for line in (one, {"restart": True})]
    assert play(with_restarts, make_rule(KEY)) == play(lines, make_rule(KEY))
    assert play(lines, make_rule(KEY))[1]["counters"]["duplicates"] == 1


def test_a_partition_that_is_silent_holds_the_watermark_back_until_it_is_idle() -> None:
    before = [record(0, at=1000), record(20_000, at=29_000), {"tick": 29_999}]
    # That partition 1 has records at all is known from the beginning.
    held_back = play([*before, record(9_999, partition=1, at=29_999)], make_rule())
    assert held_back[0] == []
    idle = play([*before, {"tick": 30_000}, record(20_001, partition=1, at=30_000)], make_rule())
    assert idle[0] == [(["a"], 0, 1.0, 1, "final", 1)]


def test_a_group_is_one_over_all_partitions() -> None:
    rule = make_rule(KEY, group_by=["zone"], value_field=None, aggregation_function="count")
    lines = [{"ts": ts, "row": {"zone": "x"}, "partition": ts % 2} for ts in range(4)]
    assert play([*lines, {"flush": True}], rule)[0] == [(["x"], 0, 4.0, 4, "final", 1)]


def test_what_is_skipped_is_counted_in_all_and_by_rule() -> None:
    skipping = make_rule(KEY, rule_id="s", filters=[["cpu_percent", "<", 5]])
    lines = [record("x"), record(1, 9.0), {"ts": 1, "row": {"cpu_percent": 1}}, {"ts": 2, "row": {"device_id": "a"}}]
    _, totals = play(lines, make_rule(KEY), skipping)
    assert totals["by_rule"]["s"] == {
        "late_dropped": 0, "invalid": 1, "ungrouped": 1, "filtered": 2, "future": 0, "duplicates": 0,
    }  # fmt: skip
    assert totals["counters"]["invalid"] == 3


@pytest.mark.parametrize(
    "line",
    [
        "x", "[]", "{}", '{"tick": 1, "flush": true}', '{"tick": "1"}', '{"tick": 1.5}', '{"row": 1}',
        '{"row": {}, "x": 1}', '{"row": {}, "partition": -1}', '{"restart": 1}', '{"tick": 99999999999999999999}',
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(InvalidInputError):
        read_event(line)


def test_the_command_prints_results_and_counters(tmp_path: Path) -> None:
    rules_file, events = tmp_path / "rules.json", tmp_path / "events.jsonl"
    rules_file.write_text(json.dumps([make_rule(KEY).model_dump(mode="json", exclude_unset=True)]), encoding="utf-8")
    events.write_text("\n".join(json.dumps(line) for line in (record(1000), {"flush": True})), encoding="utf-8")
    ran = CliRunner().invoke(app, ["streams", "replay", "--rules", str(rules_file), "--events", str(events)])
    first, last = map(json.loads, ran.stdout.splitlines())
    assert first == {
        "rule_id": "r", "group": ["a"], "window_start": 0, "window_end": 10_000, "value": 1.0, "count": 1,
        "kind": "final", "revision": 1,
    }  # fmt: skip
    assert set(last) == {"counters", "by_rule"}
    events.write_text('{"tick": 1}\n\n{"tock": 2}\n', encoding="utf-8")
    ran = CliRunner().invoke(app, ["streams", "replay", "--rules", str(rules_file), "--events", str(events)])
    assert isinstance(ran.exception, InvalidInputError)
    assert "line 3: no event" in str(ran.exception)


def test_the_page_says_what_its_example_prints(tmp_path: Path) -> None:
    whole = (Path(__file__).parents[3] / "docs" / "streams.md").read_text(encoding="utf-8")
    page = whole.split("## Trying a rule")[1].split("\n## ")[0]
    (given_rules,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    events, printed = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    rules_file, events_file = tmp_path / "rules.yaml", tmp_path / "events.jsonl"
    rules_file.write_text(given_rules, encoding="utf-8")
    events_file.write_text(events, encoding="utf-8")
    ran = CliRunner().invoke(app, ["streams", "replay", "--rules", str(rules_file), "--events", str(events_file)])
    assert ran.stdout == printed
