"""L0: values in the device's own process, for coroutines and threads alike; a hit awaits nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from edge_agent.cache.policies import MAX_USES, EvictingMap, S3FifoMap, make_map
from edge_agent.cache.tiers import TierFigures
from edge_agent.cache.values import ENTRY_BYTES, Stored
from primespark.core.cache_settings import CachePolicy

# One value must not push out a whole working set.
_LARGEST_SHARE = 8


class _Held:
    """A value that is JSON or ends, on the tier's clock; others lie in the map as they are."""

    __slots__ = ("data", "ends_at", "is_json")

    def __init__(self, data: bytes, is_json: bool, ends_at: float | None) -> None:
        self.data = data
        self.is_json = is_json
        self.ends_at = ends_at


class ProcessTier:
    """A tier, and the synchronous cache behind it.

    Args:
        limit_bytes: Most bytes, counting keys and bookkeeping; a value over an eighth of it is not held.
        policy: What to let go first.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        limit_bytes: int,
        policy: CachePolicy = CachePolicy.S3FIFO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self._clock = clock
        self._lock = threading.RLock()
        self._use(make_map(policy, limit_bytes))
        # A hit of S3-FIFO and of `ttl` reorders nothing, so threads may read while another writes.
        is_plain = policy in (CachePolicy.S3FIFO, CachePolicy.TTL)
        self._reading: AbstractContextManager[object] | None = None if is_plain else self._lock
        self.hits = 0
        self.misses = 0

    def get_bytes(self, key: str) -> bytes | None:
        """The bytes under this key, JSON as its text, or a miss; from any thread."""
        try:
            node = self._nodes[key]
        except KeyError:
            stored = self.get_now(key)
            return None if stored is None else stored.data
        held = node.value
        if type(held) is not bytes:
            stored = self.get_now(key)
            return None if stored is None else stored.data
        # The hit of S3-FIFO in line: a call would cost as much as all the rest.
        if node.uses < MAX_USES:
            node.uses += 1
        self.hits += 1
        return held

    def get_now(self, key: str) -> Stored | None:
        """`get` without waiting; from any thread."""
        with self._reading or nullcontext():
            held = self._find(key)
        if type(held) is bytes:
            self.hits += 1
            return Stored(held)
        return self._unpack(key, held)

    def holds(self, key: str) -> bool:
        """Something lies under this key, expired or not; counts as no use."""
        return key in self._map

    def set_now(self, key: str, stored: Stored) -> bool:
        """`set` without waiting; from any thread."""
        ends_at = None if stored.ttl_s is None else self._clock() + stored.ttl_s
        weight = len(stored.data) + len(key) + ENTRY_BYTES
        with self._lock:
            if weight * _LARGEST_SHARE > self._map.capacity:
                self._map.pop(key)
                return False
            is_plain = ends_at is None and not stored.is_json
            held = stored.data if is_plain else _Held(stored.data, stored.is_json, ends_at)
            return self._map.put(key, held, weight, float("inf") if ends_at is None else ends_at)

    def delete_now(self, key: str) -> None:
        """`delete` without waiting; from any thread."""
        with self._lock:
            self._map.pop(key)

    async def open(self) -> None:
        """Always ready."""

    async def get(self, key: str) -> Stored | None:
        """The value with the time it may yet be served, or a miss."""
        return self.get_now(key)

    async def set(self, key: str, stored: Stored) -> bool:
        """Hold a value; False where it is too large."""
        return self.set_now(key, stored)

    async def delete(self, key: str) -> None:
        """Hold nothing under this key."""
        self.delete_now(key)

    async def clear(self) -> int:
        """Hold nothing; how many there were."""
        with self._lock:
            count, evictions = len(self._map), self._map.evictions
            self._use(make_map(self.policy, self._map.capacity))
            self._map.evictions = evictions
        return count

    async def refresh(self) -> None:
        """Nobody else to ask."""

    def figures(self) -> TierFigures:
        """What it holds now; from any thread."""
        held = self._map
        return TierFigures(len(held), held.weight, held.capacity, self.policy, held.evictions)

    async def close(self) -> None:
        """Let go of everything."""
        await self.clear()

    def _use(self, entries: EvictingMap[bytes | _Held]) -> None:
        self._map = entries
        self._find = entries.get
        # Other policies' hits are not in line: of these nothing is found there.
        self._nodes = entries.nodes if isinstance(entries, S3FifoMap) else {}

    def _unpack(self, key: str, held: bytes | _Held | None) -> Stored | None:
        """What is no plain bytes: the value with the time it may yet be served, or a miss."""
        if not isinstance(held, _Held):
            self.misses += 1
            return None
        ttl_s = None if held.ends_at is None else held.ends_at - self._clock()
        if ttl_s is not None and ttl_s <= 0:
            self.misses += 1
            with self._lock:
                # Another thread may have put a new value there meanwhile.
                if self._find(key) is held:
                    self._map.pop(key)
            return None
        self.hits += 1
        return Stored(held.data, held.is_json, ttl_s)
