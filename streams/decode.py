"""Messages to batches of rows: one JSON record, zstd-compressed JSON lines, or Arrow, as header `content-type` says.

A message is taken whole or not at all: what is said here to be malformed goes to the dead-letter topic as it came.
Each is parsed by itself, so none can reach beyond its bounds; to join them first would not be faster.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from pydantic_core import from_json

from primespark.core.encoding import JSON_LINES_ZSTD, decompress
from primespark.errors import InvalidInputError, MalformedError, TooLargeError, UnsupportedMediaError
from primespark.windows.records import Batch, Messages, Row, Singles
from primespark.windows.repartition import REPARTITION_TOPIC, RoutedMessage
from streams.arrow import ARROW_STREAM, rows_of
from streams.routing import ROUTED, from_routed_message

JSON_RECORD = "application/json"
MAX_DECODED_BYTES = 16 * 1024 * 1024
# Rows are taken in without a pause, so their number bounds how long nothing else happens.
MAX_ROWS = 20_000
# A record may go out again as one message, escaped to up to six times its size, which must stay below 1 MB.
MAX_RECORD_BYTES = 128 * 1024
_MAX_LOG_SEQ_DIGITS = 19
# Enough to be taken in as columns at little cost each, few enough for several rules.
_ROWS_AT_ONCE = 5_000
# A small message can unpack to much that has no rows.
_DECODE_AT_ONCE_S = 0.025
# Of a single record that the relay did not publish.
_PLAIN_HEADERS = ((), (("content-type", JSON_RECORD.encode()),))

Headers = Iterable[tuple[str, bytes]]


class Record(Protocol):
    """A message as the broker gave it."""

    @property
    def offset(self) -> int:
        """Its offset."""

    @property
    def value(self) -> bytes | None:
        """Its content."""

    @property
    def headers(self) -> Headers | None:
        """Its headers."""

    @property
    def timestamp(self) -> int | None:
        """When it was published, in milliseconds."""


@dataclass(frozen=True, slots=True)
class Poison:
    """A message that cannot be decoded, and why."""

    offset: int
    value: bytes
    error: InvalidInputError


Decoded = Messages | RoutedMessage | Poison


def portions(topic: str, partition: int, records: Iterable[Record]) -> Iterator[list[Decoded]]:
    """The messages in order, as many at a time as go without a pause; each is decoded when its portion is asked for."""
    portion: list[Decoded] = []
    singles = Singles(topic, partition)
    rows, until = 0, time.monotonic() + _DECODE_AT_ONCE_S
    plain_headers = () if topic == REPARTITION_TOPIC else _PLAIN_HEADERS
    for record in records:
        row = _plain(record.value) if record.headers in plain_headers else None
        if row is not None:
            if not singles.rows:
                portion.append(singles)
            singles.rows.append(row)
            singles.offsets.append(record.offset)
            singles.moments.append(record.timestamp)
            rows += 1
            if rows < _ROWS_AT_ONCE:
                continue
        else:
            taken = _whole(topic, partition, record)
            portion.append(taken)
            rows += 1 if isinstance(taken, Poison) else len(taken.rows)
            singles = Singles(topic, partition)
        if rows >= _ROWS_AT_ONCE or time.monotonic() > until:
            yield portion
            portion, singles = [], Singles(topic, partition)
            rows, until = 0, time.monotonic() + _DECODE_AT_ONCE_S
    if portion:
        yield portion


def _plain(value: bytes | None) -> dict[str, Any] | None:
    """The row of a message like most; None if it is one that is to be looked at closely."""
    if not value or len(value) > MAX_RECORD_BYTES:
        return None
    try:
        row = from_json(value, allow_inf_nan=False)
    except ValueError:
        return None
    return row if type(row) is dict else None


def _whole(topic: str, partition: int, record: Record) -> Batch | RoutedMessage | Poison:
    try:
        if topic == REPARTITION_TOPIC:
            return _routed(partition, record)
        return decode(topic, partition, record.offset, record.value, record.headers, record.timestamp)
    except InvalidInputError as error:
        return Poison(record.offset, record.value or b"", error)


def _routed(partition: int, record: Record) -> RoutedMessage:
    if _text(dict(record.headers or ()), "content-type") != ROUTED:
        raise UnsupportedMediaError(f"not of content type {ROUTED}")
    return RoutedMessage(REPARTITION_TOPIC, partition, record.offset, *from_routed_message(record.value or b""))


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
        rows: Sequence[Row] = [_row(value)]
    elif content_type == JSON_LINES_ZSTD:
        rows = _rows_of_lines(decompress(value, MAX_DECODED_BYTES))
    elif content_type == ARROW_STREAM:
        rows = rows_of(value, max_rows=MAX_ROWS, max_bytes=MAX_DECODED_BYTES, max_record_bytes=MAX_RECORD_BYTES)
    else:
        raise UnsupportedMediaError(f"content type {content_type[:80]!r}")
    return Batch(topic, partition, offset, rows, log_seq=_log_seq(by_name), at_ms=at_ms)


def _rows_of_lines(text: bytes) -> list[dict[str, Any]]:
    lines = [line for line in text.split(b"\n") if line.strip()]
    if len(lines) > MAX_ROWS:
        raise TooLargeError(f"more than {MAX_ROWS} records")
    return [_row(line) for line in lines]


def _row(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_RECORD_BYTES:
        raise TooLargeError(f"a record of more than {MAX_RECORD_BYTES} bytes")
    try:
        row = from_json(line, allow_inf_nan=False)
    except ValueError:
        row = _patiently(line)
    if not isinstance(row, dict):
        raise MalformedError("a record is a JSON object")
    return row


def _patiently(line: bytes) -> Any:
    """What is JSON and the fast parser does not take, such as deep nesting."""
    try:
        return json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise MalformedError("not JSON") from None


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
