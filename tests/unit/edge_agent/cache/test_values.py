"""A value comes back as it was given, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.cache.values import MAX_VALUE_BYTES, Stored, check_key, decode, encode
from primespark.errors import IntegrityError, InvalidInputError, TooLargeError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)


@given(JSON | st.binary())
def test_every_json_value_and_bytes_come_back_equal(value: Any) -> None:
    found = decode(encode(value))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        (1, 2), {1: "a"}, {"a": (1,)}, {1, 2}, float("nan"), [float("inf")], object(), "\ud800", {"a": b"bytes"},
    ],
    ids=repr,
)  # fmt: skip
def test_what_json_would_change_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        encode(value)
    assert caught.value.code == "uncacheable_value"


def test_a_value_without_end_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    round_trip: list[Any] = []
    round_trip.append(round_trip)
    for value in (deep, round_trip):
        with pytest.raises(InvalidInputError):
            encode(value)
    with pytest.raises(TooLargeError):
        encode(bytes(MAX_VALUE_BYTES + 1))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000], ids=len)
def test_what_is_no_json_any_more_is_damaged(data: bytes) -> None:
    with pytest.raises(IntegrityError) as caught:
        decode(Stored(data, is_json=True))
    assert caught.value.code == "damaged_entry"


@pytest.mark.parametrize("key", ["", "x" * 513, "é" * 257, "a\0b", "\udc80", 7, None, b"key"], ids=repr)
def test_what_is_no_key_is_refused(key: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_key(key)
    assert caught.value.code == "bad_cache_key"


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 1e10])
def test_a_ttl_is_some_time(ttl: float) -> None:
    with pytest.raises(InvalidInputError) as caught:
        encode(b"", ttl)
    assert caught.value.code == "bad_ttl"
