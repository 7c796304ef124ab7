"""What tumbling windows must say, worked out from whole histories in plain Python, without the engine's code.

Slow on purpose: for each step everything is computed anew from all steps before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from primespark.windows.rules import AggregationRule

PARTITIONS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Step:
    """One row, or with `partition` None the mere passing of time."""

    clock_ms: int
    partition: int | None = None
    device: str = ""
    ts: int = 0
    value: float = 0.0

    @property
    def row(self) -> dict[str, object]:
        return {"device_id": self.device, "ts": self.ts, "cpu_percent": self.value}


@dataclass(frozen=True, slots=True)
class Said:
    """One result; the value is left to `expected_value`."""

    device: str
    start: int
    count: int
    revision: int
    values: tuple[float, ...]


def run(rule: AggregationRule, steps: Sequence[Step]) -> tuple[list[list[Said]], int]:
    """What each step says, and how many rows come too late."""
    config = rule.window_config
    size, offset, lateness = config.size_ms, config.offset_ms, config.allowed_lateness_ms
    told: list[list[Said]] = []
    late: set[int] = set()
    future = {
        number
        for number, step in enumerate(steps)
        if config.max_future_ms is not None and step.ts > step.clock_ms + config.max_future_ms
    }
    for number, step in enumerate(steps):
        is_row = step.partition is not None and number not in future
        start = math.floor((step.ts - offset) / size) * size + offset
        if is_row and lateness is not None:
            before = _watermark(rule, steps, future, number - 1, step.device)
            if before is not None and before >= start + size + lateness:
                late.add(number)
        told.append(_told(rule, steps, late | future, future, number))
    return told, len(late)


def expected_value(function: str, values: Sequence[float], ddof: int = 1) -> float | None:
    """The aggregate in exact arithmetic, rounded once; of values in the order of event time."""
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / len(exact)
    spread = sum((value - mean) ** 2 for value in exact)
    match function:
        case "count":
            return float(len(values))
        case "sum":
            return float(sum(exact))
        case "avg":
            return float(mean)
        case "min":
            return min(values)
        case "max":
            return max(values)
        case "first":
            return values[0]
        case "last":
            return values[-1]
    if len(values) <= ddof:
        return None
    variance = float(spread / (len(values) - ddof))
    return variance if function == "variance" else math.sqrt(variance)


def _watermark(rule: AggregationRule, steps: Sequence[Step], future: set[int], last: int, device: str) -> int | None:
    """How far time has come for the device after step number `last`."""
    config = rule.window_config
    seen = [(number, step) for number, step in enumerate(steps[: last + 1]) if number not in future]
    if config.watermark_scope == "key":
        times = [step.ts for _, step in seen if step.partition is not None and step.device == device]
        return max(times) - config.max_out_of_orderness_ms if times else None
    best: int | None = None
    for upto in range(last + 1):
        reached = _common(rule, [step for number, step in seen if number <= upto], steps[upto].clock_ms, upto in future)
        if reached is not None and (best is None or reached > best):
            best = reached
    return best


def _common(rule: AggregationRule, steps: Sequence[Step], clock_ms: int, skipped: bool) -> int | None:
    if skipped:
        return None
    config = rule.window_config
    reached: list[float] = []
    for partition in PARTITIONS:
        own = [step for step in steps if step.partition == partition]
        active_ms = own[-1].clock_ms if own else 0
        if config.idle_timeout_ms is not None and clock_ms - active_ms >= config.idle_timeout_ms:
            continue
        reached.append(max(step.ts for step in own) - config.max_out_of_orderness_ms if own else -math.inf)
    lowest = min(reached, default=-math.inf)
    return None if lowest == -math.inf else int(lowest)


def _told(rule: AggregationRule, steps: Sequence[Step], skipped: set[int], future: set[int], now: int) -> list[Said]:
    """What step `now` makes the windows say."""
    config = rule.window_config
    size, offset = config.size_ms, config.offset_ms
    members: dict[tuple[str, int], list[int]] = {}
    for number, step in enumerate(steps[: now + 1]):
        if step.partition is not None and number not in skipped:
            start = math.floor((step.ts - offset) / size) * size + offset
            members.setdefault((step.device, start), []).append(number)
    said = []
    for (device, start), numbers in members.items():
        revision = 0
        last_told = -1
        for upto in range(numbers[0], now + 1):
            reached = _watermark(rule, steps, future, upto, device)
            is_over = reached is not None and reached >= start + size
            if (is_over and revision == 0) or (revision > 0 and upto in numbers):
                revision += 1
                last_told = upto
        if last_told == now:
            by_time = sorted(numbers, key=lambda number: (steps[number].ts, number))
            values = tuple(steps[number].value for number in by_time)
            said.append(Said(device, start, len(numbers), revision, values))
    return sorted(said, key=lambda one: (one.start + size, one.start, (one.device,)))
