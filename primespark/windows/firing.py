"""What the windows of one group do as records and time go by: the interface of all window types."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from primespark.windows.aggregates import Aggregate, Position
from primespark.windows.results import ResultKind

# A pane or a session as JSON; where it begins comes first, and tells it from others.
Part = list[Any]

# Above every watermark.
FOREVER = 2**63


@dataclass(frozen=True, slots=True)
class Fired:
    """A window `[start, end)` that has something to say; without an aggregate it takes back what it said."""

    start: int
    end: int
    aggregate: Aggregate | None
    kind: ResultKind
    revision: int


class GroupWindows(Protocol):
    """The open and fired windows of one group.

    Attributes:
        due: Nothing happens to them before the watermark is there.
    """

    due: int

    def add(self, event_ms: int, value: float, position: Position, watermark: int) -> tuple[list[Fired], bool]:
        """Take in a record; what windows that had fired say anew, and whether it is too late for one it belongs to."""
        ...

    def fire(self, watermark: int) -> Iterator[Fired]:
        """What fires when the watermark is there; what is too old for any record is forgotten."""
        ...

    def open_at(self, watermark: int) -> int:
        """How many windows have records, and have not fired."""
        ...

    def is_empty(self) -> bool:
        """Whether nothing is remembered."""
        ...

    def head(self) -> Any:
        """What is to be known of all of them together, as JSON."""
        ...

    def parts(self) -> list[Part]:
        """All that they are made of."""
        ...

    def take_changed_parts(self) -> tuple[list[Part], set[int]]:
        """The parts that differ from when this was last called, or from the beginning; and where parts went since."""
        ...


def kind_of(revision: int) -> ResultKind:
    """A window's first result is final."""
    return ResultKind.FINAL if revision == 1 else ResultKind.LATE_UPDATE
