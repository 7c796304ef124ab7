"""Where a request runs when accelerator and processor serve the same model: by queue and load, with hysteresis.

The accelerator answers alone until twice as many requests are there as keep it busy, and the processor idles. From then
on the processor takes some too, until no more are there than that, or it is busy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import StrEnum

import psutil

_LOAD_AGE_S = 1.0


class Reason(StrEnum):
    """Why a request runs where it does: on the accelerator as it should, or on the processor."""

    PREFERRED = "preferred"
    FAULT = "fault"
    QUEUE = "queue"


class ProcessorLoad:
    """Share of the processor in use, all cores together, over about the last second; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken_at = time.monotonic()
        self._busy, self._total = _busy_and_total()
        self._share = 0.0

    def __call__(self) -> float:
        """0..1."""
        with self._lock:
            now = time.monotonic()
            if now - self._taken_at >= _LOAD_AGE_S:
                busy, total = _busy_and_total()
                if total > self._total:
                    self._share = (busy - self._busy) / (total - self._total)
                self._taken_at, self._busy, self._total = now, busy, total
            return self._share


class Overflow:
    """Whether the processor helps the accelerator; safe to share between threads.

    Args:
        depth: Requests that wait or run.
        enough: As many keep the accelerator busy.
        load: Share of the processor in use.
        idle_below: It begins to help under this share...
        busy_above: ...and ends above this one, its own help included.
    """

    def __init__(
        self,
        depth: Callable[[], int],
        enough: int,
        load: Callable[[], float],
        idle_below: float = 0.5,
        busy_above: float = 0.95,
    ) -> None:
        self._depth = depth
        self._enough = enough
        self._load = load
        self._idle_below = idle_below
        self._busy_above = busy_above
        self._helps = False

    def helps(self) -> bool:
        """Whether the next request may go to the processor."""
        depth = self._depth()
        if self._helps:
            self._helps = depth > self._enough and self._load() <= self._busy_above
        else:
            self._helps = depth >= 2 * self._enough and self._load() < self._idle_below
        return self._helps


def _busy_and_total() -> tuple[float, float]:
    times = psutil.cpu_times()
    total = float(sum(times))
    return total - times.idle - getattr(times, "iowait", 0.0), total
