"""What a cache holds: bytes as they are, or one JSON value; nothing that could run when it is read."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from primespark.errors import IntegrityError, InvalidInputError, TooLargeError

MAX_KEY_BYTES = 512
MAX_VALUE_BYTES = 64 * 1024 * 1024
# What an entry costs beside its value in memory and on disk; counted, so that tiny values do not fill a tier.
ENTRY_BYTES = 160

_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class Stored(NamedTuple):
    """A value as the tiers hold it; a tuple, because one is made for each hit.

    Attributes:
        data: The bytes given, or UTF-8 JSON.
        is_json: Which of the two.
        ttl_s: Seconds it may yet be served; without end when None.
    """

    data: bytes
    is_json: bool = False
    ttl_s: float | None = None


def encode(value: Any, ttl_s: float | None = None) -> Stored:
    """`value` for the tiers; what `decode` answers is equal to it.

    Args:
        value: bytes, or what JSON can say without loss: no tuples, no keys but text, no NaN.
        ttl_s: Seconds it may be served.

    Raises:
        InvalidInputError: Code `uncacheable_value`: anything else; code `bad_ttl`.
        TooLargeError: Over 64 MiB.
    """
    if ttl_s is not None and not 0 < ttl_s < 1e10:
        raise InvalidInputError(f"a ttl of {ttl_s!r} s", remedy="give seconds above 0, or none", code="bad_ttl")
    if isinstance(value, bytes | bytearray | memoryview):
        stored = Stored(bytes(value), is_json=False, ttl_s=ttl_s)
    else:
        stored = Stored(_json_bytes(value), is_json=True, ttl_s=ttl_s)
    if len(stored.data) > MAX_VALUE_BYTES:
        raise TooLargeError(f"a value of {len(stored.data)} bytes, of at most {MAX_VALUE_BYTES}")
    return stored


def decode(stored: Stored) -> Any:
    """The value that was encoded.

    Raises:
        IntegrityError: Code `damaged_entry`: the bytes are not what `encode` makes.
    """
    if not stored.is_json:
        return stored.data
    try:
        return json.loads(stored.data)
    except (ValueError, RecursionError):
        raise IntegrityError("a cached value is not JSON", code="damaged_entry") from None


def check_key(key: str) -> str:
    """`key`, if it is one: 1 to 512 bytes of text.

    Raises:
        InvalidInputError: Code `bad_cache_key`.
    """
    try:
        if isinstance(key, str) and 0 < len(key.encode()) <= MAX_KEY_BYTES and "\0" not in key:
            return key
    except UnicodeEncodeError:
        pass
    raise InvalidInputError(
        "not a cache key", remedy=f"give text of 1 to {MAX_KEY_BYTES} bytes without NUL", code="bad_cache_key"
    )


def _json_bytes(value: Any) -> bytes:
    try:
        data = _to_json(value).encode()
        is_lossless = json.loads(data) == value
    except (TypeError, ValueError, RecursionError) as error:
        raise _uncacheable(f"{type(value).__name__}: {error}"[:200]) from None
    if not is_lossless:
        raise _uncacheable(f"{type(value).__name__}: JSON would change it")
    return data


def _uncacheable(cause: str) -> InvalidInputError:
    return InvalidInputError(
        f"cannot be cached: {cause}", remedy="give bytes, or lists, objects with text keys, text, finite numbers",
        code="uncacheable_value",
    )  # fmt: skip
