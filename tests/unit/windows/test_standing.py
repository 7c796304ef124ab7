"""How a rule stands: what is still to fire, and the watermark that it waits for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from primespark.windows.records import LATEST_MS
from primespark.windows.rules import AggregationRule
from tests.helpers import rounds
from tests.unit.windows.histories import DEVICES, Feed, histories, make_engine, make_rule, rules
from tests.unit.windows.oracle import Step


@settings(max_examples=rounds(150, 3000))
@given(rule=rules(), history=histories())
def test_the_open_windows_are_those_that_fire_first_in_the_end(rule: AggregationRule, history: list[Step]) -> None:
    engine = make_engine(rule)
    feed = Feed(engine)
    for step in history:
        feed.step(step)
    _, is_open = engine.standing()["r"]
    fired = [result for result in engine.advance(LATEST_MS).results if result.revision == 1]
    assert is_open == len(fired)
    assert engine.standing()["r"][1] == 0


@pytest.mark.parametrize(("scope", "expected_ms"), [("partition", 47_000), ("key", 99_000)])
def test_the_watermark_is_that_which_results_wait_for(scope: str, expected_ms: int) -> None:
    engine = make_engine(make_rule({"watermark_scope": scope, "max_out_of_orderness_seconds": 1}))
    feed = Feed(engine)
    assert engine.standing() == {"r": (None, 0)}
    for device, ts in (("a", 50_000), ("b", 100_000), ("c", 48_000)):
        feed.step(Step(0, DEVICES[device], device, ts, 1.0))
    assert engine.standing()["r"][0] == expected_ms
