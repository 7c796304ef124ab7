"""When to leave a tier alone that fails, and when to ask it again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

FAILURES_TO_OPEN = 3
_BASE_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


class CircuitBreaker:
    """Closed until three failures in a row; then one attempt after each pause, which doubles while they fail.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._closed_until: float | None = None
        self._pause_s = _BASE_PAUSE_S
        self._is_trying = False

    @property
    def is_open(self) -> bool:
        """Failing: most calls are not let through."""
        return self._closed_until is not None

    def admits(self) -> bool:
        """Whether this call may be made; whoever makes it reports how it went."""
        if self._closed_until is None:
            return True
        if self._is_trying or self._clock() < self._closed_until:
            return False
        self._is_trying = True
        return True

    def succeeded(self) -> None:
        """A call was answered."""
        self._failures = 0
        self._pause_s = _BASE_PAUSE_S
        self._closed_until = None
        self._is_trying = False

    def failed(self) -> bool:
        """A call failed; True when that is what opened the breaker."""
        self._failures += 1
        was_open, was_trying, self._is_trying = self.is_open, self._is_trying, False
        if was_open and not was_trying:
            # Begun before it opened.
            return False
        if self._failures < FAILURES_TO_OPEN:
            return False
        # Jitter, so that a fleet does not return to one NAS all at once.
        self._closed_until = self._clock() + self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        return not was_open
