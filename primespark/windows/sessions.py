"""Session windows: from a record to the last one that follows no later than the gap after another, plus the gap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from primespark.windows.aggregates import Aggregate, Position
from primespark.windows.firing import FOREVER, Fired, Part, kind_of
from primespark.windows.results import ResultKind


@dataclass(frozen=True, slots=True)
class SessionShape:
    """How sessions are told apart, in milliseconds.

    Attributes:
        gap: Records this far apart, or nearer, belong together.
        lateness: How long after its end a session takes records; None: for ever.
        with_quantiles: Whether percentiles are asked for.
    """

    gap: int
    lateness: int | None
    with_quantiles: bool = False


@dataclass(slots=True)
class _Session:
    start: int
    end: int
    aggregate: Aggregate
    revision: int = 0


class SessionWindows:
    """The sessions of one group, which lie apart; see `firing.GroupWindows`."""

    __slots__ = ("_changed", "_sessions", "_shape", "due")

    def __init__(self, shape: SessionShape) -> None:
        self._shape = shape
        self._sessions: list[_Session] = []
        self._changed: set[int] = set()
        self.due = FOREVER

    def add(self, event_ms: int, value: float, position: Position, watermark: int) -> tuple[list[Fired], bool]:
        """Take in a record; what sessions that had fired say anew, and whether it is too late for any.

        It may bring sessions together: those that had fired are taken back, and the one they become fires in its time.
        """
        end = event_ms + self._shape.gap
        met = [session for session in self._sessions if session.start <= end and event_ms <= session.end]
        joined = _Session(
            min([event_ms, *(session.start for session in met)]), max([end, *(session.end for session in met)]),
            Aggregate(with_quantiles=self._shape.with_quantiles),
        )  # fmt: skip
        if self._is_forgotten(joined, watermark):
            return [], True
        fired = []
        for session in met:
            if (session.start, session.end) == (joined.start, joined.end):
                joined.revision = session.revision
            elif session.revision:
                fired.append(Fired(session.start, session.end, None, ResultKind.RETRACT, session.revision + 1))
            joined.aggregate.merge(session.aggregate)
        joined.aggregate.add(value, position)
        self._changed.update([joined.start, *(session.start for session in met)])
        rest = [session for session in self._sessions if session not in met]
        self._sessions = sorted([*rest, joined], key=lambda session: session.start)
        if joined.revision:
            fired.append(_say(joined))
        self.due = min(self.due, self._due(joined))
        return fired, False

    def fire(self, watermark: int) -> Iterator[Fired]:
        """What fires when the watermark is there; what is too old for any record is forgotten."""
        if watermark < self.due:
            return
        for session in self._sessions:
            if not session.revision and watermark >= session.end:
                self._changed.add(session.start)
                yield _say(session)
        self._changed.update(session.start for session in self._sessions if self._is_forgotten(session, watermark))
        self._sessions = [session for session in self._sessions if not self._is_forgotten(session, watermark)]
        self.due = min(map(self._due, self._sessions), default=FOREVER)

    def open_at(self, watermark: int) -> int:
        """How many windows have records, and have not fired."""
        return sum(not session.revision for session in self._sessions)

    def is_empty(self) -> bool:
        """Whether nothing is remembered."""
        return not self._sessions

    def head(self) -> None:
        """Nothing."""
        return

    def parts(self) -> list[Part]:
        """The sessions."""
        return [_part(session) for session in self._sessions]

    def take_changed_parts(self) -> tuple[list[Part], set[int]]:
        """The sessions that differ from when this was last called; and where some were that went."""
        changed, self._changed = self._changed, set()
        there = [session for session in self._sessions if session.start in changed]
        return [_part(session) for session in there], changed - {session.start for session in there}

    @classmethod
    def from_state(cls, shape: SessionShape, parts: list[Part]) -> Self:
        """What had these."""
        self = cls(shape)
        self._sessions = [
            _Session(start, end, Aggregate.from_state(saved), revision) for start, end, revision, *saved in parts
        ]
        self._sessions.sort(key=lambda session: session.start)
        self.due = min(map(self._due, self._sessions), default=FOREVER)
        return self

    def _is_forgotten(self, session: _Session, watermark: int) -> bool:
        return self._shape.lateness is not None and watermark >= session.end + self._shape.lateness

    def _due(self, session: _Session) -> int:
        """The watermark at which a session next fires or is forgotten."""
        if not session.revision:
            return session.end
        return FOREVER if self._shape.lateness is None else session.end + self._shape.lateness


def _part(session: _Session) -> Part:
    return [session.start, session.end, session.revision, *session.aggregate.to_state()]


def _say(session: _Session) -> Fired:
    session.revision += 1
    return Fired(session.start, session.end, session.aggregate, kind_of(session.revision), session.revision)
