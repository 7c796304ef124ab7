"""Chunks of rows through pane windows: what adding them one by one would say, at a fraction of the cost.

A record that comes before the watermark has reached the end of its pane changes no window that has fired, so all such
records of a pane are added at once, ahead of their time: no window over the pane fires before the last of them. What
is left are the few records that come later, and the moments at which windows fire; these are gone through in order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from primespark.windows.columns import Chunk, Flags, Integers
from primespark.windows.firing import Fired
from primespark.windows.panes import PaneShape, PaneWindows
from primespark.windows.reading import Group, Records
from primespark.windows.segments import aggregates, fits, joined, running_maximum, starts_of

# Sorting by numbers of 16 bits is by radix.
_SHORT = 2**15


@dataclass(frozen=True, slots=True)
class Timeline:
    """How the watermark of one or many groups rises.

    Attributes:
        rows: At which it may have, in order; at least one.
        after: Its value after each of them.
    """

    # Lists, as numpy takes ten times as long to look something up in a few numbers.
    rows: list[int]
    after: list[int]

    @classmethod
    def rising(cls, rows: Integers, reached: Integers, floor: int) -> Timeline:
        """From a value on that it does not fall below."""
        return cls(rows.tolist(), np.maximum(reached, floor).tolist())

    @property
    def last(self) -> int:
        """Where it ends."""
        return self.after[-1]

    def before(self, floor: int) -> Integers:
        """Its value before each row; `floor` before the first."""
        return np.array([floor, *self.after[:-1]], np.int64)


class SortedRecords:
    """The usable rows of a chunk, at least one, by group; within a group in the order in which they came."""

    def __init__(self, chunk: Chunk, records: Records) -> None:
        codes = records.codes.astype(np.int16) if len(records.names) <= _SHORT else records.codes
        self._order: Integers = np.argsort(codes, kind="stable")
        self._codes = records.codes[self._order]
        self.rows = records.rows[self._order]
        self.events = records.events[self._order]
        self.values = records.values[self._order]
        self.offsets = chunk.offset[self.rows]
        self.indexes = chunk.index[self.rows]
        self._starts = starts_of(self._codes)
        self._lengths: Integers = np.diff(np.append(self._starts, len(self._codes)))
        self.groups = [records.names[code] for code in self._codes[self._starts].tolist()]
        # Which group a row is of.
        self.numbers = np.repeat(np.arange(len(self.groups)), self._lengths)

    @property
    def fit(self) -> bool:
        """Whether the numbers are small enough for this way."""
        return fits(len(self.groups), self.events)

    def arranged(self, column: Integers) -> Integers:
        """A column of the records in this order."""
        return column[self._order]

    def largest_events(self) -> list[int]:
        """The largest event time of each group."""
        largest: list[int] = np.maximum.reduceat(self.events, self._starts).tolist()
        return largest

    def watermarks(self, floors: Sequence[int], disorder_ms: int) -> tuple[Integers, list[Timeline]]:
        """The watermark of its group at which each row comes, and how each group's rises.

        Args:
            floors: The watermark of each group so far.
            disorder_ms: How far it is behind the largest event time.
        """
        so_far = np.array(floors, np.int64)
        after = np.maximum(running_maximum(self.numbers, self.events) - disorder_ms, so_far[self.numbers])
        before = np.concatenate(([0], after[:-1]))
        before[self._starts] = so_far
        starts = self._starts.tolist()
        ends = [*starts[1:], len(after)]
        rows, values = self.rows.tolist(), after.tolist()
        return before, [Timeline(rows[start:end], values[start:end]) for start, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happens to the windows of a group at a row."""

    row: int
    fired: list[Fired]
    is_late: bool = False


def absorb(
    records: SortedRecords, before: Integers, shape: PaneShape, windows: Sequence[PaneWindows]
) -> dict[Group, list[int]]:
    """Add what comes before the end of its pane; which records of each group do not, in order.

    Args:
        records: All records.
        before: The watermark at which each comes.
        shape: Of the windows.
        windows: Of each group.
    """
    numbers = (records.events - shape.offset) // shape.pane
    panes = numbers * shape.pane + shape.offset
    in_time: Flags = before < panes + shape.pane
    order = np.flatnonzero(in_time)
    if len(order):
        keys = joined(records.numbers[order], numbers[order])
        if np.any(np.diff(keys) < 0):
            by_key = np.argsort(keys, kind="stable")
            keys, order = keys[by_key], order[by_key]
        found = aggregates(
            keys, records.events[order], records.values[order], records.offsets[order], records.indexes[order],
            with_quantiles=shape.with_quantiles,
        )  # fmt: skip
        firsts = order[starts_of(keys)]
        for group, pane, aggregate in zip(
            records.numbers[firsts].tolist(), panes[firsts].tolist(), found, strict=True
        ):  # fmt: skip
            windows[group].absorb(pane, aggregate)
    late: dict[Group, list[int]] = {}
    for position in np.flatnonzero(~in_time).tolist():
        late.setdefault(records.groups[records.numbers[position]], []).append(position)
    return late


def play(
    windows: PaneWindows, timeline: Timeline, records: SortedRecords, before: Integers, late: Sequence[int]
) -> Iterator[Step]:
    """What the windows of a group say as the watermark rises and its late records come.

    Args:
        windows: Of the group, with all that came in time.
        timeline: Of its watermark.
        records: All records.
        before: The watermark at which each comes.
        late: Which of them are the group's and are left, in order.
    """
    passed = 0
    for position in late:
        row, event = int(records.rows[position]), int(records.events[position])
        turn = bisect_left(timeline.rows, row)
        yield from _fire(windows, timeline, passed, turn)
        place = (event, int(records.offsets[position]), int(records.indexes[position]))
        fired, is_late = windows.add(event, float(records.values[position]), place, int(before[position]))
        yield Step(row, fired, is_late)
        # Nothing more fires at a row that is passed.
        passed = turn
    yield from _fire(windows, timeline, passed, len(timeline.rows))


def _fire(windows: PaneWindows, timeline: Timeline, first: int, end: int) -> Iterator[Step]:
    """What fires at some rows of a timeline: all at once, as nothing comes between them."""
    if first == end or timeline.after[end - 1] < windows.due:
        return
    for one in windows.fire(timeline.after[end - 1]):
        yield Step(timeline.rows[max(bisect_left(timeline.after, one.end), first)], [one])
