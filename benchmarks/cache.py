"""The device's cache: what a tier costs over what it is made of, what eviction costs, and what it keeps.

diskcache, whose CVE-2025-69872 has no fix, is in none of our locks. Where the group `bench` is not installed, sets
under eviction are compared, without a promise, with a plain SQLite FIFO that lets one row go with each set.
"""

from __future__ import annotations

import asyncio
import importlib.util
import random
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import SecretStr

from benchmarks.cache_peers import PEERS, SLOTS, Ours, hit_ratio, loop, traces
from benchmarks.result import Result
from edge_agent.cache.disk_tier import DiskTier
from edge_agent.cache.guard import GuardedTier
from edge_agent.cache.memory_tier import ProcessTier
from edge_agent.cache.redis_tier import RedisTier
from edge_agent.cache.store import EntryStore
from edge_agent.cache.tiers import CacheTier
from edge_agent.cache.values import Stored
from primespark.core.cache_settings import CachePolicy, MemoryCacheSettings
from primespark.embedded.probes import redis_answers
from primespark.embedded.valkey import valkey_service

VALUE = bytes(range(256)) * 4
ENTRIES = 100_000
ROUNDS = 11
_AMPLE = 10**9
_DISKCACHE = "diskcache"
_EVICTING_BYTES = 20_000_000
_MEAN_GOAL, _CELL_GOAL = 1.08, 0.95
_SEED = 3

Get = Callable[[str], object]
AsyncGet = Callable[[str], Awaitable[object]]


def run() -> Iterator[Result]:
    """All figures of the cache, on the disk of the working directory."""
    keys = [f"inference_result_{number}" for number in range(ENTRIES)]
    yield _in_process(keys)
    # Not the system's folder for temporary files, which may be in memory.
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        yield from _disk(Path(folder), keys)
        yield _evicting_sets(Path(folder), keys)
    with tempfile.TemporaryDirectory(prefix="ps-") as folder:
        yield _redis(Path(folder), keys[:10_000])
    yield from _hit_ratios()


def _at_most(name: str, unit: str, against: str, pair: tuple[float, float], limit: float) -> Result:
    value, reference = pair
    ratio = value / reference
    return Result("cache", name, value, unit, against, reference, ratio, f"<= {limit}", ratio <= limit)


def _at_least(name: str, unit: str, against: str, pair: tuple[float, float], limit: float) -> Result:
    value, reference = pair
    ratio = value / reference
    return Result("cache", name, value, unit, against, reference, ratio, f">= {limit}", ratio >= limit)


def _in_process(keys: list[str]) -> Result:
    tier, plain = ProcessTier(_AMPLE), dict[str, bytes]()
    for key in keys:
        # Each its own, as answers are.
        data = bytes(bytearray(VALUE))
        tier.set_now(key, Stored(data))
        plain[key] = data
    # Zipf, over keys in any order; equal to those that were set and not the same objects, as a request's are.
    shuffled, weights = _shuffled(keys), 1 / np.arange(1, ENTRIES + 1)
    ranks = np.random.default_rng(_SEED).choice(ENTRIES, ENTRIES, p=weights / weights.sum())
    asked = ["inference" + shuffled[rank].removeprefix("inference") for rank in ranks]
    pair = _interleaved(tier.get_bytes, plain.get, asked)
    return _at_most("L0 get, 1 KiB of 100,000, zipf 1.0", "us", "dict.get", pair, 3)


def _disk(folder: Path, keys: list[str]) -> Iterator[Result]:
    store = EntryStore(folder / "disk.db", folder / "values", _AMPLE, CachePolicy.LFU)
    store.open()
    plain = _plain_table(folder / "plain.db")
    for key in keys:
        store.set(key, Stored(VALUE))
    plain.executemany("INSERT INTO kv VALUES (?, ?)", [(key, VALUE) for key in keys])

    def select(key: str) -> object:
        return plain.execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()

    asked = _shuffled(keys)[:20_000]
    pair = _interleaved(store.get, select, asked)
    yield _at_most("disk get, 1 KiB of 100,000", "us", "bare SQLite, the same rows", pair, 1.5)
    store.close()

    async def off_loop() -> tuple[float, float]:
        tier = DiskTier(store)
        guarded = GuardedTier(CacheTier.DISK, tier, 1.0)
        await guarded.open()
        try:
            return await _interleaved_async(guarded.get, lambda key: asyncio.to_thread(select, key), asked[:2_000])
        finally:
            await guarded.close()

    yield _at_most(
        "disk get off the event loop", "us", "bare SQLite in asyncio.to_thread", asyncio.run(off_loop()), 1.5
    )


def _redis(folder: Path, keys: list[str]) -> Result:
    socket = folder / "valkey.sock"
    server = subprocess.Popen(valkey_service(folder / "state", socket).command, stdout=subprocess.DEVNULL)
    try:
        pair = asyncio.run(_redis_pair(socket, keys))
    finally:
        server.kill()
        server.wait()
    return _at_most("Redis get, 1 KiB, unix socket", "us", "redis-py's asyncio client", pair, 1.3)


