"""The cache over its real tiers: where a value goes, what a failing tier costs, and that nothing old comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from edge_agent.cache.breaker import CircuitBreaker
from edge_agent.cache.disk_tier import DiskTier
from edge_agent.cache.guard import MAX_DOUBTS, GuardedTier
from edge_agent.cache.manager import EdgeCacheManager
from edge_agent.cache.memory_tier import ProcessTier
from edge_agent.cache.nas_tier import NasTier
from edge_agent.cache.redis_tier import RedisTier
from edge_agent.cache.store import EntryStore
from edge_agent.cache.tiers import CacheTier, TierState
from primespark.core.cache_settings import CachePolicy, MemoryCacheSettings
from primespark.errors import InvalidInputError
from tests.integration.edge_agent.device import until
from tests.valkey import Valkey, running_valkey

L0, MEMORY, DISK, NAS = CacheTier.L0, CacheTier.MEMORY, CacheTier.DISK, CacheTier.NAS
LIMIT = 100_000_000


@dataclass(slots=True)
class World:
    """A cache, and what stands behind it."""

    folder: Path
    socket: Path
    valkey: Valkey
    now: float = 0.0
    caches: list[EdgeCacheManager] = field(default_factory=list)

    def cache(self) -> EdgeCacheManager:
        settings = MemoryCacheSettings(url=SecretStr(f"unix://{self.socket}"))
        store = EntryStore(self.folder / "disk.db", self.folder / "values", LIMIT, CachePolicy.LFU)
        nas = NasTier(self.folder / "nas.db", self.folder / "mount", "edge-1", LIMIT, CachePolicy.TTL)
        # A breaker's pauses pass when the test says so.
        tiers = [
            GuardedTier(name, tier, 0.1 if name is not DISK else 5.0, CircuitBreaker(lambda: self.now))
            for name, tier in ((MEMORY, RedisTier(settings, LIMIT, "edge-1")), (DISK, DiskTier(store)), (NAS, nas))
        ]
        made = EdgeCacheManager(ProcessTier(1_000_000), tiers)
        self.caches.append(made)
        return made

    def values_on_nas(self) -> list[Path]:
        return [path for path in (self.folder / "mount").rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@pytest.fixture
async def world(tmp_path: Path, valkey: Valkey) -> AsyncIterator[World]:
    (tmp_path / "mount").mkdir()
    world = World(tmp_path, Path(valkey.url.removeprefix("unix://")), valkey)
    yield world
    for cache in world.caches:
        await cache.close()


@pytest.fixture
async def cache(world: World) -> EdgeCacheManager:
    cache = world.cache()
    await cache.initialize()
    await cache.clear()
    return cache


async def where(cache: EdgeCacheManager, key: str) -> set[CacheTier]:
    """The tiers that have a key, each asked by itself."""
    await cache.settle()
    held = {tier.name for tier in cache.tiers if await tier._tier.get(key) is not None}
    return held | ({L0} if cache.l0.holds(key) else set())


def guard(cache: EdgeCacheManager, tier: CacheTier) -> GuardedTier:
    return next(held for held in cache.tiers if held.name is tier)


@pytest.mark.parametrize("tier", [MEMORY, DISK, NAS])
@pytest.mark.parametrize(
    "value", [b"bytes", {"a": [1, None, "ß"]}, None, 0, b"x" * 80_000], ids=["bytes", "json", "null", "zero", "large"]
)
async def test_a_value_lies_in_its_tier_and_comes_back(cache: EdgeCacheManager, tier: CacheTier, value: Any) -> None:
    assert await cache.set("key", value, tier=tier, ttl=3600) == (L0, tier)
    assert await where(cache, "key") == {L0, tier}
    await cache.clear(L0)
    missing = object()
    assert await cache.get("key", missing) == value
    assert await cache.get("other", missing) is missing


async def test_a_hit_carries_the_value_to_the_faster_tiers(cache: EdgeCacheManager) -> None:
    await cache.set("key", "value", tier=NAS, ttl=1000)
    await cache.clear(L0)
    assert await cache.get("key") == "value"
    assert await where(cache, "key") == {L0, MEMORY, DISK, NAS}
    carried = await guard(cache, DISK)._tier.get("key")
    assert carried is not None
    assert carried.ttl_s is not None
    assert 990 < carried.ttl_s <= 1000


async def test_a_new_value_leaves_no_old_one_in_any_tier(cache: EdgeCacheManager) -> None:
    await cache.set("key", 1, tier=NAS)
    await cache.clear(L0)
    await cache.get("key")
    await cache.set("key", 2, tier=MEMORY)
    assert await where(cache, "key") == {L0, MEMORY}
    await cache.clear(L0)
    await cache.clear(MEMORY)
    assert await cache.get("key") is None


async def test_a_deleted_key_and_a_cleared_cache_are_misses(cache: EdgeCacheManager) -> None:
    for key, tier in (("a", MEMORY), ("b", DISK), ("c", NAS)):
        await cache.set(key, key, tier=tier)
    await cache.delete("b")
    assert [await cache.get(key) for key in "abc"] == ["a", None, "c"]
    await cache.settle()
    assert await cache.clear() == {L0: 2, MEMORY: 1, DISK: 0, NAS: 1}
    assert [await cache.get(key) for key in "abc"] == [None] * 3


async def test_gets_and_sets_of_one_key_at_once_end_with_the_last_set(cache: EdgeCacheManager) -> None:
    for number in range(30):
        await cache.set("key", number, tier=DISK)
        await cache.clear(L0)
        gets = [asyncio.create_task(cache.get("key")) for _ in range(5)]
        sets = [asyncio.create_task(cache.set("key", number + 1000, tier=(MEMORY, NAS)[number % 2]))]
        assert {await task for task in gets} <= {number, number + 1000}
        await asyncio.gather(*sets)
        await cache.clear(L0)
        assert await cache.get("key") == number + 1000


async def test_callers_of_one_key_share_one_computation(cache: EdgeCacheManager) -> None:
    begun, go_on = 0, asyncio.Event()

    async def compute() -> dict[str, int]:
        nonlocal begun
        begun += 1
        await go_on.wait()
        return {"n": begun}

    callers = [asyncio.create_task(cache.get_or_compute("key", compute, tier=DISK)) for _ in range(20)]
    await until(lambda: begun)
    callers[0].cancel()
    go_on.set()
    assert await asyncio.gather(*callers[1:]) == [{"n": 1}] * 19
    await cache.clear(L0)
    assert await cache.get_or_compute("key", compute) == {"n": 1}
    assert begun == 1


async def test_a_computation_that_fails_tells_all_and_holds_nothing(cache: EdgeCacheManager) -> None:
    async def fail() -> None:
        raise InvalidInputError("no")

    answers = await asyncio.gather(*(cache.get_or_compute("key", fail) for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [InvalidInputError] * 3
    assert await where(cache, "key") == set()


async def test_walks_of_one_key_are_one(cache: EdgeCacheManager) -> None:
    await cache.set("key", 1, tier=DISK)
    await cache.clear(L0)
    before = guard(cache, DISK).counts.hits
    assert await asyncio.gather(*(cache.get("key") for _ in range(50))) == [1] * 50
    assert guard(cache, DISK).counts.hits == before + 1


async def test_bytes_of_the_process_need_no_waiting(cache: EdgeCacheManager) -> None:
    assert cache.set_bytes("digest", b"result", ttl_s=60)
    assert cache.get_bytes("digest") == b"result"
    assert await cache.get("digest") == b"result"
    assert not cache.set_bytes("large", bytes(1_000_000))
    assert await asyncio.to_thread(cache.get_bytes, "digest") == b"result"


async def test_disk_and_nas_outlive_the_process(world: World, cache: EdgeCacheManager) -> None:
    await cache.set("disk", [1], tier=DISK)
    await cache.set("nas", [2], tier=NAS)
    await cache.close()
    again = world.cache()
    assert await again.get("disk") is None
    await again.initialize()
    assert [await again.get("disk"), await again.get("nas")] == [[1], [2]]


async def test_a_frozen_redis_costs_a_miss_each_then_nothing_and_its_old_value_never_returns(
    world: World, cache: EdgeCacheManager
) -> None:
    await cache.set("key", "old", tier=MEMORY)
    await cache.set("kept", "on disk", tier=DISK)
    await cache.clear(L0)
    memory = guard(cache, MEMORY)
    os.kill(world.valkey.process.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        assert await cache.set("key", "new", tier=MEMORY) == (L0,)
        assert await cache.get("kept") == "on disk"
        assert await cache.get("absent") is None
        assert time.monotonic() - started < 1.0
        await until(lambda: memory.state is TierState.FAILING)
        started, failures = time.monotonic(), memory.counts.failures
        for number in range(100):
            assert await cache.get(f"absent-{number}") is None
        assert time.monotonic() - started < 1.0
        assert memory.counts.failures == failures
    finally:
        os.kill(world.valkey.process.pid, signal.SIGCONT)
    await cache.clear(L0)
    world.now += 3600
    assert await cache.get("key") is None
    assert memory.state is TierState.READY
    assert await cache.set("key", "newer", tier=MEMORY) == (L0, MEMORY)


async def test_a_redis_that_is_gone_is_used_again_when_it_is_back(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    socket = Path(f"/tmp/ps-{os.getpid()}-{time.monotonic_ns()}.sock")
    with running_valkey(socket) as server:
        world = World(tmp_path, socket, server)
        cache = world.cache()
        await cache.initialize()
        assert await cache.set("key", 1) == (L0, MEMORY)
    for _ in range(5):
        assert await cache.set("key", 2) == (L0,)
    report = {tier.tier: tier for tier in await cache.report()}
    assert report[MEMORY].state is TierState.FAILING
    assert "Redis does not answer" in report[MEMORY].cause
    with running_valkey(socket):
        world.now += 3600
        assert await cache.set("key", 3) == (L0, MEMORY)
        await cache.clear(L0)
        assert await cache.get("key") == 3
        await cache.close()


async def test_a_nas_that_hangs_never_holds_up_a_get_for_long(world: World, cache: EdgeCacheManager) -> None:
    await cache.set("key", b"x", tier=NAS)
    await cache.clear(L0)
    (value,) = world.values_on_nas()
    value.unlink()
    # Opening a pipe that nobody writes to hangs, as a file on a dead mount does.
    os.mkfifo(value)
    nas = guard(cache, NAS)
    longest = 0.0
    for _ in range(10):
        started = time.monotonic()
        assert await cache.get("key") is None
        longest = max(longest, time.monotonic() - started)
    assert longest < 0.4
    assert nas.state is TierState.FAILING
    assert nas.counts.failures == 3
    # A writer ends the hanging of all.
    await asyncio.to_thread(value.write_bytes, b"")
    await until(lambda: not value.exists())
    world.now += 3600
    assert await cache.set("other", b"y", tier=NAS) == (L0, NAS)


async def test_a_mount_that_vanishes_is_a_miss_and_its_place_stays_empty(world: World, cache: EdgeCacheManager) -> None:
    await cache.set("key", "value", tier=NAS)
    await cache.clear(L0)
    mount, away = world.folder / "mount", world.folder / "away"
    mount.rename(away)
    mount.mkdir()
    for _ in range(5):
        assert await cache.get("key") is None
        assert await cache.set("other", 1, tier=NAS) == (L0,)
    world.now += 3600
    await cache.clear(L0)
    assert await cache.get("key") is None
    assert list(mount.iterdir()) == []
    mount.rmdir()
    away.rename(mount)
    world.now += 3600
    assert await cache.get("key") == "value"


async def test_a_full_disk_costs_the_entry(world: World, cache: EdgeCacheManager) -> None:
    disk: Any = guard(cache, DISK)._tier
    writer = disk._store.index.writer()
    writer.execute("PRAGMA max_page_count = 1")
    for number in range(10):
        assert await cache.set(f"key-{number}", "x" * 60_000, tier=DISK) in ((L0,), (L0, DISK))
    assert guard(cache, DISK).state is TierState.FAILING
    writer.execute("PRAGMA max_page_count = 1000000")
    world.now += 3600
    assert await cache.set("key", 1, tier=DISK) == (L0, DISK)


async def test_too_many_doubts_are_one_about_all(world: World, cache: EdgeCacheManager) -> None:
    await cache.set("key", "old", tier=MEMORY)
    os.kill(world.valkey.process.pid, signal.SIGSTOP)
    try:
        for number in range(MAX_DOUBTS + 10):
            await guard(cache, MEMORY).delete(f"key-{number}")
    finally:
        os.kill(world.valkey.process.pid, signal.SIGCONT)
    await cache.clear(L0)
    world.now += 3600
    assert await cache.get("key") is None
    memory = guard(cache, MEMORY)
    await until(lambda: not memory._is_all_in_doubt)
    assert await where(cache, "key") == set()
    assert await cache.set("key", "new") == (L0, MEMORY)


async def test_bad_keys_and_values_are_the_callers_fault(cache: EdgeCacheManager) -> None:
    for key in ("", "x" * 513):
        for call in (cache.get(key), cache.set(key, 1), cache.delete(key)):
            with pytest.raises(InvalidInputError):
                await call
    with pytest.raises(InvalidInputError):
        await cache.set("key", object())
    with pytest.raises(ValueError, match="tape"):
        await cache.set("key", 1, tier="tape")  # type: ignore[arg-type]


@pytest.mark.parametrize("harm", [b"", b"no frame", b"PSC1" + bytes(30)], ids=["empty", "foreign", "wrong sum"])
async def test_what_somebody_else_put_into_redis_is_a_miss(world: World, cache: EdgeCacheManager, harm: bytes) -> None:
    from redis.asyncio import Redis

    async with Redis(unix_socket_path=str(world.socket)) as client:
        await client.set("primespark:edge-1:cache:key", harm)
        await client.set("theirs", b"stays")
        assert await cache.get("key") is None
        assert await cache.clear(MEMORY) == {MEMORY: 1}
        assert await client.get("theirs") == b"stays"
