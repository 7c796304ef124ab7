"""Bodies on the wire: zstd, `Content-Digest` (RFC 9530) over the bytes sent, and a cap on what unpacks."""

from __future__ import annotations

import base64
import hashlib
import sys

from primespark.errors import MalformedError, TooLargeError, UnsupportedMediaError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD = "zstd"
IDENTITY = "identity"
# Content type of a Kafka message that holds one record a line, in one zstd frame.
JSON_LINES_ZSTD = "application/x-ndjson+zstd"
# Below this a frame header costs more than compression saves.
_MINIMUM_COMPRESSED_BYTES = 256
_LEVEL = 1


def content_digest(body: bytes) -> str:
    """The `Content-Digest` of `body`."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def encode_body(payload: bytes) -> tuple[bytes, dict[str, str]]:
    """`payload` as sent, with the headers that describe it."""
    if len(payload) < _MINIMUM_COMPRESSED_BYTES:
        return payload, {"Content-Digest": content_digest(payload)}
    body = zstd.compress(payload, _LEVEL)
    return body, {"Content-Encoding": ZSTD, "Content-Digest": content_digest(body)}


def decode_body(body: bytes, *, encoding: str | None, digest: str | None, max_bytes: int) -> bytes:
    """The payload of a received body.

    Args:
        body: The bytes as received.
        encoding: `Content-Encoding`; None means identity.
        digest: `Content-Digest`, checked when given.
        max_bytes: Most bytes the payload may have.

    Raises:
        MalformedError: The digest does not match, or the frame is damaged.
        TooLargeError: More than `max_bytes`.
        UnsupportedMediaError: An encoding other than identity and zstd.
    """
    if digest is not None and digest.strip() != content_digest(body):
        raise MalformedError("Content-Digest does not match the body", remedy="send the batch again", code="bad_digest")
    if encoding in (None, "", IDENTITY):
        payload = body
    elif encoding == ZSTD:
        payload = decompress(body, max_bytes)
    else:
        raise UnsupportedMediaError(f"Content-Encoding {encoding[:40]!r}", remedy="send identity or zstd")
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
    """
    decompressor = zstd.ZstdDecompressor()
    try:
        payload = decompressor.decompress(body, max_length=max_bytes + 1)
    except zstd.ZstdError:
        raise MalformedError("not a zstd frame", code="bad_encoding") from None
    if len(payload) > max_bytes:
        raise TooLargeError(f"unpacks to more than {max_bytes} bytes", remedy="send smaller batches")
    if not decompressor.eof or decompressor.unused_data:
        raise MalformedError("zstd frame is cut off or followed by other bytes", code="bad_encoding")
    return payload
