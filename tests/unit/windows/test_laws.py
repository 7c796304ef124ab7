"""Laws of the engine for any rule and any history."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primespark.windows.results import WindowResult
from primespark.windows.rules import AggregationRule
from streams.state import StateLines
from tests.helpers import rounds
from tests.unit.windows import oracle, session_oracle
from tests.unit.windows.histories import TOPIC, Feed, histories, make_engine, reborn, rules
from tests.unit.windows.oracle import Step
from tests.unit.windows.session_oracle import SaidOfSession


def tell(result: WindowResult) -> tuple[Any, ...]:
    return (result.group[0], result.window_start, result.count, result.revision)


def whole(results: list[WindowResult]) -> list[tuple[Any, ...]]:
    return [(*tell(result), result.value, result.kind) for result in results]


@pytest.mark.prove
@settings(max_examples=rounds(200, 4000))
@given(rule=rules(), history=histories())
def test_the_engine_says_step_by_step_what_the_oracle_says(rule: AggregationRule, history: list[Step]) -> None:
    engine = make_engine(rule)
    feed = Feed(engine)
    expected, late = expect(rule, history)
    number_late = 0
    for step, said in zip(history, expected, strict=True):
        output = feed.step(step)
        number_late += len(output.late)
        told = [(one.group[0], one.window_start, one.window_end, one.revision, one.kind) for one in output.results]
        assert told == [(one.device, one.start, one.end, one.revision, one.kind) for one in said]
        for result, one in zip(output.results, said, strict=True):
            assert result.count == len(one.values)
            value = one.values and oracle.expected_value(
                rule.aggregation_function, one.values, ddof=rule.ddof, percentile=rule.percentile,
                span_s=(one.end - one.start) / 1000,
            )  # fmt: skip
            assert result.value == (pytest.approx(value, rel=1e-9, abs=1e-6) if isinstance(value, float) else None)
    assert engine.counters["r"].late_dropped == number_late == late


def expect(rule: AggregationRule, history: list[Step]) -> tuple[list[list[SaidOfSession]], int]:
    if rule.window_config.window_type == "session":
        return session_oracle.run(rule, history)
    told, late = oracle.run(rule, history)
    size = rule.window_config.size_ms
    return [
        [
            SaidOfSession(
                one.device, one.start, one.start + size, one.revision, "final" if one.revision == 1 else "late_update",
                one.values,
            )
            for one in said
        ]
        for said in told
    ], late  # fmt: skip


@pytest.mark.prove
@settings(max_examples=rounds(80, 1600))
@given(rule=rules(), history=histories(), data=st.data())
def test_a_restart_changes_nothing(rule: AggregationRule, history: list[Step], data: st.DataObject) -> None:
    steady = Feed(make_engine(rule))
    restarted = Feed(make_engine(rule))
    for step in history:
        if data.draw(st.booleans()):
            restarted.engine = reborn(restarted.engine, [rule], step.clock_ms)
        assert whole(restarted.step(step).results) == whole(steady.step(step).results)


@pytest.mark.prove
@settings(max_examples=rounds(80, 1600))
@given(rule=rules(), history=histories(), fewest=st.sampled_from([1, 10**9]), data=st.data())
def test_changes_added_up_are_the_whole_state(
    rule: AggregationRule, history: list[Step], fewest: int, data: st.DataObject
) -> None:
    feed = Feed(make_engine(rule, fewest_columns=fewest))
    written = {number: StateLines() for number in range(3)}
    for step in [*history, None]:
        if step is None or data.draw(st.booleans()):
            for _, number in feed.engine.take_changed():
                written[number].apply(StateLines.encode(feed.engine.take_changes(TOPIC, number)))
                whole_state = StateLines.encode(feed.engine.snapshot(TOPIC, number)).to_snapshot()
                assert _by_group(written[number].to_snapshot()) == _by_group(whole_state)
        if step is not None:
            if data.draw(st.integers(0, 9)) == 0:
                feed.engine.remove_rule(rule.rule_id)
                feed.engine.add_rule(rule, step.clock_ms)
            feed.step(step)


def _by_group(snapshot: dict[str, Any]) -> dict[str, Any]:
    for rule in snapshot["rules"].values():
        rule["groups"] = {tuple(names): [*rest, sorted(parts)] for names, *rest, parts in rule["groups"]}
    return snapshot


@pytest.mark.prove
@settings(max_examples=rounds(80, 1600))
@given(rule=rules(), history=histories(), data=st.data())
def test_how_rows_are_cut_into_messages_changes_nothing(
    rule: AggregationRule, history: list[Step], data: st.DataObject
) -> None:
    single = Feed(make_engine(rule))
    chunked = Feed(make_engine(rule))
    one_by_one = [result for step in history for result in single.step(step).results]
    in_chunks: list[WindowResult] = []
    waiting: list[Step] = []
    for step in [*history, Step(history[-1].clock_ms if history else 0)]:
        alike = waiting and (waiting[0].partition, waiting[0].clock_ms) == (step.partition, step.clock_ms)
        if waiting and not (alike and data.draw(st.booleans())):
            in_chunks += chunked.message(waiting).results
            waiting = []
        if step.partition is None:
            in_chunks += chunked.step(step).results
        else:
            waiting.append(step)
    one_by_one += single.step(Step(history[-1].clock_ms if history else 0)).results
    assert whole(in_chunks) == whole(one_by_one)


@pytest.mark.prove
@settings(max_examples=rounds(80, 1600))
@given(rule=rules(), history=histories(), data=st.data())
def test_reading_again_after_a_crash_ends_in_the_same_results(
    rule: AggregationRule, history: list[Step], data: st.DataObject
) -> None:
    """What was said beyond the last snapshot is said again, word for word."""
    rows = [step for step in history if step.partition is not None]
    saved_at = data.draw(st.integers(0, len(rows)))
    crashed_at = data.draw(st.integers(saved_at, len(rows)))
    feed = Feed(make_engine(rule))
    for step in rows[:saved_at]:
        feed.step(step)
    survivor = Feed(reborn(feed.engine, [rule], 0))
    survivor._offsets = dict(feed._offsets)
    before = [result for step in rows[saved_at:crashed_at] for result in feed.step(step).results]
    again = [result for step in rows[saved_at:crashed_at] for result in survivor.step(step).results]
    assert whole(again) == whole(before)
    assert [whole(survivor.step(step).results) for step in rows[crashed_at:]] == [
        whole(feed.step(step).results) for step in rows[crashed_at:]
    ]


@pytest.mark.prove
@settings(max_examples=rounds(100, 2000))
@given(rule=rules(), history=histories(max_size=12))
def test_messages_read_twice_count_once(rule: AggregationRule, history: list[Step]) -> None:
    once, twice = make_engine(rule), make_engine(rule)
    steady, repeated = Feed(once), Feed(twice)
    rows = 0
    for step in history:
        expected = whole(steady.step(step).results)
        offsets = dict(repeated._offsets)
        assert whole(repeated.step(step).results) == expected
        if step.partition is not None:
            repeated._offsets = offsets
            assert not repeated.step(step).results
            rows += 1
    assert twice.duplicates == rows
    assert [twice.snapshot("in", number) for number in range(3)] == [once.snapshot("in", number) for number in range(3)]
