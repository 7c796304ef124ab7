"""Messages to batches of rows: one JSON record, or zstd-compressed JSON lines, as the header `content-type` says.

A message is taken whole or not at all: what is said here to be malformed goes to the dead-letter topic as it came.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NoReturn

from primespark.core.encoding import JSON_LINES_ZSTD, decompress
from primespark.errors import InvalidInputError, MalformedError, TooLargeError, UnsupportedMediaError
from primespark.windows.records import Batch

JSON_RECORD = "application/json"
MAX_DECODED_BYTES = 16 * 1024 * 1024
# Rows are taken in without a pause, so their number bounds how long nothing else happens.
MAX_ROWS = 20_000
# A record may go out again as one message, escaped to up to six times its size, which must stay below 1 MB.
MAX_RECORD_BYTES = 128 * 1024
_MAX_LOG_SEQ_DIGITS = 19

Headers = Iterable[tuple[str, bytes]]


def decode(
    topic: str, partition: int, offset: int, value: bytes | None, headers: Headers | None, at_ms: int | None
) -> Batch:
    """The batch in one message.

    Raises:
        InvalidInputError: Not what its content type says, too large, or of an unknown content type.
    """
    if not value:
        raise MalformedError("empty message")
    by_name = dict(headers or ())
    content_type = _text(by_name, "content-type") or JSON_RECORD
    if content_type == JSON_RECORD:
        lines = [value]
    elif content_type == JSON_LINES_ZSTD:
        lines = [line for line in decompress(value, MAX_DECODED_BYTES).split(b"\n") if line.strip()]
    else:
        raise UnsupportedMediaError(f"content type {content_type[:80]!r}")
    if len(lines) > MAX_ROWS:
        raise TooLargeError(f"more than {MAX_ROWS} records")
    rows = [_row(line) for line in lines]
    return Batch(topic, partition, offset, rows, log_seq=_log_seq(by_name), at_ms=at_ms)


def _row(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_RECORD_BYTES:
        raise TooLargeError(f"a record of more than {MAX_RECORD_BYTES} bytes")
    try:
        row = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise MalformedError("not JSON") from None
    if not isinstance(row, dict):
        raise MalformedError("a record is a JSON object")
    return row


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _log_seq(headers: dict[str, bytes]) -> int | None:
    text = _text(headers, "log_seq")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_LOG_SEQ_DIGITS):
        raise MalformedError("header log_seq is not a decimal number")
    return int(text)


def _text(headers: dict[str, bytes], name: str) -> str | None:
    raw = headers.get(name)
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidInputError(f"header {name} is not UTF-8", code="malformed") from None
