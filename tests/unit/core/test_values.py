"""What the store refuses of JSON and text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primespark.core.values import check_text, clean_text, storable_json
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
