"""An inference request of the protocol: its JSON, and the binary data behind it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from numpy.typing import NDArray
from pydantic import Field

from edge_agent.open_inference.tensors import Datatype, from_bytes, from_json
from primespark.core.web.bodies import parse_model
from primespark.errors import InvalidInputError, MalformedError
from primespark.sync.records import Message

MAX_TIMEOUT_US = 3_600_000_000
_MAX_TENSORS = 64
_MAX_RANK = 16
_MAX_UINT64 = 2**64 - 1

_Name = Annotated[str, Field(min_length=1, max_length=1024)]
_Count = Annotated[int, Field(ge=0, le=_MAX_UINT64)]
# ONNX Runtime (1.32) ends the process over an empty batch of some models, the bundled one for speech among them.
_Length = Annotated[int, Field(ge=1, le=_MAX_UINT64)]


class RequestParameters(Message):
    """How all outputs are sent, whose turn it is, and until when; 0 is the default of both."""

    binary_data_output: bool = False
    priority: _Count = 0
    timeout: Annotated[int, Field(ge=0, le=MAX_TIMEOUT_US)] = 0


class InputParameters(Message):
    """Whether the tensor is in the binary data, and how many bytes of it."""

    binary_data_size: _Count | None = None


class OutputParameters(Message):
    """How this output is sent, whatever is said of all."""

    binary_data: bool | None = None


class InputTensor(Message):
    """An input; its elements are in `data` or in the binary data."""

    name: _Name
    shape: Annotated[list[_Length], Field(max_length=_MAX_RANK)]
    datatype: Annotated[Datatype, Field(strict=False)]
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None


class RequestedOutput(Message):
    """An output to answer."""

    name: _Name
    parameters: OutputParameters = OutputParameters()


class InferenceRequest(Message):
    """What is asked, without binary data."""

    id: Annotated[str, Field(max_length=1024)] | None = None
    model_name: _Name | None = None
    parameters: RequestParameters = RequestParameters()
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=_MAX_TENSORS, fail_fast=True)]
    outputs: Annotated[list[RequestedOutput], Field(min_length=1, max_length=_MAX_TENSORS, fail_fast=True)] | None = (
        None
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """A request without its numbers, and the arrays they made."""

    id: str | None
    model_name: str | None
    parameters: RequestParameters
    outputs: tuple[RequestedOutput, ...] | None
    arrays: dict[str, NDArray[Any]]


def read_request(body: bytes, header_length: str | None) -> Asked:
    """A request's arrays; whether they are what the model takes is not looked at.

    Args:
        body: JSON, and binary data behind it.
        header_length: `Inference-Header-Content-Length`: bytes of JSON; None: all of them.

    Raises:
        MalformedError: Not JSON, or code `bad_binary_data`: too few bytes, too many, or none where some are announced.
        TooLargeError: Code `too_many_values`.
        InvalidInputError: Code `invalid_input`: not a request; `wrong_model_input`, `wrong_outputs`: a tensor named
            twice; `bad_tensor`, `unsupported_tensor`, see `tensors.from_json`.
    """
    head, binary = _split(body, header_length)
    request = parse_model(head, InferenceRequest)
    outputs = None if request.outputs is None else tuple(request.outputs)
    _check_distinct([tensor.name for tensor in request.inputs], "wrong_model_input")
    _check_distinct([output.name for output in outputs or ()], "wrong_outputs")
    return Asked(request.id, request.model_name, request.parameters, outputs, _arrays(request.inputs, binary))


def _split(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    if header_length is None:
        return body, memoryview(b"")
    # Longer ones are beyond any body, and would take long to read.
    if not re.fullmatch(r"[0-9]{1,18}", header_length) or int(header_length) > len(body):
        raise MalformedError(
            f"Inference-Header-Content-Length {header_length[:40]!r} for a body of {len(body)} bytes",
            remedy="give the length of the JSON in bytes",
            code="bad_binary_data",
        )
    length = int(header_length)
    return body[:length], memoryview(body)[length:]


def _arrays(tensors: list[InputTensor], binary: memoryview) -> dict[str, NDArray[Any]]:
    announced = sum(tensor.parameters.binary_data_size or 0 for tensor in tensors)
    if announced != len(binary):
        raise MalformedError(
            f"{announced} bytes of binary data announced, {len(binary)} follow the JSON",
            remedy="send Inference-Header-Content-Length, and `binary_data_size` of each such input",
            code="bad_binary_data",
        )
    arrays, position = {}, 0
    for tensor in tensors:
        size = tensor.parameters.binary_data_size
        if (size is None) == (tensor.data is None):
            raise InvalidInputError(
                f"{tensor.name[:64]!r}: give one of `data` and `binary_data_size`", code="bad_tensor"
            )
        if tensor.data is not None:
            arrays[tensor.name] = from_json(tensor.name, tensor.data, tensor.datatype, tensor.shape)
        elif size is not None:
            piece = binary[position : position + size]
            arrays[tensor.name] = from_bytes(tensor.name, piece, tensor.datatype, tensor.shape)
            position += size
    return arrays


def _check_distinct(names: list[str], code: str) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError(f"{twice[:64]!r} is named twice", remedy="name each tensor once", code=code)
