"""What a worker counts of its work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Statistics:
    """Counts since start, and the last snapshot."""

    messages: int = 0
    rows: int = 0
    routed: int = 0
    results: int = 0
    poison: int = 0
    gaps: int = 0
    failures: int = 0
    rebalances: int = 0
    snapshots: int = 0
    snapshot_bytes: int = 0
    snapshots_refused: int = 0
    snapshot_at: float | None = None
