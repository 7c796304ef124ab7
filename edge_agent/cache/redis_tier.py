"""The tier in a Redis or Valkey beside the device: shared by processes, lost with the server."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar
from zlib import crc32

from edge_agent.cache.tiers import TierFigures
from edge_agent.cache.values import Stored
from primespark.core.cache_settings import CachePolicy, MemoryCacheSettings
from primespark.core.logging import get_logger
from primespark.errors import UnavailableError

if TYPE_CHECKING:
    from redis.asyncio import Redis

Answer = TypeVar("Answer")

# Format, whether JSON, seconds it may be served (0: for ever), when they end (Unix time), checksum of key and value.
_HEAD = struct.Struct(">4s?ddI")
_FORMAT = b"PSC1"
_SETS_BETWEEN_REFRESHES = 64
_SCAN_COUNT = 500
_SERVER_POLICIES = {CachePolicy.LRU: "allkeys-lru", CachePolicy.LFU: "allkeys-lfu", CachePolicy.TTL: "volatile-ttl"}

log = get_logger(__name__)


class RedisTier:
    """A tier of keys `primespark:<device>:cache:<key>`.

    A server that is not ours keeps its limit and its policy. Where it would grow without end or refuse when full,
    this tier writes only while the server uses less than the limit.

    Args:
        settings: With a URL.
        limit_bytes: Most bytes on the server.
        device_id: Of the device.
    """

    def __init__(self, settings: MemoryCacheSettings, limit_bytes: int, device_id: str) -> None:
        if settings.url is None:
            raise ValueError("a RedisTier needs a URL")
        self._settings, self._url = settings, settings.url
        self._limit_bytes = limit_bytes
        self._prefix = f"primespark:{device_id}:cache:"
        self._client: Redis | None = None
        self._figures = TierFigures(None, None, limit_bytes, None, None)
        self._is_full = False
        self._sets = 0

    async def open(self) -> None:
        """Connect, and set up the server if it is ours."""
        if self._client is None:
            self._client = self._connect()
        await self._ask(lambda client: client.ping())
        if self._settings.own_server:
            await self._ask(lambda client: client.config_set("maxmemory", str(self._limit_bytes)))
            policy = _SERVER_POLICIES[self._settings.policy]
            await self._ask(lambda client: client.config_set("maxmemory-policy", policy))
        await self.refresh()

    async def get(self, key: str) -> Stored | None:
        """The value with the time it may yet be served, or a miss."""
        framed = await self._ask(lambda client: client.get(self._prefix + key))
        return None if framed is None else self._unpack(key, framed)

    async def set(self, key: str, stored: Stored) -> bool:
        """Hold a value; False where the server has no room to give."""
        if self._sets % _SETS_BETWEEN_REFRESHES == 0:
            await self.refresh()
        self._sets += 1
        if self._is_full:
            await self.delete(key)
            return False
        ttl_s = stored.ttl_s
        ends_at = time.time() + ttl_s if ttl_s is not None else 0.0
        checksum = crc32(stored.data, crc32(key.encode()))
        framed = _HEAD.pack(_FORMAT, stored.is_json, ttl_s or 0.0, ends_at, checksum) + stored.data
        ttl_ms = None if ttl_s is None else max(1, int(ttl_s * 1000))
        await self._ask(lambda client: client.set(self._prefix + key, framed, px=ttl_ms))
        return True

    async def delete(self, key: str) -> None:
        """Hold nothing under this key."""
        await self._ask(lambda client: client.unlink(self._prefix + key))

    async def clear(self) -> int:
        """Hold nothing; how many there were. What others keep on the server stays."""
        pattern = re.sub(r"([\[\]*?\\])", r"\\\1", self._prefix) + "*"
        count = cursor = 0
        while True:
            at = cursor
            cursor, keys = await self._ask(lambda client: client.scan(at, match=pattern, count=_SCAN_COUNT))  # noqa: B023 (awaited here)
            if keys:
                count += await self._ask(lambda client: client.unlink(*keys))  # noqa: B023 (awaited here)
            if cursor == 0:
                return count

    async def refresh(self) -> None:
        """Ask the server for its figures, which count all it holds, for whomever."""
        memory = await self._ask(lambda client: client.info("memory"))
        stats = await self._ask(lambda client: client.info("stats"))
        policy, limit = str(memory["maxmemory_policy"]), int(memory["maxmemory"])
        evicts = limit > 0 and policy != "noeviction"
        self._is_full = not evicts and int(memory["used_memory"]) >= self._limit_bytes
        self._figures = TierFigures(
            entries=None, bytes=int(memory["used_memory"]), limit_bytes=limit if evicts else self._limit_bytes,
            policy=policy, evictions=int(stats["evicted_keys"]),
        )  # fmt: skip

    def figures(self) -> TierFigures:
        """Of the server, when it was last asked."""
        return self._figures

    async def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _connect(self) -> Redis:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        return Redis.from_url(
            self._url.get_secret_value(),
            socket_timeout=self._settings.timeout_s,
            socket_connect_timeout=self._settings.timeout_s,
            # Whether to ask again is the circuit breaker's to say.
            retry=Retry(NoBackoff(), 0),
            max_connections=64,
        )

    async def _ask(self, question: Callable[[Any], Awaitable[Answer]]) -> Answer:
        from redis.exceptions import RedisError

        if self._client is None:
            raise UnavailableError("the cache is not open", code="cache_closed")
        try:
            return await question(self._client)
        except (RedisError, OSError) as error:
            raise UnavailableError(
                f"Redis does not answer: {type(error).__name__}: {error}"[:200],
                remedy="see that it runs: edge.cache.memory.url", code="cache_failed",
            ) from None  # fmt: skip

    def _unpack(self, key: str, framed: bytes) -> Stored | None:
        """What `set` framed; a miss for all else that lies there."""
        if len(framed) < _HEAD.size or framed[:4] != _FORMAT:
            return None
        _, is_json, ttl_s, ends_at, checksum = _HEAD.unpack_from(framed)
        data = framed[_HEAD.size :]
        if crc32(data, crc32(key.encode())) != checksum:
            return None
        if ttl_s == 0:
            return Stored(data, is_json)
        # The server is who lets it expire; clocks of two machines may differ, so this only bounds what is promised on.
        return Stored(data, is_json, min(max(ends_at - time.time(), 0.001), ttl_s))
