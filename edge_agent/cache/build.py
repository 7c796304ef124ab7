"""The cache that the settings describe."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from edge_agent.cache.disk_tier import DiskTier
from edge_agent.cache.guard import GuardedTier
from edge_agent.cache.manager import EdgeCacheManager
from edge_agent.cache.memory_tier import ProcessTier
from edge_agent.cache.nas_tier import NasTier
from edge_agent.cache.redis_tier import RedisTier
from edge_agent.cache.store import EntryStore
from edge_agent.cache.tiers import CacheTier
from primespark.core.cache_settings import EdgeCacheSettings

_SHARE_OF_MEMORY = 10


def build_cache(settings: EdgeCacheSettings, folder: Path, device_id: str) -> EdgeCacheManager:
    """A manager with the tiers that are set up; nothing is opened yet.

    Args:
        settings: Tier by tier.
        folder: State of the cache: the disk's entries, and the index of the NAS's.
        device_id: Of the device.
    """
    most_memory = psutil.virtual_memory().total // _SHARE_OF_MEMORY
    l0 = ProcessTier(min(settings.l0.limit_bytes, most_memory), settings.l0.policy)
    tiers = []
    memory, disk, nas = settings.memory, settings.disk, settings.nas
    if memory.url is not None and memory.limit_bytes:
        tier = RedisTier(memory, min(memory.limit_bytes, most_memory), device_id)
        tiers.append(GuardedTier(CacheTier.MEMORY, tier, memory.timeout_s))
    if disk.limit_bytes:
        own = disk.directory or folder
        store = EntryStore(own / "disk.db", own / "values", disk.limit_bytes, disk.policy)
        tiers.append(GuardedTier(CacheTier.DISK, DiskTier(store), disk.timeout_s))
    if nas.directory is not None and nas.limit_bytes:
        remote = NasTier(folder / "nas.db", nas.directory, device_id, nas.limit_bytes, nas.policy)
        tiers.append(GuardedTier(CacheTier.NAS, remote, nas.timeout_s))
    return EdgeCacheManager(l0, tiers)


@contextlib.asynccontextmanager
async def running(cache: EdgeCacheManager | None) -> AsyncIterator[None]:
    """The cache is opened, without waiting for it, and closed at the end."""
    if cache is None:
        yield
        return
    opening = asyncio.create_task(cache.initialize(), name="cache-open")
    try:
        yield
    finally:
        await opening
        await cache.close()
