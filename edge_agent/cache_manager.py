"""The cache as the specification has it: one manager of this process, its tiers, and the classes behind them.

cache = get_cache_manager()
await cache.initialize()
await cache.set("inference_result_123", result, tier=CacheTier.MEMORY, ttl=3600)
value = await cache.get("inference_result_123")
"""

from __future__ import annotations

from functools import cache

from edge_agent.cache import CacheTier, EdgeCacheManager, build_cache
from edge_agent.cache.disk_tier import DiskTier as DiskCacheManager
from edge_agent.cache.redis_tier import RedisTier as MemoryCacheManager
from primespark.core.paths import home
from primespark.core.settings import load_settings

__all__ = ["CacheTier", "DiskCacheManager", "EdgeCacheManager", "MemoryCacheManager", "get_cache_manager"]


@cache
def get_cache_manager() -> EdgeCacheManager:
    """The manager that the settings describe, the same for each caller; closed until `initialize`.

    While the device's agent runs, its disk and NAS tiers are the agent's alone, and here a miss.

    Raises:
        ConfigurationError: The settings cannot work.
    """
    edge = load_settings().edge
    return build_cache(edge.cache, home() / "edge" / edge.device_id / "cache", edge.device_id)
