"""How fast something has gone lately."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic

WINDOW_S = 60.0
_STEP_S = 1.0


class Pace:
    """Units a second over the last minute, or since the first where that is less.

    Args:
        now_s: A monotonic clock.
    """

    def __init__(self, now_s: Callable[[], float] = monotonic) -> None:
        self._now_s = now_s
        self._began_s = now_s()
        # Seconds in which something came, and how much: at most as many as the window has.
        self._counts: deque[tuple[float, int]] = deque()

    def add(self, units: int) -> None:
        """Count units that are done."""
        now = self._now_s()
        if self._counts and now - self._counts[-1][0] < _STEP_S:
            at, count = self._counts.pop()
            self._counts.append((at, count + units))
        else:
            self._counts.append((now, units))
        self._forget(now)

    def per_s(self) -> float:
        """The pace of now."""
        now = self._now_s()
        self._forget(now)
        passed_s = min(max(now - self._began_s, _STEP_S), WINDOW_S)
        return sum(count for _, count in self._counts) / passed_s

    def _forget(self, now: float) -> None:
        while self._counts and self._counts[0][0] <= now - WINDOW_S:
            self._counts.popleft()
