"""What goes into the engine: batches of rows, and the reading of time, group and value from one row."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Years 1 to 9999 less the longest window: every window bound is a time that databases and datetime can hold.
EARLIEST_MS = -62_135_596_800_000 + 31_536_000_000
LATEST_MS = 253_402_300_800_000 - 31_536_000_000
# Groups are part of a database key, whose size is bounded.
_MAX_GROUP_BYTES = 1024

Row = Mapping[str, Any]


# Not frozen, which would make one in three times the time; there is one for each message.
@dataclass(slots=True)
class Batch:
    """The rows of one message.

    Args:
        topic: Where the message was read.
        partition: Its partition.
        offset: Its offset.
        rows: Its records in order, decoded but not yet checked.
        log_seq: Position in the sync log, which fences messages published twice; None where the message has none.
        at_ms: When the message was published, against which `max_future` is held; None: no such bound.
    """

    topic: str
    partition: int
    offset: int
    rows: Sequence[Row]
    log_seq: int | None = None
    at_ms: int | None = None


@dataclass(slots=True)
class Singles:
    """Messages of one row each in order of their offsets, none of which has a `log_seq`.

    To make a `Batch` of each costs as much as to read it.

    Args:
        topic: Where the messages were read.
        partition: Their partition.
        rows: One of each.
        offsets: Of each.
        moments: When each was published; see `Batch.at_ms`.
    """

    topic: str
    partition: int
    rows: list[Row] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    moments: list[int | None] = field(default_factory=list)

    @property
    def offset(self) -> int:
        """Of the first."""
        return self.offsets[0]

    def batch(self, place: int) -> Batch:
        """One of them by itself."""
        return Batch(
            self.topic, self.partition, self.offsets[place], [self.rows[place]], at_ms=self.moments[place]
        )  # fmt: skip

    def behind(self, count: int) -> Singles:
        """Those that follow the first so many."""
        return Singles(
            self.topic, self.partition, self.rows[count:], self.offsets[count:], self.moments[count:]
        )  # fmt: skip


Messages = Batch | Singles


def one_by_one(messages: Iterable[Messages]) -> Iterator[Batch]:
    """Each message by itself."""
    for message in messages:
        if isinstance(message, Batch):
            yield message
        else:
            yield from map(message.batch, range(len(message.rows)))


@dataclass(slots=True)
class Counters:
    """What a rule skipped, and why."""

    late_dropped: int = 0
    invalid: int = 0
    ungrouped: int = 0
    filtered: int = 0
    future: int = 0


def event_time_ms(row: Row) -> int | None:
    """The row's `ts`, or None if it is not an integer in the range of years 2 to 9998."""
    moment = row.get("ts")
    if type(moment) is not int or not EARLIEST_MS <= moment <= LATEST_MS:
        return None
    return moment


def group_of(row: Row, fields: Sequence[str]) -> tuple[str, ...] | None:
    """The texts of the group fields, or None if one is missing, no scalar, or unfit as a key."""
    parts = []
    size = 0
    for name in fields:
        value = row.get(name)
        if type(value) is str:
            text = value
        elif isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
            text = json.dumps(value)
        else:
            return None
        try:
            size += len(text.encode())
        except UnicodeEncodeError:
            return None
        if size > _MAX_GROUP_BYTES or "\0" in text:
            return None
        parts.append(text)
    return tuple(parts)


def number_of(row: Row, field: str | None) -> float | None:
    """The finite number in `field`, 1.0 if the rule counts rows (`field` None), else None; a bool is no number."""
    if field is None:
        return 1.0
    value = row.get(field)
    if type(value) is float:
        return value if math.isfinite(value) else None
    if type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return None
    return None
