"""What aligned windows must say, worked out from whole histories in plain Python, without the engine's code.

Slow on purpose: for each step everything is computed anew from all steps before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

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
    lateness = config.allowed_lateness_ms
    told: list[list[Said]] = []
    late: set[tuple[int, int]] = set()
    future = {
        number
        for number, step in enumerate(steps)
        if config.max_future_ms is not None and step.ts > step.clock_ms + config.max_future_ms
    }
    for number, step in enumerate(steps):
        is_row = step.partition is not None and number not in future
        if is_row and lateness is not None:
            before = watermark(rule, steps, future, number - 1, step.device)
            for start in _starts(rule, step.ts):
                if before is not None and before >= start + config.size_ms + lateness:
                    late.add((number, start))
        told.append(_told(rule, steps, late, future, number))
    return told, len({number for number, _ in late})


def _starts(rule: AggregationRule, moment: int) -> list[int]:
    """Where the windows begin that a moment lies in."""
    config = rule.window_config
    slide, offset = config.slide_ms, config.offset_ms
    last = math.floor((moment - offset) / slide)
    candidates = [number * slide + offset for number in range(last - config.size_ms // slide - 2, last + 2)]
    return [start for start in candidates if start <= moment < start + config.size_ms]


def expected_value(
    function: str, values: Sequence[float], *, ddof: int = 1, percentile: float | None = None, span_s: float = 1
) -> float | None:
    """The aggregate in exact arithmetic, rounded once; of values in the order of event time."""
    if percentile is not None:
        return float(np.percentile(values, percentile))
    if function in _SIMPLE:
        return _SIMPLE[function](values)
    if function in ("count", "rate"):
        return len(values) / (span_s if function == "rate" else 1)
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / len(exact)
    if function in ("sum", "avg"):
        return float(sum(exact) if function == "sum" else mean)
    if len(values) <= ddof:
        return None
    variance = float(sum((value - mean) ** 2 for value in exact) / (len(values) - ddof))
    return variance if function == "variance" else math.sqrt(variance)


_SIMPLE: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min, "max": max, "first": lambda values: values[0], "last": lambda values: values[-1],
}  # fmt: skip


def watermark(rule: AggregationRule, steps: Sequence[Step], future: set[int], last: int, device: str) -> int | None:
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


def _told(
    rule: AggregationRule, steps: Sequence[Step], late: set[tuple[int, int]], future: set[int], now: int
) -> list[Said]:
    """What step `now` makes the windows say."""
    size = rule.window_config.size_ms
    members: dict[tuple[str, int], list[int]] = {}
    for number, step in enumerate(steps[: now + 1]):
        if step.partition is not None and number not in future:
            for start in _starts(rule, step.ts):
                if (number, start) not in late:
                    members.setdefault((step.device, start), []).append(number)
    said = []
    for (device, start), numbers in members.items():
        revision = 0
        last_told = -1
        for upto in range(numbers[0], now + 1):
            reached = watermark(rule, steps, future, upto, device)
            is_over = reached is not None and reached >= start + size
            if (is_over and revision == 0) or (revision > 0 and upto in numbers):
                revision += 1
                last_told = upto
        if last_told == now:
            by_time = sorted(numbers, key=lambda number: (steps[number].ts, number))
            values = tuple(steps[number].value for number in by_time)
            said.append(Said(device, start, len(numbers), revision, values))
    return sorted(said, key=lambda one: (one.start + size, one.start, (one.device,)))
