"""The rows of several messages as columns: what `records` reads from one row, of all rows at once.

A column says exactly what the function for one row says of each: where the values of a field are not all of the usual
type, that function is asked. Rows that came as columns (`Table`) are never made for it.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from primespark.windows.filters import Condition
from primespark.windows.records import (
    EARLIEST_MS,
    LATEST_MS,
    Batch,
    Messages,
    Row,
    Singles,
    event_time_ms,
    group_of,
    number_of,
)

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Groups:
    """The group of each row.

    Attributes:
        codes: Index into `names`; -1 where a row has no usable group.
        names: The groups, each once.
    """

    codes: Integers
    names: list[tuple[str, ...]]


class Columns(Protocol):
    """Columns of rows."""

    def times(self) -> tuple[Integers, Flags]:
        """Event times in milliseconds, and which rows have one; see `event_time_ms`."""

    def numbers(self, field: str | None) -> tuple[Floats, Flags]:
        """The values of a field, and which rows have a finite one; see `number_of`."""

    def groups(self, fields: Sequence[str]) -> Groups:
        """The groups by some fields; see `group_of`."""

    def matching(self, conditions: Sequence[Condition]) -> Flags:
        """Which rows meet all conditions."""


class Table(Sequence[Row]):
    """The rows of a message that came as columns."""

    @property
    @abstractmethod
    def layout(self) -> Hashable:
        """Equal for tables whose columns can be joined; not None."""

    @abstractmethod
    def joined(self, others: Sequence[Any]) -> Columns:
        """The columns of this and of others of the same layout, which follow it."""


class Chunk:
    """Messages of one partition in order of their offsets, read as columns when a rule first asks for them.

    Args:
        messages: With one row at least.
    """

    def __init__(self, messages: Sequence[Messages]) -> None:
        self._parts = messages
        self.topic, self.partition = messages[0].topic, messages[0].partition
        lengths: list[int] = []
        offsets: list[int] = []
        # Of each message; and the number of the first one of each part.
        self._moments: list[int | None] = []
        self._firsts: list[int] = []
        for part in messages:
            self._firsts.append(len(lengths))
            if isinstance(part, Singles):
                lengths += [1] * len(part.rows)
                offsets += part.offsets
                self._moments += part.moments
            else:
                lengths.append(len(part.rows))
                offsets.append(part.offset)
                self._moments.append(part.at_ms)
        rows = np.array(lengths, np.int64)
        self.size = int(rows.sum())
        self._message: Integers = np.repeat(np.arange(len(rows)), rows)
        self.offset: Integers = np.array(offsets, np.int64)[self._message]
        self.index: Integers = np.arange(self.size) - (np.cumsum(rows) - rows)[self._message]
        self._columns = _columns_of([part.rows for part in messages if len(part.rows)])
        self._times: tuple[Integers, Flags] | None = None
        self._numbers: dict[str | None, tuple[Floats, Flags]] = {}
        self._groups: dict[tuple[str, ...], Groups] = {}

    def place(self, row: int) -> tuple[Batch, int]:
        """The message of a row, and where it is in it."""
        message = int(self._message[row])
        number = bisect_right(self._firsts, message) - 1
        part = self._parts[number]
        batch = part.batch(message - self._firsts[number]) if isinstance(part, Singles) else part
        return batch, int(self.index[row])

    def times(self) -> tuple[Integers, Flags]:
        """See `Columns.times`."""
        if self._times is None:
            self._times = self._columns.times()
        return self._times

    def numbers(self, field: str | None) -> tuple[Floats, Flags]:
        """See `Columns.numbers`."""
        if field not in self._numbers:
            self._numbers[field] = self._columns.numbers(field)
        return self._numbers[field]

    def groups(self, fields: Sequence[str]) -> Groups:
        """See `Columns.groups`."""
        key = tuple(fields)
        if key not in self._groups:
            self._groups[key] = self._columns.groups(fields)
        return self._groups[key]

    def matching(self, conditions: Sequence[Condition]) -> Flags:
        """See `Columns.matching`."""
        return self._columns.matching(conditions)

    def within(self, times: Integers, ahead_ms: int) -> Flags:
        """Which rows are no more than so far ahead of the publication of their message."""
        # A message without a moment of its own has no such bound.
        moments = [LATEST_MS if moment is None else moment for moment in self._moments]
        limits: Flags = times - ahead_ms <= np.array(moments, np.int64)[self._message]
        return limits


def _columns_of(parts: Sequence[Sequence[Row]]) -> Columns:
    runs = [list(run) for _, run in groupby(parts, lambda rows: rows.layout if isinstance(rows, Table) else None)]
    found = [_joined(run) for run in runs]
    return found[0] if len(found) == 1 else _Joined(found)


def _joined(run: list[Sequence[Row]]) -> Columns:
    first = run[0]
    return first.joined(run[1:]) if isinstance(first, Table) else _Rows(list(chain.from_iterable(run)))


class _Joined:
    """Columns one behind the other."""

    def __init__(self, parts: Sequence[Columns]) -> None:
        self._parts = parts

    def times(self) -> tuple[Integers, Flags]:
        return _concatenated([part.times() for part in self._parts])

    def numbers(self, field: str | None) -> tuple[Floats, Flags]:
        return _concatenated([part.numbers(field) for part in self._parts])

    def groups(self, fields: Sequence[str]) -> Groups:
        numbers: dict[tuple[str, ...], int] = {}
        codes = []
        for groups in [part.groups(fields) for part in self._parts]:
            # What -1 stands for comes last.
            own = [numbers.setdefault(name, len(numbers)) for name in groups.names] + [-1]
            codes.append(np.array(own, np.int64)[groups.codes])
        return Groups(np.concatenate(codes), list(numbers))

    def matching(self, conditions: Sequence[Condition]) -> Flags:
        return np.concatenate([part.matching(conditions) for part in self._parts])


def _concatenated(parts: Sequence[tuple[Any, Flags]]) -> tuple[Any, Flags]:
    return np.concatenate([values for values, _ in parts]), np.concatenate([usable for _, usable in parts])


class _Rows:
    """Columns of rows that came one by one."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def times(self) -> tuple[Integers, Flags]:
        given = self._field("ts")
        if set(map(type, given)) == {int}:
            try:
                times = np.array(given, np.int64)
            except OverflowError:
                pass
            else:
                return times, (times >= EARLIEST_MS) & (times <= LATEST_MS)
        read = [event_time_ms(row) for row in self._rows]
        return np.array([moment or 0 for moment in read], np.int64), np.array([one is not None for one in read])

    def numbers(self, field: str | None) -> tuple[Floats, Flags]:
        if field is None:
            return np.ones(len(self._rows)), np.ones(len(self._rows), np.bool_)
        given = self._field(field)
        if set(map(type, given)) <= {int, float}:
            try:
                numbers = np.array(given, np.float64)
            except OverflowError:
                pass
            else:
                return numbers, np.isfinite(numbers)
        read = [number_of(row, field) for row in self._rows]
        return np.array([number or 0.0 for number in read]), np.array([one is not None for one in read])

    def groups(self, fields: Sequence[str]) -> Groups:
        if len(fields) == 1:
            (field,) = fields
            given = self._field(field)
            if set(map(type, given)) == {str}:
                codes, texts = encode(given)
                return usable(codes, [group_of({field: text}, fields) for text in texts])
        codes, groups = encode([group_of(row, fields) for row in self._rows])
        return usable(codes, groups)

    def matching(self, conditions: Sequence[Condition]) -> Flags:
        found = (all(matches(row) for matches in conditions) for row in self._rows)
        return np.fromiter(found, np.bool_, len(self._rows))

    def _field(self, field: str) -> list[Any]:
        try:
            return list(map(itemgetter(field), self._rows))
        except KeyError:
            return [row.get(field) for row in self._rows]


def encode(given: Sequence[Any]) -> tuple[Integers, list[Any]]:
    """Numbers for equal values in order of appearance, and the values."""
    values = list(dict.fromkeys(given))
    numbers = {value: number for number, value in enumerate(values)}
    return np.array(list(map(numbers.__getitem__, given)), np.int64), values


def usable(codes: Integers, names: list[tuple[str, ...] | None]) -> Groups:
    """Leave out the groups that are None."""
    kept = [name for name in names if name is not None]
    if len(kept) == len(names):
        return Groups(codes, kept)
    numbers = np.cumsum([name is not None for name in names]) - 1
    numbers[[name is None for name in names]] = -1
    return Groups(numbers[codes], kept)
