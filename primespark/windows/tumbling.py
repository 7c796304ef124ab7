"""Tumbling windows of one rule: from rows to results; pure, the clock is given."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from primespark.windows.aggregates import Aggregate, Position
from primespark.windows.records import Batch, Counters, Row, event_time_ms, group_of, number_of
from primespark.windows.results import ResultKind, WindowResult
from primespark.windows.rules import AggregationRule
from primespark.windows.watermark import NEVER, KeyWatermark, PartitionWatermarks

_FOREVER = 2**63
_Group = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LateRecord:
    """A row that came after its window was forgotten."""

    rule: AggregationRule
    batch: Batch
    index: int


@dataclass(slots=True)
class _Window:
    aggregate: Aggregate
    revision: int = 0


@dataclass(slots=True)
class _Windows:
    """The open and fired windows of one group, by start; nothing happens to them before `due`."""

    by_start: dict[int, _Window]
    watermark: KeyWatermark
    due: int = _FOREVER


class TumblingRule:
    """State and behaviour of one tumbling rule over the partitions at hand."""

    def __init__(self, rule: AggregationRule) -> None:
        self.rule = rule
        self.counters = Counters()
        self.changed: set[int] = set()
        config = rule.window_config
        self._size = config.size_ms
        self._offset = config.offset_ms
        self._lateness = config.allowed_lateness_ms
        self._max_future = config.max_future_ms
        self._by_key = config.watermark_scope == "key"
        self._shared = PartitionWatermarks(config.max_out_of_orderness_ms, config.idle_timeout_ms)
        self._partitions: dict[int, dict[_Group, _Windows]] = {}

    @property
    def fingerprint(self) -> str:
        """Digest of the definition; state written under another is not taken up."""
        return hashlib.sha256(self.rule.model_dump_json().encode()).hexdigest()

    def assign(self, partition: int, clock_ms: int) -> None:
        """Start a partition without history."""
        self._partitions[partition] = {}
        self._shared.assign(partition, clock_ms)

    def revoke(self, partition: int) -> None:
        """Forget a partition and all its windows."""
        self._partitions.pop(partition, None)
        self._shared.revoke(partition)
        self.changed.discard(partition)

    def add(self, row: Row, batch: Batch, index: int, clock_ms: int) -> tuple[list[WindowResult], LateRecord | None]:
        """Take in one row; what fires, ordered by (end, start, group), and the row itself if it is too late."""
        record = self._read(row, batch.at_ms)
        if record is None:
            return [], None
        event_ms, group, value = record
        partition = batch.partition
        self.changed.add(partition)
        windows = self._windows(partition, group)
        start = (event_ms - self._offset) // self._size * self._size + self._offset
        late = None
        fired = []
        if self._lateness is not None and self._watermark(partition, windows) >= start + self._size + self._lateness:
            self.counters.late_dropped += 1
            late = LateRecord(self.rule, batch, index)
        else:
            window = self._add_to_window(windows, start, value, (event_ms, batch.offset, index))
            if window.revision:
                fired.append(self._result(group, start, window))
        fired.extend(self._advance(partition, group, windows, event_ms, clock_ms))
        fired.sort(key=_firing_order)
        return fired, late

    def tick(self, clock_ms: int) -> list[WindowResult]:
        """Let time pass, by which partitions become idle; what fires, ordered by (end, start, group)."""
        if self._by_key or not self._shared.advance(clock_ms):
            return []
        fired = list(self._fire_partitions())
        fired.sort(key=_firing_order)
        return fired

    def snapshot(self, partition: int) -> dict[str, Any]:
        """The state of one partition as JSON values."""
        groups = [
            [
                list(group),
                windows.watermark.value,
                [[start, window.revision, *window.aggregate.to_state()] for start, window in windows.by_start.items()],
            ]
            for group, windows in self._partitions[partition].items()
        ]
        return {"fingerprint": self.fingerprint, "watermark": self._shared.state_of(partition), "groups": groups}

    def restore(self, partition: int, state: Mapping[str, Any], active_at_ms: int | None) -> None:
        """Go on from what `snapshot` returned; `active_at_ms` restarts the partition's idle time."""
        self._shared.restore(partition, state["watermark"], active_at_ms)
        groups: dict[_Group, _Windows] = {}
        for names, watermark, saved in state["groups"]:
            by_start = {entry[0]: _Window(Aggregate.from_state(entry[2:]), entry[1]) for entry in saved}
            windows = _Windows(by_start, self._new_watermark(watermark))
            windows.due = min((self._due(start, window) for start, window in by_start.items()), default=_FOREVER)
            groups[tuple(names)] = windows
        self._partitions[partition] = groups

    def _read(self, row: Row, at_ms: int | None) -> tuple[int, _Group, float] | None:
        event_ms = event_time_ms(row)
        if event_ms is None:
            self.counters.invalid += 1
            return None
        if self._max_future is not None and at_ms is not None and event_ms > at_ms + self._max_future:
            self.counters.future += 1
            return None
        group = group_of(row, self.rule.group_by)
        if group is None:
            self.counters.ungrouped += 1
            return None
        value = number_of(row, self.rule.value_field)
        if value is None:
            self.counters.invalid += 1
            return None
        return event_ms, group, value

    def _windows(self, partition: int, group: _Group) -> _Windows:
        groups = self._partitions[partition]
        windows = groups.get(group)
        if windows is None:
            windows = groups[group] = _Windows({}, self._new_watermark(NEVER))
        return windows

    def _new_watermark(self, value: int) -> KeyWatermark:
        return KeyWatermark(self.rule.window_config.max_out_of_orderness_ms, value)

    def _watermark(self, partition: int, windows: _Windows) -> int:
        return windows.watermark.value if self._by_key else self._shared.of(partition)

    def _add_to_window(self, windows: _Windows, start: int, value: float, position: Position) -> _Window:
        window = windows.by_start.get(start)
        if window is None:
            window = windows.by_start[start] = _Window(Aggregate())
            windows.due = min(windows.due, start + self._size)
        window.aggregate.add(value, position)
        return window

    def _advance(
        self, partition: int, group: _Group, windows: _Windows, event_ms: int, clock_ms: int
    ) -> Iterator[WindowResult]:
        if self._by_key:
            windows.watermark.observe(event_ms)
        elif self._shared.observe(partition, event_ms, clock_ms):
            return self._fire_partitions()
        return self._fire(partition, group, windows)

    def _fire_partitions(self) -> Iterator[WindowResult]:
        for partition, groups in self._partitions.items():
            self.changed.add(partition)
            for group, windows in list(groups.items()):
                yield from self._fire(partition, group, windows)
                if not windows.by_start:
                    # The watermark is the partition's; by key it would have to be remembered.
                    del groups[group]

    def _fire(self, partition: int, group: _Group, windows: _Windows) -> Iterator[WindowResult]:
        watermark = self._watermark(partition, windows)
        if watermark < windows.due:
            return
        for start in sorted(windows.by_start):
            window = windows.by_start[start]
            end = start + self._size
            if not window.revision and watermark >= end:
                yield self._result(group, start, window)
            if self._lateness is not None and watermark >= end + self._lateness:
                del windows.by_start[start]
        windows.due = min((self._due(start, window) for start, window in windows.by_start.items()), default=_FOREVER)

    def _due(self, start: int, window: _Window) -> int:
        """The watermark at which the window next fires or is forgotten."""
        end = start + self._size
        if not window.revision:
            return end
        return _FOREVER if self._lateness is None else end + self._lateness

    def _result(self, group: _Group, start: int, window: _Window) -> WindowResult:
        window.revision += 1
        return WindowResult(
            rule_id=self.rule.rule_id,
            group=group,
            window_start=start,
            window_end=start + self._size,
            value=window.aggregate.value(self.rule.aggregation_function, self.rule.ddof),
            count=window.aggregate.count,
            kind=ResultKind.FINAL if window.revision == 1 else ResultKind.LATE_UPDATE,
            revision=window.revision,
        )


def _firing_order(result: WindowResult) -> tuple[int, int, _Group]:
    return result.window_end, result.window_start, result.group
