"""Rules and histories for the laws, and running them through the engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from primespark.windows.aggregates import AggregationFunction
from primespark.windows.engine import FEWEST_COLUMNS, Output, WindowEngine
from primespark.windows.records import Batch
from primespark.windows.rules import AggregationRule, parse_rules
from tests.unit.windows.oracle import PARTITIONS, Step

TOPIC = "in"
# A message is keyed by its device, so a device's rows lie in one partition.
DEVICES = {"a": 0, "b": 1, "c": 2, "d": 0}


def make_rule(window: dict[str, Any] | None = None, **fields: Any) -> AggregationRule:
    given = window or {}
    shape = {} if "session_gap_seconds" in given else {"size_seconds": 10}
    config = {**shape, "max_out_of_orderness_seconds": 0, "max_future_seconds": None, **given}
    values = {
        "rule_id": "r", "source_topic": TOPIC, "target_topic": "out", "aggregation_function": "sum",
        "value_field": "cpu_percent", "window_config": config, **fields,
    }  # fmt: skip
    return parse_rules([values], "test")[0]


def make_engine(*rules: AggregationRule, clock_ms: int = 0, fewest_columns: int = FEWEST_COLUMNS) -> WindowEngine:
    engine = WindowEngine(rules, fewest_columns=fewest_columns)
    for partition in PARTITIONS:
        engine.assign(TOPIC, partition, clock_ms)
    return engine


def reborn(engine: WindowEngine, rules: Sequence[AggregationRule], clock_ms: int) -> WindowEngine:
    """Another engine that goes on from the snapshots of this one, as JSON carries them."""
    successor = WindowEngine(rules)
    for topic, partition in engine.partitions:
        successor.restore(json.loads(json.dumps(engine.snapshot(topic, partition))), clock_ms)
    return successor


class Feed:
    """Gives steps to an engine as messages, counting offsets."""

    def __init__(self, engine: WindowEngine) -> None:
        self.engine = engine
        self._offsets = dict.fromkeys(PARTITIONS, 0)

    def step(self, step: Step) -> Output:
        return self.engine.tick(step.clock_ms) if step.partition is None else self.message([step])

    def message(self, steps: Sequence[Step]) -> Output:
        """Steps of one partition and one moment as one message."""
        partition, clock_ms = steps[0].partition, steps[0].clock_ms
        assert partition is not None
        batch = Batch(TOPIC, partition, self._offsets[partition], [step.row for step in steps], at_ms=clock_ms)
        self._offsets[partition] += 1
        return self.engine.process(batch, clock_ms)


_seconds = st.sampled_from([0.0, 0.001, 0.5, 2.0, 10.0])


@st.composite
def rules(draw: st.DrawFn) -> AggregationRule:
    """A rule of any window type with every bound drawn."""
    window_type = draw(st.sampled_from(["tumbling", "sliding", "session"]))
    shape: dict[str, Any] = {"offset_seconds": draw(st.sampled_from([0.0, 0.3, -0.7]))}
    if window_type == "tumbling":
        shape["size_seconds"] = draw(st.sampled_from([1.0, 2.5, 10.0]))
    elif window_type == "sliding":
        shape["size_seconds"], shape["slide_seconds"] = draw(st.sampled_from([(10.0, 2.5), (5.0, 2.0), (1.0, 1.0)]))
    else:
        shape = {"session_gap_seconds": draw(st.sampled_from([0.001, 1.0, 2.5, 7.0]))}
    window = {
        "window_type": window_type, **shape,
        "max_out_of_orderness_seconds": draw(_seconds),
        "allowed_lateness_seconds": draw(st.none() | _seconds),
        "idle_timeout_seconds": draw(st.none() | st.sampled_from([0.5, 5.0])),
        "max_future_seconds": draw(st.none() | st.sampled_from([0.0, 20.0])),
        "watermark_scope": draw(st.sampled_from(["key", "partition"])),
    }  # fmt: skip
    function = draw(st.sampled_from([*AggregationFunction]))
    percentile = draw(st.sampled_from([0.0, 50.0, 95.0, 100.0])) if function == "percentile" else None
    return make_rule(window, aggregation_function=function, ddof=draw(st.integers(0, 1)), percentile=percentile)


@st.composite
def histories(draw: st.DrawFn, max_size: int = 18) -> list[Step]:
    """Rows and pauses with a clock that never goes back; event times around it, negative ones too."""
    clock_ms = 0
    steps = []
    for _ in range(draw(st.integers(0, max_size))):
        clock_ms += draw(st.sampled_from([0, 0, 0, 1, 400, 600, 3000, 6000]))
        if draw(st.integers(0, 5)) == 0:
            steps.append(Step(clock_ms))
            continue
        device = draw(st.sampled_from(sorted(DEVICES)))
        moment = draw(st.integers(-6000, 40_000) | st.sampled_from([-700, 0, 300, 999, 1000, 10_000, 20_000]))
        value = draw(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0]))
        steps.append(Step(clock_ms, DEVICES[device], device, moment, value))
    return steps
