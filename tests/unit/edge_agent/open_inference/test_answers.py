"""What a model takes and gives is held against what was asked; and answers are as the protocol has them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.open_inference.answers import (
    MAX_BATCH,
    WantedOutput,
    check_inputs,
    choose_outputs,
    deadline_of,
    encode,
    priority_of,
    told_apart,
)
from edge_agent.open_inference.messages import Asked, RequestedOutput, RequestParameters
from edge_agent.open_inference.tensors import Datatype, TensorForm, datatype_of, from_bytes, from_json
from edge_agent.priority import Priority
from primespark.core.web.json_bounds import MAX_JSON_VALUES
from primespark.errors import InvalidInputError, UnavailableError
from tests.unit.edge_agent.open_inference.test_tensors import any_array, same

TAKES = (TensorForm("x", Datatype.FP32, (None, 3)), TensorForm("rate", Datatype.INT64, ()))
GIVES = (TensorForm("y", Datatype.FP32, (None,)), TensorForm("z", Datatype.UINT8, ()))
RATE = np.array(16_000)


def asked(outputs: list[dict[str, Any]] | None = None, **parameters: Any) -> Asked:
    wanted = None if outputs is None else tuple(RequestedOutput.model_validate(output) for output in outputs)
    return Asked(None, None, RequestParameters(**parameters), wanted, {})


def test_what_fits_is_taken() -> None:
    check_inputs({"rate": RATE, "x": np.zeros((MAX_BATCH, 3), np.float32)}, TAKES)
    check_inputs({"rate": RATE, "x": np.zeros((100, 3), np.float32)}, TAKES, most=100)


@pytest.mark.parametrize(
    ("arrays", "code", "told"),
    [
        ({"x": np.zeros((1, 3), np.float32)}, "wrong_model_input", "the model takes x, rate"),
        ({"rate": RATE, "x": np.zeros((1, 3), np.float32), "u": RATE}, "wrong_model_input", "not rate, x, u"),
        ({"rate": RATE, "x": np.zeros((1, 2), np.float32)}, "wrong_model_input", "x is FP32 [-1, 3], not FP32 [1, 2]"),
        ({"rate": RATE, "x": np.zeros((1, 3), np.int32)}, "wrong_model_input", "x is FP32 [-1, 3], not INT32 [1, 3]"),
        ({"rate": RATE, "x": np.zeros(3, np.float32)}, "wrong_model_input", "not FP32 [3]"),
        ({"rate": RATE[None], "x": np.zeros((1, 3), np.float32)}, "wrong_model_input", "rate is INT64 [], not"),
        ({"rate": RATE, "x": np.zeros((MAX_BATCH + 1, 3), np.float32)}, "batch_too_large", f"limit {MAX_BATCH}"),
    ],
)
def test_what_does_not_fit_is_told(arrays: dict[str, NDArray[Any]], code: str, told: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_inputs(arrays, TAKES)
    assert caught.value.code == code
    assert told in caught.value.message


def test_a_run_that_fails_over_open_lengths_is_the_callers_fault() -> None:
    shapes = UnavailableError("the model did not run: LSTM: 3 dimensions only", code="inference_failed")
    told = told_apart(shapes, TAKES)
    assert (told.code, told.http_status) == ("wrong_model_input", 422)
    assert "LSTM" in told.message
    memory = UnavailableError("the model did not run: Failed to allocate memory", code="inference_failed")
    chip = UnavailableError("lost", code="accelerator_unavailable")
    assert told_apart(memory, TAKES) is memory
    assert told_apart(chip, TAKES) is chip
    assert told_apart(shapes, TAKES[1:]) is shapes


def test_outputs_come_in_the_order_asked_for_each_in_its_form() -> None:
    assert choose_outputs(asked(), GIVES) == (WantedOutput(0, "y", False), WantedOutput(1, "z", False))
    assert choose_outputs(asked(binary_data_output=True), GIVES) == (
        WantedOutput(0, "y", True),
        WantedOutput(1, "z", True),
    )
    both: list[dict[str, Any]] = [{"name": "z", "parameters": {"binary_data": False}}, {"name": "y"}]
    assert choose_outputs(asked(both, binary_data_output=True), GIVES) == (
        WantedOutput(1, "z", False),
        WantedOutput(0, "y", True),
    )
    assert choose_outputs(asked([{"name": "z", "parameters": {"binary_data": True}}]), GIVES) == (
        WantedOutput(1, "z", True),
    )


def test_an_output_that_is_not_there_or_is_text_is_told() -> None:
    with pytest.raises(InvalidInputError) as caught:
        choose_outputs(asked([{"name": "w"}]), GIVES)
    assert (caught.value.code, caught.value.remedy) == ("wrong_outputs", "the model gives y, z")
    with pytest.raises(InvalidInputError) as caught:
        choose_outputs(asked(), (TensorForm("label", Datatype.BYTES, (None,)),))
    assert caught.value.code == "unsupported_tensor"


OUTPUTS = st.lists(st.tuples(any_array(finite=True), st.booleans()), min_size=1, max_size=4)


@given(OUTPUTS)
def test_an_answer_reads_back_as_it_was(outputs: list[tuple[NDArray[Any], bool]]) -> None:
    wanted = [WantedOutput(index, f"o{index}", binary) for index, (_, binary) in enumerate(outputs)]
    encoded = encode({"model_name": "m"}, wanted, [array for array, _ in outputs])
    assert (encoded.head_bytes is None) == (not any(binary for _, binary in outputs))
    head = json.loads(encoded.body[: encoded.head_bytes])
    tail = memoryview(encoded.body)[encoded.head_bytes or len(encoded.body) :]
    assert head["model_name"] == "m"
    for told, (array, _) in zip(head["outputs"], outputs, strict=True):
        form = told["name"], told.get("data"), Datatype(told["datatype"]), told["shape"]
        assert datatype_of(array) == told["datatype"]
        if told.get("data") is None:
            size = told["parameters"]["binary_data_size"]
            received, tail = from_bytes(form[0], tail[:size], form[2], form[3]), tail[size:]
        else:
            received = from_json(form[0], told["data"], form[2], form[3])
        assert same(received, array)
    assert not tail


def test_nan_and_infinity_travel_as_binary_data() -> None:
    values = [np.array([np.nan, -np.inf], np.float32)]
    encoded = encode({}, [WantedOutput(0, "y", True)], values)
    assert encoded.body[encoded.head_bytes :] == values[0].tobytes()
    with pytest.raises(InvalidInputError) as caught:
        encode({}, [WantedOutput(0, "y", False)], values)
    assert caught.value.code == "non_finite_output"


def test_an_answer_too_large_for_json_is_told() -> None:
    large = [np.zeros(MAX_JSON_VALUES + 1, np.uint8)]
    with pytest.raises(InvalidInputError) as caught:
        encode({}, [WantedOutput(0, "y", False)], large)
    assert caught.value.code == "answer_too_large"
    assert encode({}, [WantedOutput(0, "y", True)], large).head_bytes


def test_priorities_and_timeouts_are_the_protocols() -> None:
    found = [priority_of(asked(priority=number)) for number in (0, 1, 2, 3, 4, 2**64 - 1)]
    assert found == [
        Priority.NORMAL, Priority.CRITICAL, Priority.HIGH, Priority.NORMAL, Priority.LOW, Priority.LOW,
    ]  # fmt: skip
    assert deadline_of(asked(timeout=1_500_000), 10.0) == 11.5
    assert deadline_of(asked(), 10.0) is None
