"""What the store refuses of JSON and text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primespark.core.values import check_text, clean_text, storable_json, storable_parsed_json
from primespark.errors import InvalidInputError

characters = st.characters(codec=None) | st.sampled_from(["\x00", "\\u0000", "\\", "\ud800"])
texts = st.lists(characters, max_size=5).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(values)
def test_storable_is_what_has_neither_nul_nor_surrogate_nor_nan(value: Any) -> None:
    if _is_clean(value):
        assert json.loads(storable_json(value)) == value
    else:
        with pytest.raises(InvalidInputError) as caught:
            storable_json(value)
        assert caught.value.code == "unstorable_value"


@settings(max_examples=300)
@given(values)
def test_what_was_read_from_json_is_storable_alike(value: Any) -> None:
    try:
        text = storable_json(value)
    except InvalidInputError:
        with pytest.raises(InvalidInputError):
            storable_parsed_json(value)
    else:
        assert json.loads(storable_parsed_json(value)) == json.loads(text)


@pytest.mark.parametrize("value", [{"n": 10**4300}, {"n": -(10**5000)}, [float("-inf")], {"NaN": float("nan")}])
def test_numbers_without_an_end_are_refused_by_both(value: Any) -> None:
    for write in (storable_json, storable_parsed_json):
        with pytest.raises(InvalidInputError):
            write(value)


@pytest.mark.parametrize(
    "value", [{"NaN": "Infinity"}, [10**4299], {"text": "x" * 5000}, "\\u0000", [1e16, 1e-5, -0.0]]
)
def test_what_looks_like_it_is_taken(value: Any) -> None:
    assert json.loads(storable_parsed_json(value)) == value


def test_deep_values_are_storable_alike() -> None:
    value: Any = 1
    for _ in range(400):
        value = [value]
    assert storable_parsed_json(value) == storable_json(value)


@given(texts)
def test_cleaned_text_is_storable(text: str) -> None:
    cleaned = clean_text(text)
    check_text(cleaned)
    assert (cleaned == text) == _is_clean(text)


def _is_clean(value: Any) -> bool:
    if isinstance(value, str):
        return not any(character == "\x00" or 0xD800 <= ord(character) <= 0xDFFF for character in value)
    if isinstance(value, dict):
        return all(_is_clean(key) and _is_clean(child) for key, child in value.items())
    if isinstance(value, list):
        return all(_is_clean(child) for child in value)
    return not isinstance(value, float) or value - value == 0
