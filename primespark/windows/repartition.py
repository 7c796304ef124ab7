"""Rules whose groups are no message keys: a group's records lie in several partitions, so they go on to one of its own.

The worker of a source partition reads such a rule's records and publishes what counts of them (time, group, value) to
the repartition topic; the worker of a partition there adds them up. Each record keeps the place it had in its source,
so one published twice is known, and the watermark is that of the source's partitions, as with one worker for all.

Whole records, not partial windows: which are late, which update a window, and how far each group has come depends on
the single record. They take 7 to 9 bytes each where partial windows would take 0.3 to 2 (5,000 or 600 of 20 groups).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from primespark.windows.groups import fingerprint_of
from primespark.windows.reading import Group, RuleReader
from primespark.windows.records import Counters, Messages, Row
from primespark.windows.results import LateRecord, WindowResult, firing_order
from primespark.windows.rules import AggregationRule
from primespark.windows.running import RunningRule

if TYPE_CHECKING:
    from primespark.windows.columns import Chunk

REPARTITION_TOPIC = "primespark-streams-repartition"
# Of a record's place, for its index in a message; `streams.decode.MAX_ROWS` is less.
_INDEX_BITS = 15
# Leaves room for a topic made anew 63 times.
_OFFSET_BITS = 42


@dataclass(slots=True)
class Routed:
    """Records of one rule from one partition of its source, in order; some messages have none.

    Attributes:
        rule_id: The rule.
        fingerprint: Its definition.
        topic: Its source.
        origin: The partition there.
        newest_ms: The largest event time among these and those that went to other partitions.
        names: Groups.
        places: Of each record its offset and its index in the message, as one number that ascends, also where the
            source was made anew.
        events: Event times in milliseconds.
        codes: Index into `names`.
        values: Finite.
    """

    rule_id: str
    fingerprint: str
    topic: str
    origin: int
    newest_ms: int
    names: list[Group]
    places: list[int]
    events: list[int]
    codes: list[int]
    values: list[float]

    def of(self, rows: list[int]) -> Routed:
        """Some of its records, ascending."""
        codes = dict.fromkeys(self.codes[row] for row in rows)
        numbers = {code: number for number, code in enumerate(codes)}
        return Routed(
            self.rule_id, self.fingerprint, self.topic, self.origin, self.newest_ms,
            [self.names[code] for code in codes], [self.places[row] for row in rows],
            [self.events[row] for row in rows], [numbers[self.codes[row]] for row in rows],
            [self.values[row] for row in rows],
        )  # fmt: skip


@dataclass(slots=True)
class RoutedMessage:
    """A message of the repartition topic.

    Args:
        topic: That topic.
        partition: Where in it the message was read.
        offset: Its offset.
        routed: What it says.
        origins: How many partitions the source has.
    """

    topic: str
    partition: int
    offset: int
    routed: Routed
    origins: int

    @property
    def rows(self) -> list[int]:
        """One entry for each record."""
        return self.routed.places


@dataclass(slots=True)
class MergedOutput:
    """What a merged rule says of a message; `duplicates` are records that it had before."""

    results: list[WindowResult] = field(default_factory=list)
    late: list[LateRecord] = field(default_factory=list)
    duplicates: int = 0


class _Share:
    """What one partition of the repartition topic has of the rule: its groups, from all partitions of the source."""

    def __init__(self, rule: AggregationRule, counters: Counters) -> None:
        self.running = RunningRule(rule, merge_partitions=True, counters=counters)
        # By partition of the source, the first place there that is new.
        self.fences: list[int] = []

    def know(self, origins: int, clock_ms: int) -> None:
        """Have so many partitions of the source from now on, each of which holds the watermark back."""
        for origin in range(len(self.fences), origins):
            self.running.assign(origin, clock_ms)
            self.fences.append(0)

    def state(self, groups: Mapping[str, Any] | None) -> dict[str, Any]:
        """`groups` with what is to be known of each partition of the source."""
        known = [[*self.running.watermark_of(origin), fence] for origin, fence in enumerate(self.fences)]
        return {**(groups or {"is_whole": True, "groups": [], "removed": []}), "watermark": known}

    def restore(self, state: Mapping[str, Any], active_at_ms: int | None) -> None:
        """Go on from `state`."""
        for origin, (*watermark, fence) in enumerate(state["watermark"]):
            groups = state["groups"] if origin == 0 else []
            self.running.restore(origin, {"watermark": watermark, "groups": groups}, active_at_ms)
            self.fences.append(fence)


class MergedRule:
    """One rule at both ends of the repartition topic; else as `RunningRule`, over the partitions of that topic."""

    def __init__(self, rule: AggregationRule) -> None:
        self.rule = rule
        self.fingerprint = fingerprint_of(rule)
        self.topic = REPARTITION_TOPIC
        self.counters = Counters()
        self.changed: set[int] = set()
        self._reader = RuleReader(rule, self.counters)
        self._shares: dict[int, _Share] = {}

    def route(self, chunk: Chunk, begun_anew: int) -> Routed | None:
        """What counts of a chunk of the source, whose offsets began anew so often; None: nothing."""
        records = self._reader.read_chunk(chunk)
        rows = records.rows
        if not len(rows):
            return None
        places = (((begun_anew << _OFFSET_BITS) + chunk.offset[rows]) << _INDEX_BITS) + chunk.index[rows]
        return Routed(
            self.rule.rule_id, self.fingerprint, chunk.topic, chunk.partition, int(records.events.max()),
            records.names, places.tolist(), records.events.tolist(), records.codes.tolist(), records.values.tolist(),
        )  # fmt: skip

    def take(self, message: RoutedMessage, clock_ms: int) -> MergedOutput:
        """Add the records of a message that are new; what fires is in order of the records it fires at."""
        routed, share = message.routed, self._shares[message.partition]
        share.know(max(message.origins, routed.origin + 1), clock_ms)
        self.changed.add(message.partition)
        output = MergedOutput(duplicates=bisect_left(routed.places, share.fences[routed.origin]))
        for row in range(output.duplicates, len(routed.places)):
            number, index = divmod(routed.places[row], 1 << _INDEX_BITS)
            place = number % (1 << _OFFSET_BITS), index
            fired, is_late = share.running.add_read(
                routed.origin, routed.events[row], routed.names[routed.codes[row]], routed.values[row], place, clock_ms
            )
            output.results.extend(fired)
            if is_late:
                late = LateRecord(self.rule, routed.topic, routed.origin, *place, self._row(routed, row))
                output.late.append(late)
        if output.duplicates < len(routed.places):
            share.fences[routed.origin] = routed.places[-1] + 1
        output.results.extend(share.running.observe(routed.origin, routed.newest_ms, clock_ms))
        return output

    def assign(self, partition: int, clock_ms: int) -> None:
        """Start a partition without history."""
        self._shares[partition] = _Share(self.rule, self.counters)

    def revoke(self, partition: int) -> None:
        """Forget a partition and all its windows."""
        self._shares.pop(partition, None)
        self.changed.discard(partition)

    def standing(self) -> tuple[int | None, int]:
        """As `RunningRule.standing`."""
        standings = [share.running.standing() for share in self._shares.values()]
        watermarks = [watermark for watermark, _ in standings if watermark is not None]
        furthest = max if self.rule.window_config.watermark_scope == "key" else min
        return furthest(watermarks, default=None), sum(windows for _, windows in standings)

    def tick(self, clock_ms: int) -> list[WindowResult]:
        """As `RunningRule.tick`."""
        return self._all(lambda running: running.tick(clock_ms))

    def advance(self, watermark_ms: int) -> list[WindowResult]:
        """As `RunningRule.advance`."""
        return self._all(lambda running: running.advance(watermark_ms))

    def snapshot(self, partition: int) -> dict[str, Any]:
        """The state of one partition as JSON values."""
        share = self._shares[partition]
        groups = share.running.snapshot(0) if share.fences else None
        return {**share.state(groups), "fingerprint": self.fingerprint}

    def take_changes(self, partition: int) -> dict[str, Any]:
        """The same of groups that differ from when this was last called."""
        share = self._shares[partition]
        groups = share.running.take_changes(0) if share.fences else None
        return {**share.state(groups), "fingerprint": self.fingerprint}

    def restore(self, partition: int, state: Mapping[str, Any], active_at_ms: int | None) -> None:
        """Go on from what `snapshot` returned; `active_at_ms` restarts the idle time of the source's partitions."""
        share = self._shares[partition] = _Share(self.rule, self.counters)
        share.restore(state, active_at_ms)

    def _row(self, routed: Routed, row: int) -> Row:
        """What is known of a record."""
        group = dict(zip(self.rule.group_by, routed.names[routed.codes[row]], strict=True))
        value = {} if self.rule.value_field is None else {self.rule.value_field: routed.values[row]}
        return {"ts": routed.events[row], **group, **value}

    def _all(self, step: Callable[[RunningRule], list[WindowResult]]) -> list[WindowResult]:
        results: list[WindowResult] = []
        for partition, share in self._shares.items():
            results += step(share.running)
            if share.running.changed:
                share.running.changed.clear()
                self.changed.add(partition)
        return sorted(results, key=firing_order)


class MergedRules(list[MergedRule]):
    """Those of an engine."""

    def route(self, messages: Sequence[Messages], begun_anew: int) -> list[Routed]:
        """What goes from messages of a source, which have a row, to the repartition topic."""
        from primespark.windows.columns import Chunk

        rules = [rule for rule in self if rule.rule.source_topic == messages[0].topic]
        if not rules:
            return []
        chunk = Chunk(messages)
        return [routed for rule in rules if (routed := rule.route(chunk, begun_anew)) is not None]

    def take(self, message: RoutedMessage, clock_ms: int) -> MergedOutput | None:
        """What the rule of a message says; None: it is not here, or its groups are others."""
        for rule in self:
            if rule.fingerprint == message.routed.fingerprint:
                fits = all(len(name) == len(rule.rule.group_by) for name in message.routed.names)
                return rule.take(message, clock_ms) if fits else None
        return None
