"""The cache as people see it: over HTTP, in metrics, and by the specification's own lines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from edge_agent.agent import _build
from edge_agent.cache import CacheTier, EdgeCacheManager, build_cache
from edge_agent.cache.redis_tier import RedisTier
from edge_agent.cache.values import Stored
from edge_agent.database import Database
from primespark.core.cache_settings import CachePolicy, EdgeCacheSettings, MemoryCacheSettings
from primespark.core.settings import load_settings
from primespark.errors import ConfigurationError
from tests.valkey import Valkey, running_valkey


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@contextlib.asynccontextmanager
async def device(folder: Path, **features: bool) -> AsyncIterator[tuple[httpx2.AsyncClient, EdgeCacheManager | None]]:
    settings = load_settings(overrides={"features": features})
    database = Database(folder / "queue.db")
    agent = await _build(settings, folder, database, Future())
    key = await asyncio.to_thread((folder / "local.key").read_text)
    async with (
        agent.app.router.lifespan_context(agent.app),
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=agent.app),
            base_url="http://edge",
            headers={"Authorization": f"Bearer {key}"},
        ) as client,
    ):
        yield client, agent.app.state.cache
    agent.service.close()
    database.close()


def by_tier(answer: httpx2.Response) -> dict[str, dict[str, Any]]:
    assert answer.status_code == 200
    return {tier["tier"]: tier for tier in answer.json()["tiers"]}


async def opened(cache: EdgeCacheManager) -> None:
    async with asyncio.timeout(5):
        while await cache.set("probe", 1, tier=CacheTier.DISK) != (CacheTier.L0, CacheTier.DISK):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await cache.clear()


async def test_tiers_are_told_and_cleared(tmp_path: Path) -> None:
    async with device(tmp_path) as (client, cache):
        assert cache is not None
        await opened(cache)
        await cache.set("key", {"a": 1}, tier=CacheTier.DISK)
        await cache.get("key")
        await cache.get("absent")
        tiers = by_tier(await client.get("/api/v1/cache"))
        assert list(tiers) == ["l0", "disk"]
        assert tiers["l0"]["policy"] == "s3fifo"
        assert tiers["l0"]["limit_bytes"] == 32 * 1024 * 1024
        disk = tiers["disk"]
        assert (disk["state"], disk["cause"], disk["policy"]) == ("ready", None, "lfu")
        assert (disk["entries"], disk["hits"], disk["evictions"], disk["failures"]) == (1, 0, 0, 0)
        assert disk["misses"] >= 1
        assert 0 < disk["bytes"] < 1000 < disk["limit_bytes"] <= 50_000_000_000
        metrics = (await client.get("/metrics")).text
        assert 'primespark_cache_requests_total{result="hit",tier="l0"}' in metrics
        assert 'primespark_cache_bytes{tier="disk"}' in metrics
        answer = await client.post("/api/v1/cache/clear", json={"tier": "disk"})
        assert answer.json() == {"cleared": {"disk": 1}}
        assert await cache.get("key") == {"a": 1}
        answer = await client.post("/api/v1/cache/clear")
        assert answer.json() == {"cleared": {"l0": 1, "disk": 0}}
        assert await cache.get("key") is None


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"tier": "tape"}, 422, "invalid_input"),
        ({"tiers": "disk"}, 422, "invalid_input"),
        ({"tier": "nas"}, 404, "not_found"),
        ([], 422, "invalid_input"),
    ],
    ids=str,
)
async def test_bad_requests_are_told_so(tmp_path: Path, body: Any, status: int, code: str) -> None:
    async with device(tmp_path) as (client, _):
        answer = await client.post("/api/v1/cache/clear", json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert (await client.get("/api/v1/cache", headers={"Authorization": "x"})).status_code == 401


async def test_a_device_without_a_cache_says_so(tmp_path: Path) -> None:
    async with device(tmp_path, cache=False) as (client, cache):
        assert cache is None
        answer = await client.get("/api/v1/cache")
        assert (answer.status_code, answer.json()["code"]) == (409, "no_cache")
    assert not (tmp_path / "cache").exists()


async def test_the_usage_example_of_the_specification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, valkey: Valkey
) -> None:
    monkeypatch.setenv("PRIMESPARK_HOME", str(tmp_path))
    monkeypatch.setenv("PRIMESPARK_EDGE__CACHE__MEMORY__URL", valkey.url)
    result = {"predictions": [{"label": "cup", "score": 0.9}]}
    from edge_agent.cache_manager import CacheTier, get_cache_manager

    get_cache_manager.cache_clear()
    cache = get_cache_manager()
    await cache.initialize()

    # Set value in memory tier
    await cache.set("inference_result_123", result, tier=CacheTier.MEMORY, ttl=3600)

    # Get from any tier
    value = await cache.get("inference_result_123")

    assert value == result
    assert get_cache_manager() is cache
    await cache.clear(CacheTier.L0)
    assert await cache.get("inference_result_123") == result
    assert {tier.tier: tier.figures.policy for tier in await cache.report()}[CacheTier.MEMORY] == "allkeys-lru"
    await cache.close()
    get_cache_manager.cache_clear()


async def test_limit_and_policy_are_set_on_an_own_server_and_on_no_other(valkey: Valkey) -> None:
    from redis.asyncio import Redis

    theirs = RedisTier(MemoryCacheSettings(url=SecretStr(valkey.url), policy=CachePolicy.LFU), 10**9, "edge-1")
    await theirs.open()
    assert (theirs.figures().policy, theirs.figures().limit_bytes) == ("allkeys-lru", 64 * 1024 * 1024)
    await theirs.close()
    ours = RedisTier(
        MemoryCacheSettings(url=SecretStr(valkey.url), policy=CachePolicy.LFU, own_server=True), 10**8, "edge-1"
    )
    await ours.open()
    assert (ours.figures().policy, ours.figures().limit_bytes) == ("allkeys-lfu", 10**8)
    await ours.close()
    async with Redis(unix_socket_path=valkey.url.removeprefix("unix://")) as client:
        await client.config_set("maxmemory", 64 * 1024 * 1024)
        await client.config_set("maxmemory-policy", "allkeys-lru")


async def test_a_server_that_evicts_nothing_is_not_filled_beyond_the_limit(valkey: Valkey) -> None:
    from redis.asyncio import Redis

    async with Redis(unix_socket_path=valkey.url.removeprefix("unix://")) as client:
        await client.config_set("maxmemory", 0)
        used = int((await client.info("memory"))["used_memory"])
        tier = RedisTier(MemoryCacheSettings(url=SecretStr(valkey.url)), used + 3_000_000, "edge-1")
        await tier.open()
        await tier.clear()
        took = [await tier.set(f"key-{number}", Stored(bytes(10_000))) for number in range(1000)]
        assert took[0]
        assert not took[-1]
        assert int((await client.info("memory"))["used_memory"]) < used + 5_000_000
        assert await tier.get("key-0") is not None
        assert await tier.clear() == sum(took)
        await tier.close()
        await client.config_set("maxmemory", 64 * 1024 * 1024)


def test_limits_of_memory_are_a_tenth_of_it_and_zero_is_none(tmp_path: Path) -> None:
    import psutil

    huge = EdgeCacheSettings.model_validate({"l0": {"limit_bytes": 10**15}, "disk": {"limit_bytes": 0}})
    cache = build_cache(huge, tmp_path, "edge-1")
    assert cache.l0.figures().limit_bytes == psutil.virtual_memory().total // 10
    assert cache.tiers == ()


@pytest.mark.parametrize("url", ["localhost:6379", "http://host", "unix:", "redis://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"edge\.cache\.memory\.url"):
        load_settings(overrides={"edge": {"cache": {"memory": {"url": url}}}})
