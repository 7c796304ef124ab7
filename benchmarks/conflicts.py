"""What it costs to decide between two versions of a small document, without the store."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

from benchmarks.result import Result
from primespark.sync.documents import Document, write
from primespark.sync.strategies import Strategy, resolve

_ROUNDS = 20_000
_LIMIT_US = 50.0


def run() -> Iterator[Result]:
    """The 99th percentile for each strategy that decides by itself."""
    cloud, edge = _version("cloud", 1), _version("edge-1", 2)
    for strategy in (Strategy.MERGE, Strategy.LATEST_WINS, Strategy.CLOUD_WINS, Strategy.EDGE_WINS):
        seconds = _percentile_99(strategy, cloud, edge)
        yield Result(
            area="conflicts",
            name=f"{strategy} of two versions of 6 leaves, 99th percentile",
            value=seconds * 1e6,
            unit="us",
            against="the promised limit",
            reference=_LIMIT_US,
            ratio=seconds * 1e6 / _LIMIT_US,
            goal="<= 1",
            ok=seconds * 1e6 <= _LIMIT_US,
        )


def _version(replica: str, number: int) -> Document:
    value = {"light": {"red": number, "green": 2, "blue": 3}, "name": replica, "zones": [1, 2, number], "on": True}
    return write(Document(), value, replica=replica, counter=number, hlc=f"{number:013d}-0000-{replica}")


def _percentile_99(strategy: Strategy, cloud: Document, edge: Document) -> float:
    taken = []
    gc.collect()
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        resolve(strategy, cloud, edge)
        taken.append(time.perf_counter() - started)
    return sorted(taken)[int(_ROUNDS * 0.99)]
