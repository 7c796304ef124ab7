"""A tier that may fail, made one that only misses: a time limit, a circuit breaker, counts, and a memory of doubts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from edge_agent.cache.breaker import CircuitBreaker
from edge_agent.cache.tiers import CacheTier, Tier, TierFigures, TierState
from edge_agent.cache.values import Stored
from primespark.core.logging import get_logger
from primespark.errors import PrimeSparkError

Answer = TypeVar("Answer")

MAX_DOUBTS = 20_000
_OPEN_TIMEOUT_S = 5.0
# To empty a large tier takes its time, and nobody's get waits for it.
_CLEAR_TIMEOUT_S = 60.0

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Failed:
    """What `_call` answers where the tier did not."""

    cause: str


@dataclass(slots=True)
class TierCounts:
    """Since the start."""

    hits: int = 0
    misses: int = 0
    failures: int = 0


class GuardedTier:
    """One tier of the manager; no call raises, none takes much longer than the limit.

    A write or removal that failed leaves in doubt what the tier holds under its key. Such a key is a miss until it
    could be removed; of too many, the whole tier is, until it could be cleared.

    Args:
        name: Of the tier.
        tier: It.
        timeout_s: Of one call.
        breaker: When to leave it alone.
    """

    def __init__(self, name: CacheTier, tier: Tier, timeout_s: float, breaker: CircuitBreaker | None = None) -> None:
        self.name = name
        self.counts = TierCounts()
        self.cause = ""
        self._tier = tier
        self._timeout_s = timeout_s
        self._breaker = breaker or CircuitBreaker()
        self._is_open = self._is_closed = False
        self._doubts: set[str] = set()
        self._is_all_in_doubt = False
        self._clearing: asyncio.Task[int | None] | None = None

    @property
    def state(self) -> TierState:
        """How it stands."""
        if self._breaker.is_open or (self.cause and not self._is_open):
            return TierState.FAILING
        return TierState.READY if self._is_open else TierState.CLOSED

    async def open(self) -> None:
        """Open it now, with more time than a get has; where that fails, later calls try again."""
        await self._call(self._nothing, max(self._timeout_s, _OPEN_TIMEOUT_S))

    async def get(self, key: str) -> Stored | None:
        """A hit, or a miss for whatever reason."""
        found = await self._get(key)
        if found is None:
            self.counts.misses += 1
        else:
            self.counts.hits += 1
        return found

    async def set(self, key: str, stored: Stored) -> bool:
        """Whether the tier holds the value now."""
        answer = await self._call(lambda: self._tier.set(key, stored))
        self._settle(key, is_sure=not isinstance(answer, Failed))
        return answer is True

    async def delete(self, key: str) -> None:
        """Hold nothing under this key, or doubt it."""
        answer = await self._call(lambda: self._tier.delete(key))
        self._settle(key, is_sure=not isinstance(answer, Failed))

    async def clear(self) -> int | None:
        """Hold nothing, or doubt all; how many there were, None where it failed."""
        answer = await self._call(self._tier.clear, max(self._timeout_s, _CLEAR_TIMEOUT_S))
        self._is_all_in_doubt = isinstance(answer, Failed)
        self._doubts.clear()
        return None if isinstance(answer, Failed) else answer

    async def figures(self) -> TierFigures:
        """What it holds, asked anew where it answers."""
        await self._call(self._tier.refresh)
        return self.last_figures()

    def last_figures(self) -> TierFigures:
        """What it holds, as last known."""
        return self._tier.figures()

    async def close(self) -> None:
        """End it."""
        self._is_closed = True
        if self._clearing is not None:
            self._clearing.cancel()
        self._is_open = False
        self.cause = ""
        try:
            await self._tier.close()
        except (PrimeSparkError, OSError) as error:
            log.warning("cache_tier_not_closed", tier=self.name, cause=str(error))

    async def _get(self, key: str) -> Stored | None:
        if self._is_all_in_doubt:
            if self._clearing is None or self._clearing.done():
                self._clearing = asyncio.create_task(self.clear(), name=f"cache-{self.name}-clear")
            return None
        if key in self._doubts:
            await self.delete(key)
            return None
        answer = await self._call(lambda: self._tier.get(key))
        return None if isinstance(answer, Failed) else answer

    def _settle(self, key: str, is_sure: bool) -> None:
        if is_sure:
            self._doubts.discard(key)
        elif not self._is_all_in_doubt:
            self._doubts.add(key)
            if len(self._doubts) > MAX_DOUBTS:
                self._doubts.clear()
                self._is_all_in_doubt = True

    async def _call(self, question: Callable[[], Awaitable[Answer]], timeout_s: float | None = None) -> Answer | Failed:
        if self._is_closed or not self._breaker.admits():
            return Failed(self.cause)
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                if not self._is_open:
                    await self._tier.open()
                    self._is_open = True
                answer = await question()
        except TimeoutError:
            return self._failed(f"no answer within {timeout_s or self._timeout_s:g} s", "")
        except PrimeSparkError as error:
            return self._failed(error.message, error.remedy)
        except BaseException:
            # Cancelled, or a fault of ours: either way nobody may wait for this attempt.
            self._breaker.failed()
            raise
        if self.cause:
            log.info("cache_tier_answers", tier=self.name)
            self.cause = ""
        self._breaker.succeeded()
        return answer

    def _failed(self, cause: str, remedy: str) -> Failed:
        self.counts.failures += 1
        if not self.cause:
            log.warning("cache_tier_failed", tier=self.name, cause=cause, remedy=remedy)
        self.cause = cause
        if self._breaker.failed():
            # What comes after the pause begins with opening it again.
            self._is_open = False
        return Failed(cause)

    async def _nothing(self) -> None:
        pass
