"""A rule over what came lately: what it would have said, within bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from primespark.windows.replay import Record, Replay
from primespark.windows.rules import AggregationRule

MAX_RESULTS = 1000


def try_rule(
    rule: AggregationRule, records: Iterable[Record], partitions: int, may_go_on: Callable[[], bool]
) -> dict[str, Any]:
    """What the rule says of the records, enabled or not; windows that are open at their end say nothing.

    Args:
        rule: The rule.
        records: In the order in which they were read.
        partitions: How many there are: one that is silent holds the watermark back until it is idle.
        may_go_on: Asked before each record; once it says no, that is the end.

    Returns:
        `records` that it saw, `results`, `counters` of what it skipped, and `complete`: neither results nor time ended
        it before.
    """
    replay = Replay([rule.model_copy(update={"enabled": True})], range(partitions))
    results: list[dict[str, Any]] = []
    seen, complete = 0, True
    for record in records:
        if len(results) >= MAX_RESULTS or not may_go_on():
            complete = False
            break
        results.extend(replay.play(record))
        seen += 1
    return {
        "records": seen, "complete": complete and len(results) <= MAX_RESULTS, "results": results[:MAX_RESULTS],
        "counters": replay.totals()["counters"],
    }  # fmt: skip
