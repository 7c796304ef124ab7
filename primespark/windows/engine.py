"""The window engine: several rules over the partitions of their topics, with fences and snapshots; pure.

A partition's snapshot holds offsets and windows together. Messages at or below its offset, and messages whose `log_seq`
is not above the highest seen in the partition, are ignored and counted as duplicates; so reading again after a crash,
or a relay that publishes again, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from primespark.errors import IntegrityError
from primespark.windows.fences import Fence
from primespark.windows.records import Batch, Counters, Messages, one_by_one
from primespark.windows.repartition import REPARTITION_TOPIC, MergedRule, MergedRules, Routed, RoutedMessage
from primespark.windows.results import LateRecord, WindowResult, firing_order
from primespark.windows.rules import MESSAGE_KEY_FIELD, AggregationRule
from primespark.windows.running import RunningRule

SNAPSHOT_VERSION = 1
# Of fewer, one by one is faster.
FEWEST_COLUMNS = 64
# A topic and a partition number.
Partition = tuple[str, int]


@dataclass(slots=True)
class Output:
    """What one step produced, in firing order; `routed` goes to the repartition topic."""

    results: list[WindowResult] = field(default_factory=list)
    late: list[LateRecord] = field(default_factory=list)
    routed: list[Routed] = field(default_factory=list)


class WindowEngine:
    """Rules in file order over assigned partitions; not thread safe.

    Args:
        rules: Those that are not enabled are left out.
        manual_watermark: Whether `advance` alone moves watermarks.
        merge_partitions: Whether a group is one over all partitions, which must all be here to stay. Else groups
            that are no message key are `routed`, and added up where `RoutedMessage` brings them.
        fewest_columns: From so many rows on they are taken in as columns.
    """

    def __init__(
        self, rules: Iterable[AggregationRule], *, manual_watermark: bool = False, merge_partitions: bool = False,
        fewest_columns: int = FEWEST_COLUMNS,
    ) -> None:  # fmt: skip
        self._fewest_columns = fewest_columns
        self._manual_watermark = manual_watermark
        self._merge_partitions = merge_partitions
        self._rules: list[RunningRule | MergedRule] = []
        # Topics without a rule are read for the merged ones.
        self._by_topic: dict[str, list[RunningRule]] = {}
        self._merged = MergedRules()
        self._targets: dict[str, str] = {}
        self._fences: dict[Partition, Fence] = {}
        self._changed: set[Partition] = set()
        self.duplicates = 0
        self.unclaimed = 0
        for rule in rules:
            if rule.enabled:
                self.add_rule(rule, 0)

    @property
    def source_topics(self) -> list[str]:
        """Topics that some enabled rule reads."""
        return list(self._by_topic)

    @property
    def target_topics(self) -> list[str]:
        """Topics that results and late records go to."""
        return sorted({name for rule in self._rules for name in (rule.rule.target_topic, rule.rule.late_topic)})

    @property
    def counters(self) -> dict[str, Counters]:
        """What each rule skipped, by rule_id; the live objects."""
        return {rule.rule.rule_id: rule.counters for rule in self._rules}

    def standing(self) -> dict[str, tuple[int | None, int]]:
        """Of each rule the watermark in epoch milliseconds, None before the first record, and its open windows."""
        return {rule.rule.rule_id: rule.standing() for rule in self._rules}

    @property
    def partitions(self) -> list[Partition]:
        """The partitions at hand."""
        return list(self._fences)

    def holds(self, topic: str, partition: int) -> bool:
        """Whether the partition is at hand."""
        return (topic, partition) in self._fences

    def target_of(self, rule_id: str) -> str:
        """The topic that results of the rule go to."""
        return self._targets[rule_id]

    def add_rule(self, rule: AggregationRule, clock_ms: int) -> None:
        """Let a rule take part from the next record on, without history; `rule_id` names no other."""
        running = self._new_rule(rule)
        self._rules.append(running)
        of_topic = self._by_topic.setdefault(rule.source_topic, [])
        if isinstance(running, MergedRule):
            self._by_topic.setdefault(REPARTITION_TOPIC, [])
            self._merged.append(running)
        else:
            of_topic.append(running)
        self._targets[rule.rule_id] = rule.target_topic
        for partition in self._of_topic(running.topic):
            running.assign(partition, clock_ms)

    def remove_rule(self, rule_id: str) -> None:
        """Drop a rule and its windows; one that is not there changes nothing.

        Its topic stays at hand, so that its records are passed, not kept for a rule to come.
        """
        for running in [running for running in self._rules if running.rule.rule_id == rule_id]:
            topic = running.topic
            self._rules.remove(running)
            if isinstance(running, MergedRule):
                self._merged.remove(running)
            else:
                self._by_topic[topic].remove(running)
            del self._targets[rule_id]
            # Else the last snapshot would bring the windows back.
            self._changed.update((topic, partition) for partition in self._of_topic(topic))

    def assign(self, topic: str, partition: int, clock_ms: int) -> None:
        """Start a partition without history."""
        self._fences[topic, partition] = Fence()
        for rule in self._of(topic):
            rule.assign(partition, clock_ms)

    def revoke(self, topic: str, partition: int) -> None:
        """Forget a partition."""
        self._fences.pop((topic, partition), None)
        self._changed.discard((topic, partition))
        for rule in self._of(topic):
            rule.revoke(partition)

    def next_offset(self, topic: str, partition: int) -> int:
        """The lowest offset that is not a duplicate."""
        return self._fences[topic, partition].next_offset

    def process_chunk(self, messages: Sequence[Messages], clock_ms: int) -> Output:
        """Take in several messages of one partition, at least one, in order of their offsets."""
        partition = messages[0].topic, messages[0].partition
        fresh = self._fresh(partition, messages)
        rows = sum([len(batch.rows) for batch in fresh])
        by_columns = rows >= self._fewest_columns
        output = self._add_columns(fresh, clock_ms) if by_columns else self._add_rows(fresh, clock_ms)
        if rows:
            output.routed = self._merged.route(fresh, self._fences[partition].begun_anew)
        return output

    def process_routed(self, message: RoutedMessage, clock_ms: int) -> Output:
        """Take in a message of the repartition topic; records of a rule that is not here are counted as unclaimed."""
        if message.offset < self.next_offset(message.topic, message.partition):
            self.duplicates += len(message.rows)
            return Output()
        self.skip(message.topic, message.partition, message.offset)
        said = self._merged.take(message, clock_ms)
        if said is None:
            self.unclaimed += len(message.rows)
            return Output()
        self.duplicates += said.duplicates
        return Output(said.results, said.late)

    def process(self, batch: Batch, clock_ms: int) -> Output:
        """Take in one message; each of its rows is a step."""
        return self.process_chunk([batch], clock_ms)

    def skip(self, topic: str, partition: int, offset: int) -> None:
        """Move the fence over a message of which no rule is to know."""
        fence = self._fences[topic, partition]
        if offset >= fence.next_offset:
            fence.next_offset = offset + 1
            self._changed.add((topic, partition))

    def tick(self, clock_ms: int) -> Output:
        """Let time pass without records."""
        return Output([result for rule in self._rules for result in rule.tick(clock_ms)])

    def advance(self, watermark_ms: int) -> Output:
        """Move all watermarks up to a moment, and those of groups to come."""
        return Output([result for rule in self._rules for result in rule.advance(watermark_ms)])

    def take_changed(self) -> list[Partition]:
        """The partitions whose state differs from when this was last called."""
        changed, self._changed = self._changed, set()
        for rule in self._rules:
            changed.update((rule.topic, partition) for partition in rule.changed)
            rule.changed.clear()
        return sorted(changed)

    def snapshot(self, topic: str, partition: int) -> dict[str, Any]:
        """The whole state of one partition as JSON values."""
        rules = {rule.rule.rule_id: rule.snapshot(partition) for rule in self._of(topic)}
        return {**self._head(topic, partition), "rules": rules}

    def take_changes(self, topic: str, partition: int) -> dict[str, Any]:
        """The same of what changed since this was last called, or since the partition came; then it is forgotten.

        All rules are there, each with its groups that changed, whole, and the names of those that went (`removed`). A
        group that is not named is as before, unless the rule began anew (`is_whole`) or has another fingerprint.
        """
        rules = {rule.rule.rule_id: rule.take_changes(partition) for rule in self._of(topic)}
        return {**self._head(topic, partition), "rules": rules}

    def restore(self, snapshot: Mapping[str, Any], clock_ms: int, *, restart_idle: bool = False) -> None:
        """Go on from a snapshot; rules it does not know, or knows by another definition, start empty.

        Args:
            snapshot: What `snapshot` returned, also after a trip through JSON.
            clock_ms: The present.
            restart_idle: Count the time down as no silence of the partition, as records may be waiting in it; also
                for a snapshot by another clock.

        Raises:
            IntegrityError: Not a snapshot of this version.
        """
        if snapshot.get("version") != SNAPSHOT_VERSION:
            raise IntegrityError(f"snapshot of version {snapshot.get('version')!r}, expected {SNAPSHOT_VERSION}")
        topic, partition = snapshot["topic"], snapshot["partition"]
        self._fences[topic, partition] = Fence(
            snapshot["next_offset"], snapshot["log_seq"], snapshot.get("begun_anew", 0)
        )
        for rule in self._of(topic):
            state = snapshot["rules"].get(rule.rule.rule_id)
            if state is None or state["fingerprint"] != rule.fingerprint:
                rule.assign(partition, clock_ms)
            else:
                rule.restore(partition, state, clock_ms if restart_idle else None)

    def _head(self, topic: str, partition: int) -> dict[str, Any]:
        fence = self._fences[topic, partition]
        return {
            "version": SNAPSHOT_VERSION,
            "topic": topic,
            "partition": partition,
            "next_offset": fence.next_offset,
            "log_seq": fence.log_seq,
            "begun_anew": fence.begun_anew,
        }

    def _of(self, topic: str) -> Sequence[RunningRule | MergedRule]:
        """The rules whose windows the partitions of a topic have."""
        return self._merged if topic == REPARTITION_TOPIC else self._by_topic.get(topic, ())

    def _new_rule(self, rule: AggregationRule) -> RunningRule | MergedRule:
        if self._merge_partitions or MESSAGE_KEY_FIELD in rule.group_by:
            return RunningRule(
                rule, manual_watermark=self._manual_watermark, merge_partitions=self._merge_partitions
            )  # fmt: skip
        return MergedRule(rule)

    def _add_rows(self, messages: list[Messages], clock_ms: int) -> Output:
        output = Output()
        for batch in one_by_one(messages):
            rules = self._by_topic[batch.topic]
            for index, row in enumerate(batch.rows):
                for rule in rules:
                    fired, late = rule.add(row, batch, index, clock_ms)
                    output.results.extend(fired)
                    if late is not None:
                        output.late.append(late)
        return output

    def _add_columns(self, messages: list[Messages], clock_ms: int) -> Output:
        """The same, and in the same order."""
        from primespark.windows.columns import Chunk

        chunk = Chunk(messages)
        results: list[tuple[int, int, WindowResult]] = []
        late: list[tuple[int, int, LateRecord]] = []
        for number, rule in enumerate(self._by_topic[chunk.topic]):
            said = rule.add_chunk(chunk, clock_ms)
            results.extend((row, number, result) for row, result in said.results)
            late.extend((row, number, record) for row, record in said.late)
        results.sort(key=lambda one: (*one[:2], *firing_order(one[2])))
        late.sort(key=lambda one: one[:2])
        return Output([result for *_, result in results], [record for *_, record in late])

    def _of_topic(self, topic: str) -> list[int]:
        return [partition for name, partition in self._fences if name == topic]

    def _fresh(self, partition: Partition, messages: Sequence[Messages]) -> list[Messages]:
        """Those above the fence, which is moved behind them; the others are counted."""
        fence = self._fences[partition]
        before = fence.next_offset
        fresh, duplicates = fence.take(messages)
        self.duplicates += duplicates
        if fence.next_offset > before:
            self._changed.add(partition)
        return fresh
