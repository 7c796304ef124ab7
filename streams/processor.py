"""Windows and a rule without broker, store or worker, as the specification has them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from primespark.core.clock import wall_clock_ms
from primespark.windows.engine import WindowEngine
from primespark.windows.panes import PaneShape
from primespark.windows.records import Batch
from primespark.windows.results import WindowResult
from primespark.windows.rules import AggregationRule, WindowConfig, WindowType

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class SlidingWindowManager:
    """Windows of `size_seconds` that begin every `slide_seconds`, counted from the epoch."""

    def __init__(self, size_seconds: float = 60.0, slide_seconds: float = 30.0) -> None:
        config = WindowConfig(
            window_type=WindowType.SLIDING, size_seconds=size_seconds, slide_seconds=slide_seconds
        )  # fmt: skip
        self._shape = PaneShape(config.size_ms, config.slide_ms, config.offset_ms, config.allowed_lateness_ms)

    def get_windows(self, timestamp: datetime) -> list[tuple[datetime, datetime]]:
        """The windows `[start, end)` that a moment, with its time zone, lies in; the earliest first."""
        starts = self._shape.windows_of((timestamp - _EPOCH) // _MILLISECOND)
        return [(_EPOCH + start * _MILLISECOND, _EPOCH + (start + self._shape.size) * _MILLISECOND) for start in starts]


class TumblingWindowManager(SlidingWindowManager):
    """Windows of `size_seconds` that follow one another: each moment lies in one."""

    def __init__(self, size_seconds: float = 60.0) -> None:
        super().__init__(size_seconds, size_seconds)


class StreamProcessor:
    """One rule over records of this process: no broker, no store, and nothing is kept."""

    def __init__(self, rule: AggregationRule) -> None:
        self.rule = rule
        self._engine = WindowEngine([rule.model_copy(update={"enabled": True})])
        self._engine.assign(rule.source_topic, 0, wall_clock_ms())

    def process(self, record: Mapping[str, Any]) -> list[WindowResult]:
        """Take in a record, whose `ts` is its time in epoch milliseconds; what windows say now."""
        offset = self._engine.next_offset(self.rule.source_topic, 0)
        now_ms = wall_clock_ms()
        return self._engine.process(Batch(self.rule.source_topic, 0, offset, [record], at_ms=now_ms), now_ms).results