async def _redis_pair(socket: Path, keys: list[str]) -> tuple[float, float]:
    from redis.asyncio import Redis

    while not await redis_answers(str(socket)):  # noqa: ASYNC110 (a server that starts tells nobody)
        await asyncio.sleep(0.02)
    url = f"unix://{socket}"
    guarded = GuardedTier(CacheTier.MEMORY, RedisTier(MemoryCacheSettings(url=SecretStr(url)), _AMPLE, "bench"), 1.0)
    await guarded.open()
    async with Redis.from_url(url) as bare:
        for key in keys:
            await guarded.set(key, Stored(VALUE))
            await bare.set(key, VALUE)
        try:
            return await _interleaved_async(guarded.get, bare.get, keys[:1_000])
        finally:
            await guarded.close()


def _evicting_sets(folder: Path, keys: list[str]) -> Result:
    store = EntryStore(folder / "evicting.db", folder / "evicted", _EVICTING_BYTES, CachePolicy.LFU)
    store.open()
    against, peer_set = _evicting_peer(folder)
    numbers = iter(range(10**9))

    def rate(write: Callable[[str], object]) -> float:
        started = time.perf_counter()
        for _ in range(5_000):
            write(f"{keys[0]}-{next(numbers)}")
        return 5_000 / (time.perf_counter() - started)

    def write(key: str) -> object:
        return store.set(key, Stored(VALUE))

    # Both are full from the fifth round on, at about 17,000 entries.
    rates = [(rate(write), rate(peer_set)) for _ in range(ROUNDS + 5)][5:]
    store.close()
    value, reference = statistics.median(ours for ours, _ in rates), statistics.median(theirs for _, theirs in rates)
    name, ratio = "sets under eviction, 1 KiB at 20 MB", value / reference
    is_promised = against == _DISKCACHE
    goal, ok = (">= 1.3", ratio >= 1.3) if is_promised else ("none without diskcache", True)
    return Result("cache", name, value, "sets/s", against, reference, ratio, goal, ok)


def _evicting_peer(folder: Path) -> tuple[str, Callable[[str], object]]:
    if importlib.util.find_spec(_DISKCACHE) is not None:
        diskcache: Any = importlib.import_module(_DISKCACHE)
        made = diskcache.Cache(str(folder / "diskcache"), size_limit=_EVICTING_BYTES)
        return _DISKCACHE, lambda key: made.set(key, VALUE)
    table = _plain_table(folder / "one-by-one.db")
    table.execute("PRAGMA synchronous = NORMAL")
    most, held = _EVICTING_BYTES // len(VALUE), 0

    def write(key: str) -> object:
        nonlocal held
        table.execute("BEGIN IMMEDIATE")
        table.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, VALUE))
        held += 1
        if held > most:
            table.execute("DELETE FROM kv WHERE rowid = (SELECT min(rowid) FROM kv)")
        return table.execute("COMMIT")

    return "bare SQLite, FIFO, one row let go with each set", write


def _plain_table(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE kv (key TEXT PRIMARY KEY, value BLOB)")
    return connection


def _hit_ratios() -> Iterator[Result]:
    made, ours, lru, cells = traces(), [], [], []
    for slots in SLOTS:
        for name, trace in made.items():
            own = hit_ratio(Ours(CachePolicy.S3FIFO, slots), trace)
            peers = {peer: hit_ratio(make(slots), trace) for peer, make in PEERS.items()}
            best = max(peers, key=lambda peer: peers[peer])
            ours.append(own)
            lru.append(peers["LRU"])
            cells.append((own / peers[best], f"{name}, {slots} slots", own, best, peers[best]))
    yield _at_least("mean hit ratio, 5 traces at 2 sizes", "of gets", "LRU", (_mean(ours), _mean(lru)), _MEAN_GOAL)
    _, name, own, best, ratio = min(cells)
    yield _at_least(
        f"hit ratio of the worst of them: {name}", "of gets", f"{best}, the best of {', '.join(PEERS)}", (own, ratio),
        _CELL_GOAL,
    )  # fmt: skip
    slots = SLOTS[0]
    own, theirs = (
        hit_ratio(Ours(CachePolicy.S3FIFO, slots), loop(slots)),
        hit_ratio(PEERS["W-TinyLFU"](slots), loop(slots)),
    )
    yield Result(
        "cache", "hit ratio of a loop of 1.1 times the slots (LRU: 0)", own, "of gets", "W-TinyLFU", theirs,
        own / theirs, "none", ok=True,
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _shuffled(keys: list[str]) -> list[str]:
    shuffled = list(keys)
    random.Random(_SEED).shuffle(shuffled)  # noqa: S311 (an order, not a secret)
    return shuffled


def _interleaved(ours: Get, reference: Get, keys: list[str]) -> tuple[float, float]:
    """Median microseconds of one get, over rounds of all keys in turn."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for get, seconds in zip((ours, reference), taken, strict=True):
            started = time.perf_counter()
            for key in keys:
                get(key)
            seconds.append((time.perf_counter() - started) / len(keys))
    first, second = (statistics.median(seconds) * 1e6 for seconds in taken)
    return first, second


async def _interleaved_async(ours: AsyncGet, reference: AsyncGet, keys: list[str]) -> tuple[float, float]:
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for get, seconds in zip((ours, reference), taken, strict=True):
            started = time.perf_counter()
            for key in keys:
                assert await get(key) is not None
            seconds.append((time.perf_counter() - started) / len(keys))
    first, second = (statistics.median(seconds) * 1e6 for seconds in taken)
    return first, second
