"""What rules say: the result of a window that fires, in its two renderings, and records that came too late for one."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Self

from primespark.windows.records import Batch, Row
from primespark.windows.rules import AggregationRule

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ResultKind(StrEnum):
    """`final` is a window's first result, `late_update` every later one, `retract` says that there is none any more."""

    FINAL = "final"
    LATE_UPDATE = "late_update"
    RETRACT = "retract"


@dataclass(frozen=True, slots=True)
class WindowResult:
    """The value of one window of one group; times are epoch milliseconds, `value` is None where none exists."""

    rule_id: str
    group: tuple[str, ...]
    window_start: int
    window_end: int
    value: float | None
    count: int
    kind: ResultKind
    revision: int

    @property
    def group_key(self) -> str:
        """The group as one text: its values joined by commas, a comma or backslash inside a value escaped."""
        return ",".join(part.replace("\\", "\\\\").replace(",", "\\,") for part in self.group)

    @property
    def key(self) -> str:
        """Identity of the window, `rule_id|group|window_start|window_end`; a replay overwrites itself under it."""
        return f"{self.rule_id}|{self.group_key}|{self.window_start}|{self.window_end}"

    def to_message(self) -> dict[str, Any]:
        """The JSON object published to the rule's target topic."""
        return {
            "rule_id": self.rule_id,
            "group": list(self.group),
            "window_start": self.window_start,
            "window_end": self.window_end,
            "value": self.value,
            "count": self.count,
            "kind": self.kind.value,
            "revision": self.revision,
        }

    def to_row(self) -> dict[str, Any]:
        """The row of `primespark.store.windows.upsert`."""
        return {
            "rule_id": self.rule_id,
            "group_key": self.group_key,
            "window_start": _EPOCH + timedelta(milliseconds=self.window_start),
            "window_end": _EPOCH + timedelta(milliseconds=self.window_end),
            "value": self.value,
            "count": self.count,
            "kind": self.kind.value,
            "revision": self.revision,
        }


@dataclass(frozen=True, slots=True)
class LateRecord:
    """A row that came after a window it belongs to was forgotten, and the place of it."""

    rule: AggregationRule
    topic: str
    partition: int
    offset: int
    index: int
    row: Row

    @classmethod
    def of(cls, rule: AggregationRule, batch: Batch, index: int) -> Self:
        """A row of a batch."""
        return cls(rule, batch.topic, batch.partition, batch.offset, index, batch.rows[index])


@dataclass(slots=True)
class ChunkOutput:
    """What a rule says of a chunk, each with the row it is said at."""

    results: list[tuple[int, WindowResult]] = field(default_factory=list)
    late: list[tuple[int, LateRecord]] = field(default_factory=list)


def firing_order(result: WindowResult) -> tuple[int, int, tuple[str, ...]]:
    """By what results of one step are ordered."""
    return result.window_end, result.window_start, result.group
