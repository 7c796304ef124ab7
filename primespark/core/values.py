"""What the store can keep of JSON and text, checked before it is asked to, on the device and in the cloud."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json

from primespark.errors import InvalidInputError

# Between these every time has a form in all clients; a clock that never was set starts at the epoch.
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(9000, 1, 1, tzinfo=UTC)
# Sums of squared deviations over any number of values stay finite below this.
LARGEST_NUMBER = 1e140
# One for all: making an encoder for each value, as `json.dumps` does, costs as much as encoding a small one.
_to_json = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode

# Python writes out numbers of up to 4300 digits.
_MAX_SHORT_CHARACTERS = 4096


def storable_json(value: Any) -> str:
    """`value` as JSON text that a `jsonb` column takes.

    Raises:
        InvalidInputError: Code `unstorable_value`: NaN, infinity, NUL, half a surrogate pair, or an endless number.
    """
    try:
        text = _to_json(value)
        if not text.isascii():
            text.encode()
    except (ValueError, RecursionError):
        raise _unstorable() from None
    # The escape may also be written out in a string, which is harmless: look closer only then.
    if "\\u0000" in text and _has_nul(value):
        raise _unstorable()
    return text


def storable_parsed_json(value: Any) -> str:
    """As `storable_json`, at a tenth of the cost where it is short, for what was read from JSON and nothing else.

    Raises:
        InvalidInputError: As `storable_json`, of the same values.
    """
    try:
        text = to_json(value).decode()
    except ValueError:
        return storable_json(value)
    # It writes NaN and infinity, and numbers without an end, which are longer than this.
    if len(text) > _MAX_SHORT_CHARACTERS or "NaN" in text or "Infinity" in text or "\\u0000" in text:
        return storable_json(value)
    return text


def check_text(*texts: str) -> None:
    """Refuse what a `text` column cannot keep.

    Raises:
        InvalidInputError: Code `unstorable_value`.
    """
    for text in texts:
        if not is_storable_text(text):
            raise _unstorable()


def is_storable_text(text: str) -> bool:
    """Whether a `text` column can keep it: no NUL, no half of a surrogate pair."""
    return "\x00" not in text and (text.isascii() or _is_encodable(text))


def clean_text(text: str) -> str:
    """`text` with what a `text` column cannot keep replaced by question marks."""
    return text.replace("\x00", "?").encode("utf-8", "replace").decode()


def check_time(moment: datetime) -> None:
    """Refuse times before 1970 and after 9000.

    Raises:
        InvalidInputError: Code `bad_time`.
    """
    if not EARLIEST <= moment < LATEST:
        raise InvalidInputError("a time before 1970 or after 9000", remedy="set the clock", code="bad_time")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, dict):
        return any(_has_nul(key) or _has_nul(child) for key, child in value.items())
    return isinstance(value, list) and any(_has_nul(child) for child in value)


def _unstorable() -> InvalidInputError:
    return InvalidInputError(
        "a value that JSON in the store cannot hold: NaN, infinity, NUL or half a surrogate pair",
        remedy="send finite numbers and valid Unicode",
        code="unstorable_value",
    )
