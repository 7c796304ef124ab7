"""Aligned windows, tumbling and sliding, of panes that all windows over them share.

A pane is as long as the greatest common divisor of size and slide, so each window is made of whole panes, and a record
is added to one of them however many windows it is in (Li et al., "No pane, no gain", 2005). A tumbling window is one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from primespark.windows.aggregates import Aggregate, Position
from primespark.windows.firing import FOREVER, Fired, Part, kind_of
from primespark.windows.watermark import NEVER


@dataclass(frozen=True, slots=True)
class PaneShape:
    """How a rule's windows lie on the axis of time, in milliseconds.

    Attributes:
        size: Of a window.
        slide: Between the beginnings of two.
        offset: Of the beginnings from the epoch.
        lateness: How long after its end a window takes records; None: for ever.
        with_quantiles: Whether percentiles are asked for.
        pane: Length of a pane.
    """

    size: int
    slide: int
    offset: int
    lateness: int | None
    with_quantiles: bool = False
    pane: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pane", math.gcd(self.size, self.slide))

    def pane_of(self, moment: int) -> int:
        """Where the pane of a moment begins."""
        return (moment - self.offset) // self.pane * self.pane + self.offset

    def last_window_of(self, moment: int) -> int:
        """Where the last window over a moment begins."""
        return (moment - self.offset) // self.slide * self.slide + self.offset

    def windows_of(self, moment: int) -> range:
        """Where the windows over a moment begin, in order."""
        last = self.last_window_of(moment)
        first = last - (self.size - (moment - last) - 1) // self.slide * self.slide
        return range(first, last + 1, self.slide)

    def is_forgotten(self, start: int, watermark: int) -> bool:
        """Whether a window takes no record any more."""
        return self.lateness is not None and watermark >= start + self.size + self.lateness


class PaneWindows:
    """The windows of one group; see `firing.GroupWindows`."""

    __slots__ = ("_changed", "_panes", "_revisions", "_shape", "_waiting", "_watermark", "due")

    def __init__(self, shape: PaneShape) -> None:
        self._shape = shape
        self._panes: dict[int, Aggregate] = {}
        self._changed: set[int] = set()
        # Windows that have not fired yet, and those that have; one with panes that is in neither is forgotten.
        self._waiting: set[int] = set()
        self._revisions: dict[int, int] = {}
        self._watermark = NEVER
        self.due = FOREVER

    def add(self, event_ms: int, value: float, position: Position, watermark: int) -> tuple[list[Fired], bool]:
        """Take in a record; what windows that had fired say anew, and whether it is too late for one it belongs to."""
        shape = self._shape
        pane = shape.pane_of(event_ms)
        aggregate = self._panes.get(pane)
        if aggregate is not None and watermark < pane + shape.pane:
            self._changed.add(pane)
            # None of the windows over it has ended; all that is to be known of them is known from an earlier record.
            aggregate.add(value, position)
            return [], False
        self._watermark = max(self._watermark, watermark)
        windows = shape.windows_of(event_ms)
        taken = [start for start in windows if not shape.is_forgotten(start, watermark)]
        if not taken:
            return [], True
        self._changed.add(pane)
        if aggregate is None:
            aggregate = self._panes[pane] = Aggregate(with_quantiles=shape.with_quantiles)
        aggregate.add(value, position)
        fired = []
        for start in taken:
            if start in self._revisions:
                fired.append(self._say(start))
            else:
                self._waiting.add(start)
                self.due = min(self.due, start + shape.size)
        return fired, len(taken) < len(windows)

    def absorb(self, pane: int, aggregate: Aggregate) -> None:
        """Take in records of one pane, each of which came before its end was reached: no window over it had fired."""
        known = self._panes.get(pane)
        self._changed.add(pane)
        if known is not None:
            known.merge(aggregate)
            return
        self._panes[pane] = aggregate
        windows = self._shape.windows_of(pane)
        self._waiting.update(windows)
        self.due = min(self.due, windows[0] + self._shape.size)

    def fire(self, watermark: int) -> Iterator[Fired]:
        """What fires when the watermark is there; what is too old for any record is forgotten."""
        if watermark < self.due:
            return
        self._watermark = max(self._watermark, watermark)
        reached = watermark - self._shape.size
        for start in sorted([start for start in self._waiting if start <= reached]):
            self._waiting.discard(start)
            yield self._say(start)
        self._forget(watermark)
        self.due = self._next_due()

    def open_at(self, watermark: int) -> int:
        """How many windows have records, and have not fired."""
        shape = self._shape
        # No window over a pane ends later than a window's length after it begins.
        last = [pane for pane in self._panes if pane + shape.size > watermark]
        starts = {start for pane in last for start in shape.windows_of(pane) if start + shape.size > watermark}
        return len(starts - self._revisions.keys())

    def is_empty(self) -> bool:
        """Whether nothing is remembered."""
        return not self._panes

    def head(self) -> list[Any]:
        """The watermark, and the revisions of windows that have fired."""
        return [self._watermark, list(self._revisions.items())]

    def parts(self) -> list[Part]:
        """The panes."""
        return [[start, *aggregate.to_state()] for start, aggregate in self._panes.items()]

    def take_changed_parts(self) -> tuple[list[Part], set[int]]:
        """The panes that differ from when this was last called; and those that went."""
        changed, self._changed = self._changed, set()
        there = changed & self._panes.keys()
        return [[start, *self._panes[start].to_state()] for start in there], changed - there

    @classmethod
    def from_state(cls, shape: PaneShape, head: list[Any], parts: list[Part]) -> Self:
        """What had these."""
        self = cls(shape)
        self._watermark, revisions = head
        self._panes = {start: Aggregate.from_state(saved) for start, *saved in parts}
        self._revisions = dict(revisions)
        starts = {start for pane in self._panes for start in shape.windows_of(pane)}
        self._waiting = {
            start for start in starts if start not in self._revisions and not shape.is_forgotten(start, self._watermark)
        }
        self.due = self._next_due()
        return self

    def _forget(self, watermark: int) -> None:
        """Drop windows that take no record any more, and panes that no other window is over."""
        shape = self._shape
        if shape.lateness is None:
            return
        last = watermark - shape.size - shape.lateness
        old = [start for start in self._revisions if start <= last]
        if not old:
            return
        for start in old:
            del self._revisions[start]
        # A pane may outlive windows over it, for those that end later.
        for pane in [pane for pane in self._panes if shape.last_window_of(pane) <= last]:
            del self._panes[pane]
            self._changed.add(pane)

    def _next_due(self) -> int:
        """The watermark at which a window next fires or is forgotten."""
        size, lateness = self._shape.size, self._shape.lateness
        due = min(self._waiting) + size if self._waiting else FOREVER
        if self._revisions and lateness is not None:
            due = min(due, min(self._revisions) + size + lateness)
        return due

    def _say(self, start: int) -> Fired:
        shape = self._shape
        revision = self._revisions[start] = self._revisions.get(start, 0) + 1
        panes = [self._panes[at] for at in range(start, start + shape.size, shape.pane) if at in self._panes]
        aggregate = panes[0]
        if shape.pane < shape.size:
            aggregate = Aggregate(with_quantiles=shape.with_quantiles)
            for pane in panes:
                aggregate.merge(pane)
        return Fired(start, start + shape.size, aggregate, kind_of(revision), revision)
