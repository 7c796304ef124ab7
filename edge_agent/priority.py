"""What goes first, in every queue of the device."""

from __future__ import annotations

from enum import StrEnum


class Priority(StrEnum):
    """Who goes first; within one priority, who came first."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


RANKS = {priority: rank for rank, priority in enumerate(Priority)}
