"""Rules that come and go while records flow: the others do not notice, and who comes starts empty."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from primespark.windows.results import WindowResult
from primespark.windows.rules import AggregationRule
from tests.helpers import rounds
from tests.unit.windows.histories import TOPIC, Feed, histories, make_engine, make_rule, reborn, rules
from tests.unit.windows.oracle import PARTITIONS, Step

STEADY = make_rule({"allowed_lateness_seconds": 5}, rule_id="steady")


def of_rule(results: list[WindowResult], rule_id: str) -> list[WindowResult]:
    return [result for result in results if result.rule_id == rule_id]


def play(feed: Feed, history: list[Step]) -> list[WindowResult]:
    return [result for step in history for result in feed.step(step).results]


@settings(max_examples=rounds(60, 1500))
@given(rule=rules(), before=histories(), during=histories(), after=histories())
def test_a_rule_says_from_its_beginning_on_what_it_says_alone(
    rule: AggregationRule, before: list[Step], during: list[Step], after: list[Step]
) -> None:
    feed = Feed(make_engine(STEADY))
    said = play(feed, before)
    clock_ms = before[-1].clock_ms if before else 0
    feed.engine.add_rule(rule, clock_ms)
    with_it = play(feed, during)
    feed.engine.remove_rule("r")
    said += [*with_it, *play(feed, after)]
    assert of_rule(with_it, "r") == play(Feed(make_engine(rule, clock_ms=clock_ms)), during)
    assert of_rule(said, "steady") == play(Feed(make_engine(STEADY)), [*before, *during, *after])
    assert of_rule(said, "r") == of_rule(with_it, "r")


@given(rule=rules(), history=histories())
@settings(max_examples=rounds(30, 500))
def test_a_rule_that_comes_back_has_none_of_its_windows_even_after_a_restart(
    rule: AggregationRule, history: list[Step]
) -> None:
    feed = Feed(make_engine(rule))
    play(feed, history)
    feed.engine.take_changed()
    clock_ms = history[-1].clock_ms if history else 0
    feed.engine.remove_rule("r")
    assert feed.engine.take_changed() == [(TOPIC, partition) for partition in PARTITIONS]
    successor = reborn(feed.engine, [rule], clock_ms)
    again = make_engine(rule, clock_ms=clock_ms)
    for partition in PARTITIONS:
        assert successor.snapshot(TOPIC, partition)["rules"] == again.snapshot(TOPIC, partition)["rules"]


@given(data=st.data())
@settings(max_examples=rounds(30, 300))
def test_the_topic_of_a_rule_that_went_is_passed_not_kept(data: st.DataObject) -> None:
    history = data.draw(histories())
    feed = Feed(make_engine(make_rule()))
    feed.engine.remove_rule("r")
    assert play(feed, history) == []
    sent = [sum(step.partition == partition for step in history) for partition in PARTITIONS]
    assert [feed.engine.next_offset(TOPIC, partition) for partition in PARTITIONS] == sent
