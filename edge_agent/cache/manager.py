"""The device's cache: one question for all tiers, the answer carried to the faster ones; it loses, it never lies.

What `set` answered for is what `get` answers until it expires, is replaced or is let go: a value is removed from every
other tier before it is held in its own, and work on one key is done one at a time. A tier that fails costs a miss.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from edge_agent.cache.guard import GuardedTier
from edge_agent.cache.key_locks import KeyLocks
from edge_agent.cache.memory_tier import ProcessTier
from edge_agent.cache.metrics import watch
from edge_agent.cache.tiers import CacheTier, TierFigures, TierState
from edge_agent.cache.values import Stored, check_key, decode, encode
from primespark.errors import IntegrityError

# Values that are being carried to faster tiers; beyond, they stay where they are until the next hit.
MAX_PROMOTIONS = 64


@dataclass(frozen=True, slots=True)
class TierReport:
    """One tier as people see it."""

    tier: CacheTier
    state: TierState
    cause: str
    figures: TierFigures
    hits: int
    misses: int
    failures: int


class EdgeCacheManager:
    """Tiers under one roof. Until `initialize`, and after `close`, only L0 is there.

    Args:
        l0: Values in the process.
        tiers: The others, the fastest first.
    """

    def __init__(self, l0: ProcessTier, tiers: Sequence[GuardedTier] = ()) -> None:
        self.l0 = l0
        self.tiers = tuple(tiers)
        self._open: tuple[GuardedTier, ...] = ()
        self._locks = KeyLocks()
        self._walks: dict[str, asyncio.Future[Stored | None]] = {}
        self._computing: dict[str, asyncio.Task[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._promotions = 0
        watch(self)

    async def initialize(self) -> None:
        """Open the tiers; one that does not open is a miss until it does."""
        self._open = self.tiers
        await asyncio.gather(*(tier.open() for tier in self.tiers))

    async def close(self) -> None:
        """Finish what is under way and end."""
        for computing in self._computing.values():
            computing.cancel()
        await self.settle()
        self._open = ()
        await asyncio.gather(*(tier.close() for tier in self.tiers))

    async def settle(self) -> None:
        """Wait for values that are being carried to faster tiers."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def get(self, key: str, default: Any = None) -> Any:
        """The value from the fastest tier that has it, else `default`.

        Raises:
            InvalidInputError: Code `bad_cache_key`.
        """
        stored = self.l0.get_now(check_key(key)) or await self._find(key)
        if stored is None:
            return default
        try:
            return decode(stored)
        except IntegrityError:
            await self.delete(key)
            return default

    async def set(
        self, key: str, value: Any, tier: CacheTier = CacheTier.MEMORY, ttl: float | None = None
    ) -> tuple[CacheTier, ...]:
        """Hold a value in L0 and in `tier`, and in no other.

        Args:
            key: Its name.
            value: bytes or JSON, see `values.encode`.
            tier: Where it shall lie; a tier that is not set up takes nothing.
            ttl: Seconds it may be served; without end when None.

        Returns:
            The tiers that hold it now.

        Raises:
            InvalidInputError, TooLargeError: Key, value or ttl cannot be taken.
        """
        stored = encode(value, ttl)
        async with self._locks.one(check_key(key)):
            others = [other.delete(key) for other in self._open if other.name is not CacheTier(tier)]
            self.l0.delete_now(key)
            await asyncio.gather(*others)
            took = [target.name for target in self._open if target.name is tier and await target.set(key, stored)]
            return (*((CacheTier.L0,) if self.l0.set_now(key, stored) else ()), *took)

    async def get_or_compute(
        self,
        key: str,
        compute: Callable[[], Awaitable[Any]],
        tier: CacheTier = CacheTier.MEMORY,
        ttl: float | None = None,
    ) -> Any:
        """The value, computed and held where it is not there yet; callers of one key share one computation.

        Args:
            key: Its name.
            compute: Makes the value; what it raises goes to all who wait, and nothing is held.
            tier: As in `set`.
            ttl: As in `set`.
        """
        missing = object()
        found = await self.get(key, missing)
        if found is not missing:
            return found
        task = self._computing.get(key)
        if task is None:
            task = asyncio.create_task(self._compute(key, compute, tier, ttl), name="cache-compute")
            self._computing[key] = task
            task.add_done_callback(lambda done: self._computed(key, done))
        return await asyncio.shield(task)

    async def delete(self, key: str) -> None:
        """Hold nothing under this key."""
        async with self._locks.one(check_key(key)):
            self.l0.delete_now(key)
            await asyncio.gather(*(tier.delete(key) for tier in self._open))

    async def clear(self, tier: CacheTier | None = None) -> dict[CacheTier, int | None]:
        """Empty one tier, or all; how many entries each had, None where it cannot tell or failed."""
        async with self._locks.all():
            counts: dict[CacheTier, int | None] = {}
            if tier in (None, CacheTier.L0):
                counts[CacheTier.L0] = await self.l0.clear()
            chosen = [held for held in self._open if tier in (None, held.name)]
            numbers = await asyncio.gather(*(held.clear() for held in chosen))
            counts |= {held.name: number for held, number in zip(chosen, numbers, strict=True)}
            return counts

    def get_bytes(self, key: str) -> bytes | None:
        """Bytes of L0 alone, without waiting, from any thread."""
        return self.l0.get_bytes(key)

    def set_bytes(self, key: str, data: bytes, ttl_s: float | None = None) -> bool:
        """Hold bytes in L0 alone, without waiting, from any thread; False where they are too many.

        For keys whose value never changes, such as digests: what other tiers hold under the key stays there.
        """
        return self.l0.set_now(key, Stored(data, is_json=False, ttl_s=ttl_s))

    async def report(self) -> list[TierReport]:
        """How each tier stands."""
        await asyncio.gather(*(tier.figures() for tier in self._open))
        return self.last_report()

    def last_report(self) -> list[TierReport]:
        """`report`, as last known."""
        l0 = TierReport(CacheTier.L0, TierState.READY, "", self.l0.figures(), self.l0.hits, self.l0.misses, failures=0)
        return [
            l0,
            *(
                TierReport(
                    tier.name, tier.state, tier.cause, tier.last_figures(), tier.counts.hits, tier.counts.misses,
                    tier.counts.failures,
                )
                for tier in self.tiers
            ),
        ]  # fmt: skip

    async def _find(self, key: str) -> Stored | None:
        if not self._open:
            return None
        found = self._walks.get(key)
        if found is None:
            found = self._walks[key] = asyncio.get_running_loop().create_future()
            self._start(self._walk(key, found))
        return await asyncio.shield(found)

    async def _walk(self, key: str, found: asyncio.Future[Stored | None]) -> None:
        """Ask one tier after the other; who waits is told before the value is carried on."""
        try:
            async with self._locks.one(key):
                # Whoever held the key before may have put a value here.
                stored, slower = (self.l0.get_now(key) if self.l0.holds(key) else None), 0
                if stored is None:
                    stored, slower = await self._ask(key)
                    if stored is not None:
                        self.l0.set_now(key, stored)
                self._walks.pop(key, None)
                _tell(found, stored)
                if stored is not None:
                    await self._promote(key, stored, self._open[:slower])
        finally:
            self._walks.pop(key, None)
            _tell(found, None)

    async def _ask(self, key: str) -> tuple[Stored | None, int]:
        for place, tier in enumerate(self._open):
            stored = await tier.get(key)
            if stored is not None:
                return stored, place
        return None, 0

    async def _promote(self, key: str, stored: Stored, faster: Sequence[GuardedTier]) -> None:
        if not faster or self._promotions >= MAX_PROMOTIONS:
            return
        self._promotions += 1
        try:
            for tier in faster:
                await tier.set(key, stored)
        finally:
            self._promotions -= 1

    async def _compute(
        self, key: str, compute: Callable[[], Awaitable[Any]], tier: CacheTier, ttl: float | None
    ) -> Any:
        value = await compute()
        await self.set(key, value, tier, ttl)
        return value

    def _computed(self, key: str, done: asyncio.Task[Any]) -> None:
        self._computing.pop(key, None)
        if not done.cancelled():
            # Told to whoever waits; if all have gone, nobody needs to hear of it.
            done.exception()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="cache-walk")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _tell(found: asyncio.Future[Stored | None], stored: Stored | None) -> None:
    if not found.done():
        found.set_result(stored)
