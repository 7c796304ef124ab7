"""How much JSON is taken: a value takes up to a thousand times the memory of its text, an error about it more. Pure."""

from __future__ import annotations

import re

from primespark.errors import TooLargeError

MAX_JSON_VALUES = 1_000_000
MAX_JSON_NAMES = 500_000
# A text, to its end or the body's: what is cut off must not be looked for again from each quote on.
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+', re.DOTALL)


def check_json_size(body: bytes) -> None:
    """Nothing, if a body of JSON has at most as many values and names as are taken.

    Raises:
        TooLargeError: Code `too_many_values`.
    """
    # Texts are left out only where they could make the difference: that costs ten times as much.
    if _is_too_much(body) and _is_too_much(_TEXT.sub(b"", body)):
        raise TooLargeError(
            f"more than {MAX_JSON_VALUES} values or {MAX_JSON_NAMES} names in JSON",
            remedy="send less at once, tensors as binary data",
            code="too_many_values",
        )


def _is_too_much(body: bytes) -> bool:
    # Each value ends at a comma or at the end of what holds it.
    values = body.count(b",") + body.count(b"[") + body.count(b"{")
    return values > MAX_JSON_VALUES or body.count(b":") > MAX_JSON_NAMES
