"""The clock of a run: from its first message to its last."""

from __future__ import annotations

import json
import resource
import sys
import time


class Run:
    """Begins with the first call of `begin`; later ones change nothing."""

    def __init__(self) -> None:
        self._started: tuple[float, float] | None = None

    def begin(self) -> None:
        """A message is there."""
        if self._started is None:
            self._started = time.monotonic(), _cpu_seconds()

    def end(self, records: int, windows: int) -> None:
        """Print what was measured."""
        if self._started is None:
            raise SystemExit("no message came")
        seconds, cpu_seconds = time.monotonic() - self._started[0], _cpu_seconds() - self._started[1]
        report = {"records": records, "windows": windows, "seconds": seconds, "cpu_seconds": cpu_seconds}
        sys.stdout.write("\n" + json.dumps(report) + "\n")
        sys.stdout.flush()


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
