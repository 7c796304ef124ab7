"""Settings of the device's cache."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from primespark.core.sections import Seconds, Section


def _redis_url(url: SecretStr) -> SecretStr:
    parts = urlsplit(url.get_secret_value())
    place = parts.path if parts.scheme == "unix" else parts.hostname
    if parts.scheme not in ("unix", "redis", "rediss") or not place or parts.port == 0:
        raise ValueError("write unix:///PATH, redis://HOST:PORT/DB or rediss://HOST:PORT/DB")
    return url


class CachePolicy(StrEnum):
    """What a full cache lets go of first."""

    LRU = "lru"
    LFU = "lfu"
    TTL = "ttl"
    S3FIFO = "s3fifo"


class ProcessCacheSettings(Section):
    """The cache in the device's own process; a limit of 0 switches a tier off, here and below."""

    limit_bytes: Annotated[int, Field(ge=0)] = 32 * 1024 * 1024
    policy: CachePolicy = CachePolicy.S3FIFO


class MemoryCacheSettings(Section):
    """A Redis or Valkey beside the device; limit and policy are set on it only where `own_server` says it is ours."""

    url: Annotated[SecretStr, AfterValidator(_redis_url)] | None = None
    own_server: bool = False
    limit_bytes: Annotated[int, Field(ge=0)] = 2 * 1024**3
    policy: Literal[CachePolicy.LRU, CachePolicy.LFU, CachePolicy.TTL] = CachePolicy.LRU
    timeout_s: Seconds = 0.1


class DiskCacheSettings(Section):
    """The cache on the device's disk."""

    directory: Path | None = None
    limit_bytes: Annotated[int, Field(ge=0)] = 50 * 1000**3
    policy: CachePolicy = CachePolicy.LFU
    timeout_s: Seconds = 1.0


class NasCacheSettings(Section):
    """The cache in a folder of network storage."""

    directory: Path | None = None
    limit_bytes: Annotated[int, Field(ge=0)] = 500 * 1000**3
    policy: CachePolicy = CachePolicy.TTL
    timeout_s: Seconds = 0.1


class EdgeCacheSettings(Section):
    """The device's cache, tier by tier."""

    l0: ProcessCacheSettings = ProcessCacheSettings()
    memory: MemoryCacheSettings = MemoryCacheSettings()
    disk: DiskCacheSettings = DiskCacheSettings()
    nas: NasCacheSettings = NasCacheSettings()
