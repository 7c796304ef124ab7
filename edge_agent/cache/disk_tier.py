"""The tier on the device's disk: an `EntryStore` on threads of its own, so that no disk holds up the event loop."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import TypeVar

from edge_agent.cache.store import Attempt, EntryStore
from edge_agent.cache.tiers import TierFigures
from edge_agent.cache.values import Stored
from edge_agent.cache.workers import Workers
from primespark.errors import UnavailableError

Answer = TypeVar("Answer")

_CLOSE_TIMEOUT_S = 3.0


class DiskTier:
    """A tier of files and an index.

    Args:
        store: The entries; nobody else's.
        name: Of the threads.
        threads: Their number.
    """

    def __init__(self, store: EntryStore, name: str = "cache-disk", threads: int = 3) -> None:
        self._store = store
        self._name, self._threads = name, threads
        self._workers: Workers | None = None
        self._sweeping: asyncio.Task[object] | None = None

    async def open(self) -> None:
        """Open or begin the store; files that no entry names are removed meanwhile."""
        if self._workers is None:
            self._workers = Workers(self._name, self._threads)
        await self._run(self._store.open)
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep(), name=f"{self._name}-sweep")

    async def get(self, key: str) -> Stored | None:
        """The value with the time it may yet be served, or a miss."""
        return await self._run(lambda: self._store.get(key))

    async def set(self, key: str, stored: Stored) -> bool:
        """Hold a value; False where it does not fit."""
        attempt = Attempt()
        try:
            return await self._run(lambda: self._store.set(key, stored, attempt))
        finally:
            # Where the caller has given up, a thread may still be at it.
            attempt.is_over = True

    async def delete(self, key: str) -> None:
        """Hold nothing under this key."""
        await self._run(lambda: self._store.delete(key))

    async def clear(self) -> int:
        """Hold nothing; how many there were."""
        return await self._run(self._store.clear)

    async def refresh(self) -> None:
        """Nobody else to ask."""

    def figures(self) -> TierFigures:
        """What it holds now."""
        return self._store.figures()

    async def close(self) -> None:
        """End; a thread that hangs is left behind."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        if self._workers is None:
            return
        workers, self._workers = self._workers, None
        if await workers.close(_CLOSE_TIMEOUT_S):
            await asyncio.to_thread(self._store.close)

    async def _run(self, call: Callable[[], Answer]) -> Answer:
        if self._workers is None:
            raise UnavailableError("the cache is not open", code="cache_closed")
        try:
            return await self._workers.run(call)
        except (OSError, sqlite3.Error) as error:
            self._store.index.note(error)
            raise UnavailableError(f"{self._name}: {error}", remedy="check the disk", code="cache_failed") from None

    async def _sweep(self) -> None:
        try:
            await self._run(self._store.sweep)
        except UnavailableError:
            # What it could not remove stays for the next start.
            return
