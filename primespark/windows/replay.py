"""Rules over recorded events, without a broker, by the clock of the events: to try a rule on yesterday's data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from primespark.errors import InvalidInputError
from primespark.windows.engine import Output, WindowEngine
from primespark.windows.records import Batch, Counters
from primespark.windows.rules import AggregationRule

_TOPIC = "replay"
# Above every window's end and lateness, below what means for ever.
_END_OF_TIME_MS = 2**62
_Milliseconds = Annotated[int, Field(ge=-(2**61), le=2**61)]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Record(_Line):
    """A record, as it was read from a partition at a moment; `ts` is its own time, an integer or it is invalid."""

    ts: Any = None
    row: dict[str, Any]
    partition: Annotated[int, Field(ge=0, le=10_000)] = 0
    offset: Annotated[int, Field(ge=0, le=2**61)] | None = None
    at: _Milliseconds | None = None


class AdvanceWatermark(_Line):
    """All watermarks move up to a moment."""

    advance_watermark: _Milliseconds


class Tick(_Line):
    """The clock moves on."""

    tick: _Milliseconds


class Restart(_Line):
    """The engine is written down, forgotten and read back."""

    restart: bool


class Flush(_Line):
    """All that is open fires, as if the end of time had come."""

    flush: bool


Event = Record | AdvanceWatermark | Tick | Restart | Flush
_EVENTS: dict[str, TypeAdapter[Any]] = {
    "row": TypeAdapter(Record), "advance_watermark": TypeAdapter(AdvanceWatermark), "tick": TypeAdapter(Tick),
    "restart": TypeAdapter(Restart), "flush": TypeAdapter(Flush),
}  # fmt: skip


def read_event(line: str) -> Event:
    """The event in one line of JSON.

    Raises:
        InvalidInputError: None of them.
    """
    try:
        given = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidInputError("not JSON", remedy="write one JSON object a line") from None
    kinds = [kind for kind in _EVENTS if isinstance(given, dict) and kind in given]
    if len(kinds) != 1:
        raise InvalidInputError("no event", remedy=f"give an object with one of {', '.join(_EVENTS)}")
    try:
        event: Event = _EVENTS[kinds[0]].validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInputError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", remedy="correct it") from None
    return event


def partitions_of(events: Iterable[Event]) -> set[int]:
    """The partitions that have records; 0 where there is none."""
    return {event.partition for event in events if isinstance(event, Record)} or {0}


class Replay:
    """An engine, and the clock that events move.

    Args:
        rules: Each sees all records, whatever its topic; those that are not enabled see none.
        partitions: All that there will be: one that is silent holds the watermark back until it is idle.
        manual_watermark: Whether records leave the watermark where it is.
    """

    def __init__(
        self, rules: Sequence[AggregationRule], partitions: Iterable[int], *, manual_watermark: bool = False
    ) -> None:
        self._rules = [rule.model_copy(update={"source_topic": _TOPIC}) for rule in rules if rule.enabled]
        self._manual = manual_watermark
        self._partitions = sorted(partitions)
        self._clock_ms = 0
        self._watermark_ms: int | None = None
        self._next_offsets = dict.fromkeys(self._partitions, 0)
        self._skipped = {rule.rule_id: Counters() for rule in self._rules}
        self._duplicates = 0
        self._engine = self._new_engine()
        for partition in self._partitions:
            self._engine.assign(_TOPIC, partition, self._clock_ms)

    def play(self, event: Event) -> Iterator[dict[str, Any]]:
        """What the event makes the windows say, in order, as `WindowResult.to_message`."""
        for result in self._play(event).results:
            yield result.to_message()

    def totals(self) -> dict[str, Any]:
        """What was skipped, in all and by rule."""
        by_rule = {
            rule_id: _sum(asdict(before), asdict(self._engine.counters[rule_id]))
            for rule_id, before in self._skipped.items()
        }
        duplicates = self._duplicates + self._engine.duplicates
        names = [field.name for field in fields(Counters)]
        total = {name: sum(counters[name] for counters in by_rule.values()) for name in names}
        return {
            "counters": {**total, "duplicates": duplicates},
            "by_rule": {rule_id: {**counters, "duplicates": duplicates} for rule_id, counters in by_rule.items()},
        }

    def _play(self, event: Event) -> Output:
        match event:
            case Record():
                return self._take(event)
            case Tick(tick=moment):
                self._clock_ms = max(self._clock_ms, moment)
                return self._engine.tick(self._clock_ms)
            case AdvanceWatermark(advance_watermark=moment):
                return self._advance(moment)
            case Flush(flush=True):
                return self._advance(_END_OF_TIME_MS)
            case Restart(restart=True):
                self._restart()
        return Output()

    def _take(self, record: Record) -> Output:
        if record.at is not None:
            self._clock_ms = max(self._clock_ms, record.at)
        offset = self._next_offsets[record.partition] if record.offset is None else record.offset
        self._next_offsets[record.partition] = max(self._next_offsets[record.partition], offset + 1)
        batch = Batch(_TOPIC, record.partition, offset, [{**record.row, "ts": record.ts}], at_ms=record.at)
        return self._engine.process(batch, self._clock_ms)

    def _advance(self, moment: int) -> Output:
        self._watermark_ms = moment if self._watermark_ms is None else max(self._watermark_ms, moment)
        return self._engine.advance(self._watermark_ms)

    def _restart(self) -> None:
        written = [json.dumps(self._engine.snapshot(_TOPIC, partition)) for partition in self._partitions]
        for rule_id, counters in self._engine.counters.items():
            self._skipped[rule_id] = Counters(**_sum(asdict(self._skipped[rule_id]), asdict(counters)))
        self._duplicates += self._engine.duplicates
        self._engine = self._new_engine()
        for snapshot in written:
            self._engine.restore(json.loads(snapshot), self._clock_ms)
        if self._watermark_ms is not None:
            self._engine.advance(self._watermark_ms)

    def _new_engine(self) -> WindowEngine:
        return WindowEngine(self._rules, manual_watermark=self._manual, merge_partitions=True)


def _sum(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {name: left[name] + right[name] for name in left}
