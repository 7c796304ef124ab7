"""What every tier of the cache keeps, run on each.

A new tier joins `TIERS` with a function that makes one, closed, in a folder of its own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from edge_agent.cache.disk_tier import DiskTier
from edge_agent.cache.memory_tier import ProcessTier
from edge_agent.cache.nas_tier import NasTier
from edge_agent.cache.redis_tier import RedisTier
from edge_agent.cache.store import EntryStore
from edge_agent.cache.tiers import Tier
from edge_agent.cache.values import Stored
from primespark.core.cache_settings import CachePolicy, MemoryCacheSettings
from tests.valkey import Valkey, running_valkey

LIMIT = 4_000_000
KEYS = [
    "k",
    "inference_result_123",
    "../../etc/passwd",
    "/",
    "%00",
    "a b\nc",
    "ключ",
    "*",
    "x" * 512,
    "'; DROP TABLE entry",
]
VALUES = [b"", b"x", bytes(range(256)) * 10, b"\0" * 200_000]

Make = Callable[[Path], Tier]


def memory(folder: Path, valkey: Valkey, device: str = "edge-1") -> Tier:
    return RedisTier(MemoryCacheSettings(url=SecretStr(valkey.url), timeout_s=5), LIMIT, device)


def nas(folder: Path) -> Tier:
    (folder / "mount").mkdir(exist_ok=True)
    return NasTier(folder / "nas.db", folder / "mount", "edge-1", LIMIT, CachePolicy.TTL)


def disk(policy: CachePolicy) -> Make:
    return lambda folder: DiskTier(EntryStore(folder / "disk.db", folder / "values", LIMIT, policy))


def process(policy: CachePolicy) -> Make:
    return lambda _: ProcessTier(LIMIT, policy)


TIERS: dict[str, Make | None] = {
    **{f"l0 {policy}": process(policy) for policy in CachePolicy},
    "memory": None,
    **{f"disk {policy}": disk(policy) for policy in CachePolicy},
    "nas": nas,
}
# A server keeps its own limit; a process's memory ends with it.
OF_OURS = pytest.mark.parametrize("make", [name for name in TIERS if name != "memory"], indirect=True)
PERSISTENT = pytest.mark.parametrize("make", [name for name in TIERS if not name.startswith("l0")], indirect=True)


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@pytest.fixture(params=TIERS)
def make(request: pytest.FixtureRequest, valkey: Valkey) -> Make:
    return TIERS[request.param] or (lambda folder: memory(folder, valkey))


@pytest.fixture
async def tier(make: Make, tmp_path: Path) -> AsyncIterator[Tier]:
    made = make(tmp_path)
    await made.open()
    await made.clear()
    yield made
    await made.close()


@pytest.mark.parametrize("value", VALUES, ids=len)
async def test_what_was_set_is_what_is_got(tier: Tier, value: bytes) -> None:
    for is_json in (False, True):
        assert await tier.set("key", Stored(value, is_json))
        assert await tier.get("key") == Stored(value, is_json)


async def test_any_key_is_only_itself(tier: Tier, tmp_path: Path) -> None:
    for number, key in enumerate(KEYS):
        await tier.set(key, Stored(b"%d" % number * 70_000))
    for number, key in enumerate(KEYS):
        assert await tier.get(key) == Stored(b"%d" % number * 70_000)
    assert await tier.get("absent") is None
    paths = await asyncio.to_thread(lambda: [str(path) for path in tmp_path.rglob("*")])
    assert not [path for path in paths if "passwd" in path or "inference" in path or "xxx" in path]


async def test_a_later_value_takes_the_place_of_an_earlier_one(tier: Tier) -> None:
    for value in (b"a" * 100_000, b"b", b"c" * 200_000):
        await tier.set("key", Stored(value))
        assert await tier.get("key") == Stored(value)
    entries = tier.figures().entries
    assert entries in (None, 1)


async def test_deleting_and_clearing_leave_a_miss(tier: Tier) -> None:
    await tier.set("one", Stored(b"1"))
    await tier.set("two", Stored(b"2" * 100_000))
    await tier.delete("one")
    await tier.delete("absent")
    assert await tier.get("one") is None
    assert await tier.get("two") is not None
    assert await tier.clear() == 1
    assert await tier.get("two") is None
    assert await tier.clear() == 0


async def test_a_value_is_not_served_after_its_time(tier: Tier) -> None:
    await tier.set("short", Stored(b"1", ttl_s=0.05))
    await tier.set("long", Stored(b"2", ttl_s=1000))
    found = await tier.get("long")
    assert found is not None
    assert found.ttl_s is not None
    assert 999 < found.ttl_s <= 1000
    await asyncio.sleep(0.06)  # what is tested is that time passes
    assert await tier.get("short") is None
    assert await tier.get("long") is not None


@OF_OURS
async def test_a_value_that_alone_would_fill_it_is_refused_and_the_old_one_gone(tier: Tier) -> None:
    await tier.set("key", Stored(b"old"))
    assert not await tier.set("key", Stored(b"x" * LIMIT))
    assert await tier.get("key") is None


@OF_OURS
async def test_it_holds_no_more_than_its_limit_and_what_it_holds_is_whole(tier: Tier) -> None:
    chance = random.Random(5)
    values: dict[str, bytes] = {}
    for number in range(400):
        key = f"key-{number % 150}"
        values[key] = chance.randbytes(chance.choice((10, 1000, 30_000, 70_000, 150_000)))
        assert await tier.set(key, Stored(values[key]))
        await tier.get(f"key-{chance.randrange(20)}")
        held = tier.figures()
        assert held.bytes is not None
        assert held.bytes <= LIMIT
    got = {key: await tier.get(key) for key in values}
    kept = {key: found.data for key, found in got.items() if found is not None}
    assert all(values[key] == data for key, data in kept.items())
    held = tier.figures()
    assert held.entries == len(kept)
    assert 0 < sum(map(len, kept.values())) < (held.bytes or 0)
    assert held.evictions
    assert held.evictions > 100


async def test_many_at_once(tier: Tier) -> None:
    async def work(number: int) -> None:
        for turn in range(20):
            key = f"key-{(number + turn) % 7}"
            await tier.set(key, Stored(key.encode() * 20_000))
            found = await tier.get(key)
            assert found in (None, Stored(key.encode() * 20_000))

    await asyncio.gather(*(work(number) for number in range(8)))


@PERSISTENT
async def test_entries_outlive_the_process_that_wrote_them(make: Make, tmp_path: Path) -> None:
    first = make(tmp_path)
    await first.open()
    await first.clear()
    await first.set("small", Stored(b"1", ttl_s=1000))
    await first.set("large", Stored(b"2" * 100_000, is_json=True))
    before = first.figures()
    await first.close()
    second = make(tmp_path)
    await second.open()
    small = await second.get("small")
    assert small is not None
    assert small.data == b"1"
    assert await second.get("large") == Stored(b"2" * 100_000, is_json=True)
    if not isinstance(second, RedisTier):
        assert (second.figures().entries, second.figures().bytes) == (before.entries, before.bytes)
    await second.close()
