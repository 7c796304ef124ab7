"""Bodies on the wire: zstd, `Content-Digest` (RFC 9530) over the bytes sent, and a cap on what unpacks.

A short batch is packed with a dictionary of what batches look like, which ships with the package
(`tools/train_dictionary.py`); the frame tells its number.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from primespark.errors import MalformedError, TooLargeError, UnsupportedMediaError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD = "zstd"
GZIP = "gzip"
IDENTITY = "identity"
# Content type of a Kafka message that holds one record a line, in one zstd frame.
JSON_LINES_ZSTD = "application/x-ndjson+zstd"
# Below this a frame header costs more than compression saves.
_MINIMUM_COMPRESSED_BYTES = 256
_LEVEL = 1
# Of dictionaries that devices in the field may use.
_DICTIONARIES = frozenset({1})
_NEWEST_DICTIONARY = 1
# What is longer holds enough to learn from itself.
_LONGEST_FOR_DICTIONARY_BYTES = 32 * 1024
# Ten records take 1 ms on the machine of the benchmarks, and a tenth less of the wire; a hundred would take 11 ms.
_LONGEST_FOR_BEST_BYTES = 8 * 1024
_BEST_LEVEL, _DICTIONARY_LEVEL, _BATCH_LEVEL = 19, 9, 6


# From a body as sent, and the most bytes it may have unpacked, to the payload.
Unpacker = Callable[[bytes, int], bytes]


def content_digest(body: bytes) -> str:
    """The `Content-Digest` of `body`."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def encode_body(payload: bytes, *, with_dictionary: bool = False) -> tuple[bytes, dict[str, str]]:
    """`payload` as sent, with the headers that describe it; a short one with the dictionary, if the receiver has it."""
    if len(payload) < _MINIMUM_COMPRESSED_BYTES:
        return payload, {"Content-Digest": content_digest(payload)}
    if with_dictionary and len(payload) <= _LONGEST_FOR_DICTIONARY_BYTES:
        level = _BEST_LEVEL if len(payload) <= _LONGEST_FOR_BEST_BYTES else _DICTIONARY_LEVEL
        body = zstd.compress(payload, level, zstd_dict=_dictionary(_NEWEST_DICTIONARY))
    else:
        body = zstd.compress(payload, _BATCH_LEVEL)
    return body, {"Content-Encoding": ZSTD, "Content-Digest": content_digest(body)}


def decode_body(
    body: bytes,
    *,
    encoding: str | None,
    digest: str | None,
    max_bytes: int,
    unpackers: Mapping[str, Unpacker] | None = None,
) -> bytes:
    """The payload of a received body.

    Args:
        body: The bytes as received.
        encoding: `Content-Encoding`; None means identity.
        digest: `Content-Digest`, checked when given.
        max_bytes: Most bytes the payload may have.
        unpackers: By encoding that is accepted beside identity; zstd when absent.

    Raises:
        MalformedError: The digest does not match, or the frame is damaged.
        TooLargeError: More than `max_bytes`.
        UnsupportedMediaError: Another encoding; code `unknown_dictionary`.
    """
    unpackers = _ZSTD_ALONE if unpackers is None else unpackers
    if digest is not None and digest.strip() != content_digest(body):
        raise MalformedError("Content-Digest does not match the body", remedy="send the batch again", code="bad_digest")
    if encoding in (None, "", IDENTITY):
        payload = body
    elif encoding in unpackers:
        payload = unpackers[encoding](body, max_bytes)
    else:
        accepted = " or ".join([IDENTITY, *unpackers])
        raise UnsupportedMediaError(f"Content-Encoding {encoding[:40]!r}", remedy=f"send {accepted}")
    if len(payload) > max_bytes:
        raise TooLargeError(f"body of more than {max_bytes} bytes", remedy="send smaller batches")
    return payload


def compress(payload: bytes, level: int = _LEVEL) -> bytes:
    """One zstd frame."""
    return zstd.compress(payload, level)


def decompress(body: bytes, max_bytes: int) -> bytes:
    """The content of exactly one zstd frame of at most `max_bytes`.

    Raises:
        MalformedError: Damaged, cut off, or followed by other bytes.
        TooLargeError: It unpacks to more than `max_bytes`.
        UnsupportedMediaError: Code `unknown_dictionary`.
    """
    try:
        number = zstd.get_frame_info(body).dictionary_id
        if number and number not in _DICTIONARIES:
            raise UnsupportedMediaError(
                f"packed with dictionary {number}", remedy="send it without", code="unknown_dictionary"
            )
        decompressor = zstd.ZstdDecompressor(_dictionary(number) if number else None)
        payload = decompressor.decompress(body, max_length=max_bytes + 1)
    except zstd.ZstdError:
        raise MalformedError("not a zstd frame", code="bad_encoding") from None
    if len(payload) > max_bytes:
        raise TooLargeError(f"unpacks to more than {max_bytes} bytes", remedy="send smaller batches")
    if not decompressor.eof or decompressor.unused_data:
        raise MalformedError("zstd frame is cut off or followed by other bytes", code="bad_encoding")
    return payload


def gunzip(body: bytes, max_bytes: int) -> bytes:
    """The content of exactly one gzip member of at most `max_bytes`.

    Raises:
        MalformedError: Damaged, cut off, or followed by other bytes.
        TooLargeError: It unpacks to more than `max_bytes`.
    """
    member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        payload = member.decompress(body, max_bytes + 1)
    except zlib.error:
        raise MalformedError("not gzip", code="bad_encoding") from None
    if len(payload) > max_bytes:
        raise TooLargeError(f"unpacks to more than {max_bytes} bytes", remedy="send less at once")
    if not member.eof or member.unused_data:
        raise MalformedError("gzip is cut off or followed by other bytes", code="bad_encoding")
    return payload


_ZSTD_ALONE: Mapping[str, Unpacker] = MappingProxyType({ZSTD: decompress})


@cache
def _dictionary(number: int) -> zstd.ZstdDict:
    return zstd.ZstdDict(files("primespark").joinpath("_data", "wire", f"batch-{number}.zdict").read_bytes())
