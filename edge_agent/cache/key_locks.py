"""One at a time for each key, and now and then one alone for all of them; on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class KeyLocks:
    """Locks that exist while they are held or waited for."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self._door = asyncio.Lock()
        self._nobody = asyncio.Event()
        self._nobody.set()

    @contextlib.asynccontextmanager
    async def one(self, key: str) -> AsyncIterator[None]:
        """Nobody else is at work on this key, or on all."""
        async with self._door:
            lock, holders = self._locks.get(key) or (asyncio.Lock(), 0)
            self._locks[key] = lock, holders + 1
            self._nobody.clear()
        try:
            async with lock:
                yield
        finally:
            _, holders = self._locks.pop(key)
            if holders > 1:
                self._locks[key] = lock, holders - 1
            elif not self._locks:
                self._nobody.set()

    @contextlib.asynccontextmanager
    async def all(self) -> AsyncIterator[None]:
        """Nobody else is at work; who comes waits."""
        async with self._door:
            await self._nobody.wait()
            yield
