"""The device's cache over HTTP: how its tiers stand, and emptying them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from edge_agent.cache import CacheTier, EdgeCacheManager, TierReport
from primespark.core.web import Principal, Role, read_model, require
from primespark.errors import ConflictError, NotFoundError
from primespark.sync.records import Message

router = APIRouter(prefix="/api/v1/cache")


class ClearRequest(Message):
    """Which tier to empty; all when absent."""

    tier: CacheTier | None = None


def _cache_of(request: Request) -> EdgeCacheManager:
    found: EdgeCacheManager | None = request.app.state.cache
    if found is None:
        raise ConflictError("this device has no cache", remedy="set features.cache", code="no_cache")
    return found


Cache = Annotated[EdgeCacheManager, Depends(_cache_of)]


@router.get("", dependencies=[Depends(require(Role.VIEWER))])
async def cache_status(cache: Cache) -> dict[str, Any]:
    """Each tier that is set up, the fastest first."""
    return {"tiers": [_describe(tier) for tier in await cache.report()]}


@router.post("/clear")
async def clear_cache(
    request: Request, cache: Cache, _: Annotated[Principal, Depends(require(Role.OPERATOR))]
) -> dict[str, Any]:
    """Empty the tier that the body names, or all; how many entries each had."""
    has_body = "content-type" in request.headers
    asked = await read_model(request, ClearRequest) if has_body else ClearRequest()
    if asked.tier not in (None, CacheTier.L0, *(tier.name for tier in cache.tiers)):
        raise NotFoundError(f"the tier {asked.tier} is not set up", remedy="GET /api/v1/cache lists those that are")
    return {"cleared": await cache.clear(asked.tier)}


def _describe(tier: TierReport) -> dict[str, Any]:
    return {
        "tier": tier.tier, "state": tier.state, "cause": tier.cause or None, **asdict(tier.figures),
        "hits": tier.hits, "misses": tier.misses, "failures": tier.failures,
    }  # fmt: skip
