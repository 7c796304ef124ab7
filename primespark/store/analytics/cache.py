"""Answers that are kept in a Redis or Valkey: they save time, and are never the truth.

An answer's key holds how often the samples of its series and days have changed, read at the same moment as the answer.
So a sample that comes late makes an old answer unreachable, and only answers that touch its day.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from zlib import crc32

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from primespark.core.logging import get_logger
from primespark.store.analytics.series import Series

# Checksum of all that follows, bytes of the JSON that does.
_HEAD = struct.Struct("<4sII")
_FORMAT = b"PSQ1"
_PREFIX = "primespark:analytics:"
# Kept values are only ever made useless, never wrong; this frees what nobody asks for where the server has no limit.
_TTL_S = 24 * 3600
_MAX_BYTES = 8 * 1024 * 1024
_TIMEOUT_S = 0.1
_PAUSE_S = 5.0

log = get_logger(__name__)


class AnswerCache(Protocol):
    """Where packed answers are kept for a while."""

    def get(self, key: str) -> bytes | None:
        """What was kept; None when there is nothing, or nobody answers."""

    def put(self, key: str, packed: bytes) -> None:
        """Keep an answer, if that can be done."""


class NoCache:
    """Keeps nothing."""

    def get(self, key: str) -> bytes | None:
        """Nothing."""
        return None

    def put(self, key: str, packed: bytes) -> None:
        """Nothing happens."""


class RedisCache:
    """Keeps answers in a Redis or Valkey; while that fails it is left alone for some seconds.

    Args:
        url: `unix:///run/valkey.sock` or `redis://HOST:6379/0`.
    """

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(
            url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
        self._resumes_at = 0.0

    def get(self, key: str) -> bytes | None:
        """What was kept; None when there is nothing, or nobody answers."""
        found = self._ask(lambda: self._client.get(_PREFIX + key))
        return found if isinstance(found, bytes) else None

    def put(self, key: str, packed: bytes) -> None:
        """Keep an answer for a day at most, if the server takes it."""
        if len(packed) <= _MAX_BYTES:
            self._ask(lambda: self._client.set(_PREFIX + key, packed, ex=_TTL_S))

    def _ask(self, question: Callable[[], Any]) -> Any:
        if time.monotonic() < self._resumes_at:
            return None
        try:
            return question()
        except (redis.RedisError, OSError) as error:
            self._resumes_at = time.monotonic() + _PAUSE_S
            log.warning("query_cache_failed", cause=str(error)[:200])
            return None


def key_of(*parts: Any) -> str:
    """The key of an answer to a question that is told by `parts`, of JSON."""
    told = json.dumps([_FORMAT.decode(), sys.byteorder, *parts], separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(told.encode()).hexdigest()


def pack(series: list[Series], notes: dict[str, Any]) -> bytes:
    """Series and `notes`, of JSON, as bytes that `unpack` reads."""
    told = {"notes": notes, "series": [[one.group, len(one.times), len(one.columns)] for one in series]}
    header = json.dumps(told, separators=(",", ":")).encode()
    body = b"".join([header, *(part for one in series for part in _bytes_of(one))])
    return _HEAD.pack(_FORMAT, crc32(body), len(header)) + body


def _bytes_of(series: Series) -> Iterator[bytes]:
    yield series.times.tobytes()
    for column in series.columns:
        yield column.tobytes()


def unpack(packed: bytes) -> tuple[list[Series], dict[str, Any]] | None:
    """What was packed; None for anything else."""
    if len(packed) < _HEAD.size:
        return None
    kind, checksum, header_bytes = _HEAD.unpack_from(packed)
    body = memoryview(packed)[_HEAD.size :]
    if kind != _FORMAT or crc32(body) != checksum:
        return None
    told = json.loads(bytes(body[:header_bytes]))
    at = header_bytes
    series = []
    for group, count, width in told["series"]:
        times = array("q")
        times.frombytes(body[at : (at := at + 8 * count)])
        columns = [array("d") for _ in range(width)]
        for column in columns:
            column.frombytes(body[at : (at := at + 8 * count)])
        series.append(Series(group, times, columns))
    return series, told["notes"]
