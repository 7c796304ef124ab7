"""What every tier is: asked for a key it answers or misses, and what breaks in it is told as one of our errors."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from edge_agent.cache.values import Stored


class CacheTier(StrEnum):
    """Where a value may lie, the fastest first."""

    L0 = "l0"
    MEMORY = "memory"
    DISK = "disk"
    NAS = "nas"


class TierState(StrEnum):
    """How a tier stands."""

    READY = "ready"
    # Failed of late; asked again after a pause.
    FAILING = "failing"
    # Not opened yet, or closed.
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class TierFigures:
    """What a tier holds; None where it cannot tell.

    Attributes:
        entries: Their number.
        bytes: What they take, keys and bookkeeping included.
        limit_bytes: Most bytes, as in force now.
        policy: What it lets go first.
        evictions: Entries let go for others.
    """

    entries: int | None
    bytes: int | None
    limit_bytes: int | None
    policy: str | None
    evictions: int | None


UNKNOWN_FIGURES = TierFigures(None, None, None, None, None)


class Tier(Protocol):
    """One place for values. Every call ends or raises TransientError; none changes what is true elsewhere."""

    async def open(self) -> None:
        """Be ready; again after a failure."""

    async def get(self, key: str) -> Stored | None:
        """The value with the time it may yet be served, or a miss."""

    async def set(self, key: str, stored: Stored) -> bool:
        """Hold a value instead of any under this key; False where it does not fit and nothing is held."""

    async def delete(self, key: str) -> None:
        """Hold nothing under this key."""

    async def clear(self) -> int | None:
        """Hold nothing; how many there were, if known."""

    async def refresh(self) -> None:
        """Make `figures` those of now, where somebody else must be asked."""

    def figures(self) -> TierFigures:
        """What it holds, as far as it is known here."""

    async def close(self) -> None:
        """End; what persists is kept."""
