"""What a rule takes of the rows it is given: those that match, have a time, a group and a value; others are counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from primespark.windows.records import Counters, Row, event_time_ms, group_of, number_of
from primespark.windows.rules import AggregationRule

if TYPE_CHECKING:
    from primespark.windows.columns import Chunk, Flags, Floats, Integers

Group = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Records:
    """The usable rows of a chunk, in order.

    Attributes:
        rows: Which they are.
        events: Event times in milliseconds.
        values: Finite numbers.
        codes: Index into `names`.
        names: Groups; some may have no row.
    """

    rows: Integers
    events: Integers
    values: Floats
    codes: Integers
    names: list[Group]


class RuleReader:
    """Reads rows as a rule sees them.

    Args:
        rule: The rule.
        counters: Where what is left out is counted.
    """

    def __init__(self, rule: AggregationRule, counters: Counters) -> None:
        self.counters = counters
        self._conditions = rule.conditions
        self._max_future = rule.window_config.max_future_ms
        self._group_by = rule.group_by
        self._value_field = rule.value_field

    def read(self, row: Row, at_ms: int | None) -> tuple[int, Group, float] | None:
        """Event time, group and value of one row; None if it is left out."""
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
        group = group_of(row, self._group_by)
        if group is None:
            self.counters.ungrouped += 1
            return None
        value = number_of(row, self._value_field)
        if value is None:
            self.counters.invalid += 1
            return None
        return event_ms, group, value

    def read_chunk(self, chunk: Chunk) -> Records:
        """The same of all rows at once."""
        import numpy as np

        counters = self.counters
        usable: Flags = np.ones(chunk.size, np.bool_)
        if self._conditions:
            counters.filtered += _leave_out(usable, chunk.matching(self._conditions))
        times, has_time = chunk.times()
        counters.invalid += _leave_out(usable, has_time)
        if self._max_future is not None:
            counters.future += _leave_out(usable, chunk.within(times, self._max_future))
        groups = chunk.groups(self._group_by)
        counters.ungrouped += _leave_out(usable, groups.codes >= 0)
        numbers, is_number = chunk.numbers(self._value_field)
        counters.invalid += _leave_out(usable, is_number)
        rows = np.flatnonzero(usable)
        return Records(rows, times[rows], numbers[rows], groups.codes[rows], groups.names)


def _leave_out(usable: Flags, kept: Flags) -> int:
    """Take away what is not kept; how many rows that were."""
    before = int(usable.sum())
    usable &= kept
    return before - int(usable.sum())
