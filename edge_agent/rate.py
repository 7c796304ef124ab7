"""A token bucket."""

from __future__ import annotations

from collections.abc import Callable


class Rate:
    """So much a second, and at most so much at once; begins full.

    Args:
        per_s: Units a second.
        burst: Most units at once.
        now_s: A monotonic clock.
    """

    def __init__(self, per_s: float, burst: float, now_s: Callable[[], float]) -> None:
        self._per_s = per_s
        self._burst = burst
        self._now_s = now_s
        self._tokens = burst
        self._at = now_s()

    def available(self) -> int:
        """Whole units that may be spent now."""
        self._refill()
        return max(int(self._tokens), 0)

    def spend(self, units: float) -> None:
        """Spend; below nothing, what comes after waits."""
        self._refill()
        self._tokens -= units

    def wait_s(self, units: float) -> float:
        """How long until `units` may be spent."""
        self._refill()
        return max((units - self._tokens) / self._per_s, 0.0)

    def _refill(self) -> None:
        now = self._now_s()
        self._tokens = min(self._tokens + (now - self._at) * self._per_s, self._burst)
        self._at = now
