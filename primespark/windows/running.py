"""One rule at work, whatever its windows: from rows to results; pure, the clock is given."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from primespark.windows.aggregates import AggregationFunction
from primespark.windows.firing import Fired, GroupWindows
from primespark.windows.panes import PaneShape, PaneWindows
from primespark.windows.records import Batch, Counters, Row, event_time_ms, group_of, number_of
from primespark.windows.results import WindowResult
from primespark.windows.rules import AggregationRule, WindowType
from primespark.windows.sessions import SessionShape, SessionWindows
from primespark.windows.watermark import NEVER, KeyWatermark, PartitionWatermarks

# Of what `snapshot` writes for a rule; what an earlier one wrote is not taken up.
_STATE_VERSION = 2
_Group = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LateRecord:
    """A row that came after a window it belongs to was forgotten."""

    rule: AggregationRule
    batch: Batch
    index: int


@dataclass(slots=True)
class _GroupState:
    windows: GroupWindows
    watermark: KeyWatermark


class RunningRule:
    """State and behaviour of one rule over the partitions at hand.

    Args:
        rule: The rule.
        manual_watermark: Whether `advance` alone moves watermarks.
        merge_partitions: Whether a group is one over all partitions: it is kept with the first of them.
    """

    def __init__(
        self, rule: AggregationRule, *, manual_watermark: bool = False, merge_partitions: bool = False
    ) -> None:
        self.rule = rule
        self._is_manual = manual_watermark
        self._is_merged = merge_partitions
        self._least_watermark = NEVER
        self.counters = Counters()
        self.changed: set[int] = set()
        config = rule.window_config
        self._conditions = rule.conditions
        self._shape = _shape(rule)
        self._max_future = config.max_future_ms
        self._by_key = config.watermark_scope == "key"
        self._shared = PartitionWatermarks(config.max_out_of_orderness_ms, config.idle_timeout_ms)
        self._partitions: dict[int, dict[_Group, _GroupState]] = {}

    @property
    def fingerprint(self) -> str:
        """Digest of the definition; state written under another is not taken up."""
        definition = self.rule.model_dump_json(exclude_defaults=True)
        return hashlib.sha256(f"{_STATE_VERSION} {definition}".encode()).hexdigest()

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
        partition = min(self._partitions) if self._is_merged else batch.partition
        self.changed.add(partition)
        state = self._state(partition, group)
        said, is_late = state.windows.add(
            event_ms, value, (event_ms, batch.offset, index), self._watermark(partition, state)
        )
        late = None
        if is_late:
            self.counters.late_dropped += 1
            late = LateRecord(self.rule, batch, index)
        fired = list(self._results(group, said)) if said else []
        if self._moves_all(batch.partition, event_ms, clock_ms, state):
            fired += self._fire_partitions()
        fired += self._fire(partition, group, state)
        if len(fired) > 1:
            fired.sort(key=_firing_order)
        return fired, late

    def tick(self, clock_ms: int) -> list[WindowResult]:
        """Let time pass, by which partitions become idle; what fires, ordered by (end, start, group)."""
        if self._is_manual or self._by_key or not self._shared.advance(clock_ms):
            return []
        return sorted(self._fire_partitions(), key=_firing_order)

    def advance(self, watermark_ms: int) -> list[WindowResult]:
        """Move all watermarks up to a moment, and those of groups to come; what fires, in the same order."""
        self._least_watermark = max(self._least_watermark, watermark_ms)
        return sorted(self._fire_partitions(), key=_firing_order)

    def snapshot(self, partition: int) -> dict[str, Any]:
        """The state of one partition as JSON values."""
        groups = [
            [list(group), state.watermark.value, state.windows.to_state()]
            for group, state in self._partitions[partition].items()
        ]
        return {"fingerprint": self.fingerprint, "watermark": self._shared.state_of(partition), "groups": groups}

    def restore(self, partition: int, state: Mapping[str, Any], active_at_ms: int | None) -> None:
        """Go on from what `snapshot` returned; `active_at_ms` restarts the partition's idle time."""
        self._shared.restore(partition, state["watermark"], active_at_ms)
        self._partitions[partition] = {
            tuple(names): _GroupState(self._windows(saved), self._new_watermark(watermark))
            for names, watermark, saved in state["groups"]
        }

    def _read(self, row: Row, at_ms: int | None) -> tuple[int, _Group, float] | None:
        if self._conditions and not all(matches(row) for matches in self._conditions):
            self.counters.filtered += 1
            return None
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

    def _state(self, partition: int, group: _Group) -> _GroupState:
        groups = self._partitions[partition]
        state = groups.get(group)
        if state is None:
            state = groups[group] = _GroupState(self._windows(), self._new_watermark(NEVER))
        return state

    def _windows(self, saved: list[Any] | None = None) -> GroupWindows:
        if isinstance(self._shape, SessionShape):
            return SessionWindows(self._shape) if saved is None else SessionWindows.from_state(self._shape, saved)
        return PaneWindows(self._shape) if saved is None else PaneWindows.from_state(self._shape, saved)

    def _new_watermark(self, value: int) -> KeyWatermark:
        return KeyWatermark(self.rule.window_config.max_out_of_orderness_ms, value)

    def _watermark(self, partition: int, state: _GroupState) -> int:
        own = state.watermark.value if self._by_key else self._shared.of(partition)
        return own if own > self._least_watermark else self._least_watermark

    def _moves_all(self, partition: int, event_ms: int, clock_ms: int, state: _GroupState) -> bool:
        """Move the watermark by a record that was added; whether it is that of all groups."""
        if self._is_manual:
            return False
        if self._by_key:
            state.watermark.observe(event_ms)
            return False
        return self._shared.observe(partition, event_ms, clock_ms)

    def _fire_partitions(self) -> Iterator[WindowResult]:
        for partition, groups in self._partitions.items():
            self.changed.add(partition)
            for group, state in list(groups.items()):
                yield from self._fire(partition, group, state)
                if state.windows.is_empty() and not self._by_key:
                    # The watermark is the partition's; by key it would have to be remembered.
                    del groups[group]

    def _fire(self, partition: int, group: _Group, state: _GroupState) -> Iterable[WindowResult]:
        watermark = self._watermark(partition, state)
        return self._results(group, state.windows.fire(watermark)) if watermark >= state.windows.due else ()

    def _results(self, group: _Group, fired: Iterable[Fired]) -> Iterator[WindowResult]:
        rule = self.rule
        for one in fired:
            value = None
            if one.aggregate is not None:
                value = one.aggregate.value(
                    rule.aggregation_function, ddof=rule.ddof, percentile=rule.percentile or 0.0,
                    span_s=(one.end - one.start) / 1000,
                )  # fmt: skip
            yield WindowResult(
                rule_id=rule.rule_id, group=group, window_start=one.start, window_end=one.end, value=value,
                count=one.aggregate.count if one.aggregate else 0, kind=one.kind, revision=one.revision,
            )  # fmt: skip


def _shape(rule: AggregationRule) -> PaneShape | SessionShape:
    config = rule.window_config
    with_quantiles = rule.aggregation_function is AggregationFunction.PERCENTILE
    if config.window_type is WindowType.SESSION:
        return SessionShape(config.session_gap_ms, config.allowed_lateness_ms, with_quantiles)
    return PaneShape(
        config.size_ms, config.slide_ms, config.offset_ms, config.allowed_lateness_ms, with_quantiles
    )  # fmt: skip


def _firing_order(result: WindowResult) -> tuple[int, int, _Group]:
    return result.window_end, result.window_start, result.group
