"""Pauses between attempts: doubling, with full jitter, cut short when there is reason to try at once."""

from __future__ import annotations

import asyncio
import contextlib
import random


class Backoff:
    """Pauses of one loop.

    Args:
        base_s: Bound of the first pause.
        max_s: Longest pause, and the longest that the other side may ask for.
    """

    def __init__(self, base_s: float, max_s: float) -> None:
        self._base_s = base_s
        self._max_s = max_s
        self._failures = 0
        self._wake = asyncio.Event()

    def next_pause_s(self, at_least_s: float | None = None) -> float:
        """Count a failure; the pause after it, drawn from [0, bound) so that a fleet does not return all at once.

        Args:
            at_least_s: What the other side asks for. It may have told a whole fleet the same, so the jitter comes on
                top of it, and is not smaller than it: the pause may be twice as long.
        """
        bound = min(self._max_s, self._base_s * 2 ** min(self._failures, 30))
        self._failures += 1
        least = min(at_least_s or 0.0, self._max_s)
        return least + random.uniform(0.0, max(least, min(bound, self._max_s - least)))  # noqa: S311 (jitter is no secret)

    async def pause(self, at_least_s: float | None = None) -> None:
        """Wait after a failure, or until `wake`."""
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), self.next_pause_s(at_least_s))

    def succeeded(self) -> None:
        """Begin with short pauses again."""
        self._failures = 0

    def wake(self) -> None:
        """End a pause that is under way."""
        self._wake.set()
