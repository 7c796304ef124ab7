"""What tests of several rooms share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

# Set by `make prove`.
IS_PROOF = os.environ.get("PROVE") == "1"


def rounds(short: int, proof: int) -> int:
    """How often: `proof` times under `make prove`, else `short`; for tests marked `prove`."""
    return proof if IS_PROOF else short


def wait_until(predicate: Callable[[], object], timeout_s: float = 10.0, interval_s: float = 0.02) -> None:
    """Return as soon as `predicate()` is true; fail when it is not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"not true within {timeout_s} s")
        time.sleep(interval_s)
