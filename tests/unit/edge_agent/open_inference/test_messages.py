"""Requests are read whole or refused: whatever is sent, the answer is arrays or an error of the caller's."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.open_inference.messages import Asked, read_request
from edge_agent.open_inference.tensors import datatype_of, to_bytes
from primespark.core.web.json_bounds import MAX_JSON_VALUES
from primespark.errors import PrimeSparkError
from tests.unit.edge_agent.open_inference.test_tensors import any_array, same

Arrays = dict[str, NDArray[Any]]


def request(arrays: Arrays, binary: set[str], **more: Any) -> tuple[bytes, int]:
    """A body, and how much of it is JSON."""
    inputs, tail = [], b""
    for name, array in arrays.items():
        form: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype_of(array)}
        if name in binary:
            piece = to_bytes(array)
            inputs.append({**form, "parameters": {"binary_data_size": len(piece)}})
            tail += piece
        else:
            inputs.append({**form, "data": array.reshape(-1).tolist()})
    head = json.dumps({"inputs": inputs, **more}).encode()
    return head + tail, len(head)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)
ANY = st.dictionaries(NAMES, any_array(finite=True), min_size=1, max_size=4)


@given(ANY, st.data())
def test_every_tensor_arrives_in_json_or_as_binary_data(arrays: Arrays, data: st.DataObject) -> None:
    binary = data.draw(st.sets(st.sampled_from(list(arrays))))
    body, head = request(arrays, binary, id="é\0", parameters={"priority": 2, "timeout": 5})
    asked = read_request(body, str(head))
    assert list(asked.arrays) == list(arrays)
    assert all(same(asked.arrays[name], arrays[name]) for name in arrays)
    assert (asked.id, asked.parameters.priority, asked.parameters.timeout) == ("é\0", 2, 5)


def outcome(body: bytes, header_length: str | None) -> Asked | PrimeSparkError:
    try:
        return read_request(body, header_length)
    except PrimeSparkError as error:
        return error


SENT: Arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([True, False]), "s": np.array(7)}
SPLICES = [b"", b",", b"[", b"{", b"-1", b"1e999", b"NaN", b'"', b"\xff", b"\\ud800", b"null", b"true", b"99999999999"]


@given(st.sets(st.sampled_from(list(SENT))), st.data())
def test_a_changed_body_is_a_request_or_the_callers_fault(binary: set[str], data: st.DataObject) -> None:
    body, head = request(SENT, binary)
    start = data.draw(st.integers(0, len(body)))
    cut = data.draw(st.integers(0, 12))
    changed = body[:start] + data.draw(st.sampled_from(SPLICES) | st.binary(max_size=4)) + body[start + cut :]
    length = data.draw(st.none() | st.integers(-2, len(body) + 2).map(str) | st.just(str(head)) | st.text(max_size=4))
    found = outcome(changed, length)
    if isinstance(found, PrimeSparkError):
        assert found.http_status in (400, 413, 422)
        assert found.message
        assert "\n" not in found.message
    else:
        assert found.arrays
        assert all(array.size for array in found.arrays.values())


X: dict[str, Any] = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
B: dict[str, Any] = {"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}


@pytest.mark.parametrize(
    ("head", "tail", "length", "status", "code"),
    [
        ({"inputs": [B]}, b"\0\0\0\0", None, 400, "malformed"),
        ({"inputs": [B]}, b"", None, 400, "bad_binary_data"),
        ({"inputs": [B]}, b"\0\0\0", "head", 400, "bad_binary_data"),
        ({"inputs": [B]}, b"\0\0\0\0\0", "head", 400, "bad_binary_data"),
        ({"inputs": [{**B, "shape": [2]}]}, b"\0\0\0\0", "head", 400, "bad_binary_data"),
        ({"inputs": [{**B, "parameters": {"binary_data_size": 2**64 - 1}}]}, b"", "head", 400, "bad_binary_data"),
        ({"inputs": [X]}, b"\0", "head", 400, "bad_binary_data"),
        ({"inputs": [X]}, b"", "999", 400, "bad_binary_data"),
        ({"inputs": [X]}, b"", "9" * 5000, 400, "bad_binary_data"),
        ({"inputs": [X]}, b"", "-1", 400, "bad_binary_data"),
        ({"inputs": [X]}, b"", "²", 400, "bad_binary_data"),
        ({"inputs": [X]}, b"", "", 400, "bad_binary_data"),
        ({"inputs": [X]}, b"", "0", 400, "malformed"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": 4}}]}, b"\0\0\0\0", "head", 422, "bad_tensor"),
        ({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}, b"", None, 422, "bad_tensor"),
        ({"inputs": [X, X]}, b"", None, 422, "wrong_model_input"),
        ({"inputs": [X], "outputs": [{"name": "y"}, {"name": "y"}]}, b"", None, 422, "wrong_outputs"),
        ({"inputs": [X], "outputs": []}, b"", None, 422, "invalid_input"),
        ({"inputs": []}, b"", None, 422, "invalid_input"),
        ({}, b"", None, 422, "invalid_input"),
        ({"inputs": [{**X, "datatype": "BYTES", "data": ["a"]}]}, b"", None, 422, "unsupported_tensor"),
        ({"inputs": [{**X, "datatype": "FP8"}]}, b"", None, 422, "invalid_input"),
        ({"inputs": [{**X, "shape": [0], "data": []}]}, b"", None, 422, "invalid_input"),
        ({"inputs": [{**X, "shape": [-1]}]}, b"", None, 422, "invalid_input"),
        ({"inputs": [{**X, "shape": [True]}]}, b"", None, 422, "invalid_input"),
        ({"inputs": [{**X, "shape": [1.0]}]}, b"", None, 422, "invalid_input"),
        ({"inputs": [{**X, "shape": [1] * 40}]}, b"", None, 422, "invalid_input"),
        ({"inputs": [{**X, "shape": [2**64 - 1, 2**64 - 1]}]}, b"", None, 422, "bad_tensor"),
        ({"inputs": [{**X, "parameters": {"shared_memory_region": "r"}}]}, b"", None, 422, "invalid_input"),
        ({"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": 3}}]}, b"", None, 422,
         "invalid_input"),
        ({"inputs": [X], "parameters": {"sequence_id": 5}}, b"", None, 422, "invalid_input"),
        ({"inputs": [X], "parameters": {"priority": -1}}, b"", None, 422, "invalid_input"),
        ({"inputs": [X], "parameters": {"timeout": "5"}}, b"", None, 422, "invalid_input"),
        ({"inputs": [X] * 1000}, b"", None, 422, "invalid_input"),
    ],
)  # fmt: skip
def test_a_bad_request_is_told_why(head: Any, tail: bytes, length: str | None, status: int, code: str) -> None:
    text = json.dumps(head).encode()
    with pytest.raises(PrimeSparkError) as caught:
        read_request(text + tail, str(len(text)) if length == "head" else length)
    assert (caught.value.http_status, caught.value.code) == (status, code), caught.value.message


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"[" * 100_000, 400),
        (b"1" * 1_000_000, 400),
        (b"NaN", 422),
        (b"1e999", 422),
        (b"0," * MAX_JSON_VALUES + b"0", 413),
        (b"{}," * MAX_JSON_VALUES + b"{}", 413),
        (b"{}," * (MAX_JSON_VALUES // 2 - 100) + b"{}", 422),
        (b'"' + b"x" * 10_000_000 + b'"', 422),
    ],
    ids=["deep", "long number", "nan", "infinity", "many", "many objects", "fewer objects", "long text"],
)
def test_what_is_built_to_be_costly_is_not(data: bytes, status: int) -> None:
    body = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [' + data + b"]}]}"
    started = time.process_time()
    with pytest.raises(PrimeSparkError) as caught:
        read_request(body, None)
    assert caught.value.http_status == status
    assert time.process_time() - started < 2
