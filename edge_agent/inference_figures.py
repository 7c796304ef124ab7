"""Figures of inference: for the device's statistics, and for Prometheus."""

from __future__ import annotations

import time
from collections import deque
from datetime import datetime
from typing import Any

import numpy as np
from prometheus_client import Counter, Histogram

from primespark.core.clock import to_rfc3339, utc_now
from primespark.inference.models import ServedModel

_KEPT_LATENCIES = 2000
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5, 5)

REQUESTS = Counter("primespark_inference_requests_total", "Inferences.", ["model", "device", "outcome"])
DURATION = Histogram("primespark_inference_duration_seconds", "Decoding and inference.", ["model"], buckets=_BUCKETS)


class InferenceFigures:
    """What was inferred since the start; used on one event loop."""

    def __init__(self) -> None:
        self.frames = self.requests = 0
        self._first_result_at: datetime | None = None
        self._frame_ms: deque[float] = deque(maxlen=_KEPT_LATENCIES)
        self._request_ms: deque[float] = deque(maxlen=_KEPT_LATENCIES)

    def frame_seen(self, latency_ms: float) -> None:
        """A frame of a camera has its result."""
        self.frames += 1
        self._frame_ms.append(latency_ms)
        self._result_came()

    def sound_heard(self) -> None:
        """A window of a microphone has its result."""
        self._result_came()

    def request_came(self) -> None:
        """A caller asks; what is answered from memory, or not at all, counts too."""
        self.requests += 1

    def request_answered(self, latency_ms: float) -> None:
        """A caller's request ran and has its result."""
        self._request_ms.append(latency_ms)
        self._result_came()

    def describe(self) -> dict[str, Any]:
        """Counts, and percentiles of the last 2000 latencies: of frames, of requests where there were no frames."""
        latencies = list(self._frame_ms or self._request_ms)
        p50, p95 = (float(x) for x in np.percentile(latencies, (50, 95))) if latencies else (None, None)
        return {
            "frames": self.frames,
            "requests": self.requests,
            "first_result_at": to_rfc3339(self._first_result_at) if self._first_result_at else None,
            "p50_ms": p50,
            "p95_ms": p95,
        }

    def _result_came(self) -> None:
        if self._first_result_at is None:
            self._first_result_at = utc_now()


def count_run(by: ServedModel, outcome: str, started: float) -> float:
    """Seconds since `started`, of `time.perf_counter()`, told to the metrics."""
    seconds = time.perf_counter() - started
    REQUESTS.labels(by.name, by.device, outcome).inc()
    DURATION.labels(by.name).observe(seconds)
    return seconds
