"""Tensors keep their elements over the wire, and what is no tensor of its shape and type is refused."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from numpy.typing import NDArray

from edge_agent.open_inference.tensors import (
    NUMPY_TYPES,
    Datatype,
    TensorForm,
    datatype_of,
    forms,
    from_bytes,
    from_json,
    to_bytes,
    to_json,
)
from primespark.errors import InvalidInputError

# By the protocol's table, apart from the code: the letter of `struct`, whose "<" is little-endian without padding.
LETTERS = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
SHAPES = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4)


@st.composite
def any_array(draw: st.DrawFn, finite: bool) -> NDArray[Any]:
    kind = draw(st.sampled_from(list(NUMPY_TYPES.values())))
    more = {"allow_nan": not finite, "allow_infinity": not finite} if kind.kind == "f" else {}
    array: NDArray[Any] = draw(
        arrays_of.arrays(kind, draw(SHAPES), elements=arrays_of.from_dtype(kind, **more))  # type: ignore[arg-type]
    )
    return array


def same(left: NDArray[Any], right: NDArray[Any]) -> bool:
    """Type, shape and every bit, so NaN and -0.0 too."""
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@given(any_array(finite=True), st.booleans())
def test_json_keeps_every_finite_number(array: NDArray[Any], nested: bool) -> None:
    elements = array.tolist() if nested and array.ndim else to_json("x", array)
    received = json.loads(json.dumps(elements, allow_nan=False))
    assert same(from_json("x", received, datatype_of(array), array.shape), array)


@given(any_array(finite=False), st.integers(0, 7))
def test_binary_data_keeps_every_bit_wherever_it_lies(array: NDArray[Any], offset: int) -> None:
    sent = to_bytes(array)
    received = from_bytes("x", memoryview(bytes(offset) + sent)[offset:], datatype_of(array), array.shape)
    assert same(received, array)
    assert received.flags.c_contiguous
    assert received.flags.aligned


@given(any_array(finite=False))
def test_binary_data_is_what_struct_packs(array: NDArray[Any]) -> None:
    letter = LETTERS[datatype_of(array)]
    assert to_bytes(np.asfortranarray(array)) == struct.pack(f"<{array.size}{letter}", *array.reshape(-1).tolist())


@given(any_array(finite=False), st.integers(-9, 9).filter(bool))
def test_binary_data_of_another_length_is_refused(array: NDArray[Any], more: int) -> None:
    sent = to_bytes(array)
    changed = sent[:more] if more < 0 else sent + bytes(more)
    if len(changed) == len(sent):
        return
    with pytest.raises(InvalidInputError) as caught:
        from_bytes("x", memoryview(changed), datatype_of(array), array.shape)
    assert (caught.value.code, caught.value.http_status) == ("bad_binary_data", 400)


def test_an_output_may_be_empty() -> None:
    for kind in NUMPY_TYPES.values():
        empty = np.empty((0, 4), kind)
        assert (to_json("x", empty), to_bytes(empty)) == ([], b"")


def test_a_bool_of_two_is_refused() -> None:
    with pytest.raises(InvalidInputError) as caught:
        from_bytes("x", memoryview(b"\x00\x01\x02"), Datatype.BOOL, [3])
    assert caught.value.code == "bad_binary_data"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=4), st.sampled_from(Datatype), st.lists(st.integers(1, 4), max_size=3))
def test_any_json_is_a_tensor_of_its_shape_or_refused(data: list[Any], datatype: Datatype, shape: list[int]) -> None:
    found = outcome(data, datatype, shape)
    if isinstance(found, InvalidInputError):
        assert found.code in ("bad_tensor", "unsupported_tensor")
        assert "\n" not in found.message
    else:
        assert (found.dtype, found.shape) == (NUMPY_TYPES[datatype], tuple(shape))
        assert datatype.startswith("FP") or flattened(data) == found.reshape(-1).tolist()


def outcome(data: list[Any], datatype: Datatype, shape: list[int]) -> NDArray[Any] | InvalidInputError:
    try:
        return from_json("x", data, datatype, shape)
    except InvalidInputError as error:
        return error


def flattened(data: Any) -> list[Any]:
    return [leaf for item in data for leaf in flattened(item)] if isinstance(data, list) else [data]


@pytest.mark.parametrize(
    ("data", "datatype", "shape"),
    [
        ([1, 2, 3], "INT32", [2]), ([1], "INT32", [2]), ([[1, 2], [3]], "INT32", [2, 2]), ([[1, 2]], "INT32", [2]),
        ([[1, 2, 3], [4]], "INT32", [2, 2]),
        ([[1, 2, 3, 4]], "INT32", [2, 2]), ([[1, 2], 3], "INT32", [2, 2]), ([[[1]], [[2]]], "INT32", [2, 1]),
        ([[1]], "INT32", []), ([1.0], "INT32", [1]), ([True], "INT32", [1]), (["1"], "INT32", [1]),
        ([None], "FP32", [1]), ([True], "FP32", [1]), ([0, 1], "BOOL", [2]), ([256], "UINT8", [1]),
        ([-1], "UINT64", [1]), ([2**64], "UINT64", [1]), ([-(2**63) - 1], "INT64", [1]), ([65520], "FP16", [1]),
        ([1e39], "FP32", [1]), ([10**400], "FP64", [1]), ([math.inf], "FP64", [1]), ([math.nan], "FP64", [1]),
        ([1], "INT32", [2**64 - 1]),
    ],
)  # fmt: skip
def test_what_is_no_such_tensor_is_refused(data: list[Any], datatype: str, shape: list[int]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        from_json("x", data, Datatype(datatype), shape)
    assert (caught.value.code, caught.value.http_status) == ("bad_tensor", 422)
    assert caught.value.remedy


def test_the_ends_of_each_range_are_taken() -> None:
    for datatype, kind in NUMPY_TYPES.items():
        if kind.kind in "ui":
            ends = [int(np.iinfo(kind).min), int(np.iinfo(kind).max)]
            assert from_json("x", ends, datatype, [2]).tolist() == ends


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_has_no_word_for_nan_and_infinity(value: float) -> None:
    with pytest.raises(InvalidInputError) as caught:
        to_json("x", np.array([1, value], np.float16))
    assert (caught.value.code, caught.value.remedy) == ("non_finite_output", "ask for it as binary data")


def test_text_is_named_in_metadata_and_not_taken() -> None:
    (form,) = forms(["t"], [np.dtype(object)], [(None,)])
    assert form == TensorForm("t", Datatype.BYTES, (None,))
    with pytest.raises(InvalidInputError) as caught:
        from_json("t", ["a"], Datatype.BYTES, [1])
    assert caught.value.code == "unsupported_tensor"
    with pytest.raises(InvalidInputError) as caught:
        from_bytes("t", memoryview(b"\1\0\0\0a"), Datatype.BYTES, [1])
    assert caught.value.code == "unsupported_tensor"


def test_a_type_the_protocol_does_not_have_is_refused() -> None:
    with pytest.raises(InvalidInputError) as caught:
        forms(["z"], [None], [()])
    assert caught.value.code == "unsupported_tensor"
    assert "z" in caught.value.message


def test_a_length_that_is_not_fixed_is_minus_one() -> None:
    form = TensorForm("x", Datatype.FP32, (None, 3))
    assert form.wire_shape == [-1, 3]
    assert form.fits(np.zeros((7, 3), np.float32))
    assert not form.fits(np.zeros((7, 2), np.float32))
    assert not form.fits(np.zeros((7, 3), np.float64))
    assert not form.fits(np.zeros(3, np.float32))
