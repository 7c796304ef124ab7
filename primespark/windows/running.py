"""One rule at work, whatever its windows: from rows to results; pure, the clock is given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from typing import TYPE_CHECKING, Any

from primespark.windows.firing import Fired
from primespark.windows.groups import (
    GroupState,
    TouchedGroups,
    fingerprint_of,
    new_windows,
    panes_of,
    saved_windows,
    shape_of,
    to_state,
)  # fmt: skip
from primespark.windows.panes import PaneShape
from primespark.windows.reading import Group, RuleReader
from primespark.windows.records import Batch, Counters, Row
from primespark.windows.results import ChunkOutput, LateRecord, WindowResult, firing_order
from primespark.windows.rules import AggregationRule
from primespark.windows.watermark import NEVER, KeyWatermark, PartitionWatermarks

if TYPE_CHECKING:
    from primespark.windows.columns import Chunk, Integers
    from primespark.windows.reading import Records
    from primespark.windows.vectorised import SortedRecords, Timeline


class RunningRule:
    """State and behaviour of one rule over the partitions at hand.

    Args:
        rule: The rule.
        manual_watermark: Whether `advance` alone moves watermarks.
        merge_partitions: Whether a group is one over all partitions: it is kept with the first of them.
        counters: Where what is left out is counted.
    """

    def __init__(
        self, rule: AggregationRule, *, manual_watermark: bool = False, merge_partitions: bool = False,
        counters: Counters | None = None,
    ) -> None:  # fmt: skip
        self.rule = rule
        self.topic = rule.source_topic
        self._is_manual = manual_watermark
        self._is_merged = merge_partitions
        self.fingerprint = fingerprint_of(rule)
        self._least_watermark = NEVER
        self.counters = Counters() if counters is None else counters
        self._reader = RuleReader(rule, self.counters)
        self.changed: set[int] = set()
        config = rule.window_config
        self._shape = shape_of(rule)
        self._by_key = config.watermark_scope == "key"
        self._shared = PartitionWatermarks(config.max_out_of_orderness_ms, config.idle_timeout_ms)
        self._partitions: dict[int, dict[Group, GroupState]] = {}
        self._touched = TouchedGroups()

    def assign(self, partition: int, clock_ms: int) -> None:
        """Start a partition without history."""
        self._partitions[partition] = {}
        self._touched.begin(partition)
        self._shared.assign(partition, clock_ms)

    def revoke(self, partition: int) -> None:
        """Forget a partition and all its windows."""
        self._partitions.pop(partition, None)
        self._touched.forget(partition)
        self._shared.revoke(partition)
        self.changed.discard(partition)

    def standing(self) -> tuple[int | None, int]:
        """The watermark that results wait for, None before the first record, and how many windows are open.

        By key that is the one furthest ahead, as nobody waits for the group of a device that is switched off.
        """
        groups = [
            (self._watermark(partition, state), state.windows)
            for partition, states in self._partitions.items()
            for state in states.values()
        ]
        watermark = max((own for own, _ in groups), default=NEVER) if self._by_key else self._shared.least()
        return (
            None if watermark == NEVER else watermark, sum(windows.open_at(own) for own, windows in groups)
        )  # fmt: skip

    def add(self, row: Row, batch: Batch, index: int, clock_ms: int) -> tuple[list[WindowResult], LateRecord | None]:
        """Take in one row; what fires, ordered by (end, start, group), and the row itself if it is too late."""
        record = self._reader.read(row, batch.at_ms)
        if record is None:
            return [], None
        fired, is_late = self.add_read(batch.partition, *record, (batch.offset, index), clock_ms)
        return fired, LateRecord.of(self.rule, batch, index) if is_late else None

    def add_chunk(self, chunk: Chunk, clock_ms: int) -> ChunkOutput:
        """Take in many rows: what `add` says of each, with the row it is said at."""
        output = ChunkOutput()
        records = self._reader.read_chunk(chunk)
        if len(records.rows) and not self._add_vectors(chunk, records, clock_ms, output):
            for row, event, value, code in zip(
                records.rows.tolist(), records.events.tolist(), records.values.tolist(), records.codes.tolist(),
                strict=True,
            ):  # fmt: skip
                place = int(chunk.offset[row]), int(chunk.index[row])
                fired, is_late = self.add_read(chunk.partition, event, records.names[code], value, place, clock_ms)
                output.results.extend((row, result) for result in fired)
                if is_late:
                    output.late.append((row, LateRecord.of(self.rule, *chunk.place(row))))
        return output

    def add_read(
        self, partition: int, event_ms: int, group: Group, value: float, place: tuple[int, int], clock_ms: int
    ) -> tuple[list[WindowResult], bool]:
        """Take in what was read of a row at an offset and an index; what fires, and whether the row is too late."""
        home = min(self._partitions) if self._is_merged else partition
        self.changed.add(home)
        state = self._state(home, group)
        said, is_late = state.windows.add(event_ms, value, (event_ms, *place), self._watermark(home, state))
        if is_late:
            self.counters.late_dropped += 1
        fired = list(self._results(group, said)) if said else []
        if self._moves_all(partition, event_ms, clock_ms, state):
            fired += self._fire_partitions()
        fired += self._fire(home, group, state)
        if len(fired) > 1:
            fired.sort(key=firing_order)
        return fired, is_late

    def observe(self, partition: int, event_ms: int, clock_ms: int) -> list[WindowResult]:
        """Take in an event time alone, that of a record which is added elsewhere; what fires, in the same order."""
        if self._is_manual or self._by_key or not self._shared.observe(partition, event_ms, clock_ms):
            return []
        return sorted(self._fire_partitions(), key=firing_order)

    def tick(self, clock_ms: int) -> list[WindowResult]:
        """Let time pass, by which partitions become idle; what fires, ordered by (end, start, group)."""
        if self._is_manual or self._by_key or not self._shared.advance(clock_ms):
            return []
        return sorted(self._fire_partitions(), key=firing_order)

    def advance(self, watermark_ms: int) -> list[WindowResult]:
        """Move all watermarks up to a moment, and those of groups to come; what fires, in the same order."""
        self._least_watermark = max(self._least_watermark, watermark_ms)
        return sorted(self._fire_partitions(), key=firing_order)

    def snapshot(self, partition: int) -> dict[str, Any]:
        """The state of one partition as JSON values."""
        groups = [to_state(group, state) for group, state in self._partitions[partition].items()]
        return {"fingerprint": self.fingerprint, "watermark": self.watermark_of(partition), "groups": groups}

    def take_changes(self, partition: int) -> dict[str, Any]:
        """The same of groups that differ from when this was last called; the cost is proportional to their number."""
        taken = self._touched.take(partition, self._partitions[partition])
        return {"fingerprint": self.fingerprint, "watermark": self.watermark_of(partition), **taken}

    def watermark_of(self, partition: int) -> list[int]:
        """What `restore` has to know of the watermark of a partition."""
        return self._shared.state_of(partition)

    def restore(self, partition: int, state: Mapping[str, Any], active_at_ms: int | None) -> None:
        """Go on from what `snapshot` returned; `active_at_ms` restarts the partition's idle time."""
        self._touched.forget(partition)
        self._shared.restore(partition, state["watermark"], active_at_ms)
        self._partitions[partition] = {
            tuple(names): GroupState(saved_windows(self._shape, head, parts), self._new_watermark(watermark))
            for names, watermark, head, parts in state["groups"]
        }

    def _add_vectors(self, chunk: Chunk, records: Records, clock_ms: int, output: ChunkOutput) -> bool:
        """The same by whole panes; False, and nothing is done, where that is not possible."""
        from primespark.windows.vectorised import SortedRecords, absorb, play

        if self._is_manual or self._is_merged or not isinstance(self._shape, PaneShape):
            return False
        ordered = SortedRecords(chunk, records)
        if not ordered.fit:
            return False
        partition = chunk.partition
        self.changed.add(partition)
        states = [self._state(partition, group) for group in ordered.groups]
        if self._by_key:
            before, timelines = self._observe_groups(ordered, states)
            turns = list(zip(repeat(partition), ordered.groups, states, timelines, strict=False))
        else:
            before, by_partition = self._observe_partition(partition, ordered, records, clock_ms)
            turns = [
                (number, group, state, by_partition[number])
                for number, groups in self._partitions.items()
                for group, state in groups.items()
            ]
        late = absorb(ordered, before, self._shape, [panes_of(state) for state in states])
        for number, group, state, timeline in turns:
            own = late.get(group, ()) if number == partition else ()
            if not own and timeline.last < state.windows.due:
                continue
            self._touched.add(number, group)
            for step in play(panes_of(state), timeline, ordered, before, own):
                output.results.extend((step.row, result) for result in self._results(group, step.fired))
                if step.is_late:
                    self.counters.late_dropped += 1
                    output.late.append((step.row, LateRecord.of(self.rule, *chunk.place(step.row))))
            if not self._by_key and state.windows.is_empty():
                self._touched.drop(number, group, self._partitions[number].pop(group))
        return True

    def _observe_groups(self, ordered: SortedRecords, states: list[GroupState]) -> tuple[Integers, list[Timeline]]:
        """Move each group's watermark; the one at which each row comes, and how each group's rises."""
        floors = [max(state.watermark.value, self._least_watermark) for state in states]
        for state, largest in zip(states, ordered.largest_events(), strict=True):
            state.watermark.observe(largest)
        return ordered.watermarks(floors, self.rule.window_config.max_out_of_orderness_ms)

    def _observe_partition(
        self, partition: int, ordered: SortedRecords, records: Records, clock_ms: int
    ) -> tuple[Integers, dict[int, Timeline]]:
        """Move the watermark of all groups; the one at which each row comes, and how it rises in each partition."""
        from primespark.windows.vectorised import Timeline

        floors = {number: max(self._shared.of(number), self._least_watermark) for number in self._partitions}
        reached = self._shared.observe_all(partition, records.events, clock_ms)
        timelines = {number: Timeline.rising(records.rows, reached, floor) for number, floor in floors.items()}
        self.changed.update(number for number, floor in floors.items() if timelines[number].last > floor)
        return ordered.arranged(timelines[partition].before(floors[partition])), timelines

    def _state(self, partition: int, group: Group) -> GroupState:
        """The state of a group, to be changed."""
        self._touched.add(partition, group)
        groups = self._partitions[partition]
        state = groups.get(group)
        if state is None:
            state = groups[group] = GroupState(new_windows(self._shape), self._new_watermark(NEVER))
        return state

    def _new_watermark(self, value: int) -> KeyWatermark:
        return KeyWatermark(self.rule.window_config.max_out_of_orderness_ms, value)

    def _watermark(self, partition: int, state: GroupState) -> int:
        own = state.watermark.value if self._by_key else self._shared.of(partition)
        return own if own > self._least_watermark else self._least_watermark

    def _moves_all(self, partition: int, event_ms: int, clock_ms: int, state: GroupState) -> bool:
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
                    self._touched.drop(partition, group, groups.pop(group))

    def _fire(self, partition: int, group: Group, state: GroupState) -> Iterable[WindowResult]:
        watermark = self._watermark(partition, state)
        if watermark < state.windows.due:
            return ()
        self._touched.add(partition, group)
        return self._results(group, state.windows.fire(watermark))

    def _results(self, group: Group, fired: Iterable[Fired]) -> Iterator[WindowResult]:
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
