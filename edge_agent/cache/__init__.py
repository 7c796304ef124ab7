"""The device's cache: in the process, in Redis, on the disk, on network storage."""

from edge_agent.cache.build import build_cache
from edge_agent.cache.manager import EdgeCacheManager, TierReport
from edge_agent.cache.tiers import CacheTier, TierState

__all__ = ["CacheTier", "EdgeCacheManager", "TierReport", "TierState", "build_cache"]
