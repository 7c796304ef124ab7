"""A look into an ONNX file before an engine gets it: it must be one whole file that names no other.

A tensor may be kept outside the file, under a path (or, in ONNX Runtime, a memory address) that the file names. A model
that travels is verified by the digest of one file, so such a reference is refused. Only the fields that can lead to a
tensor are followed; their numbers are those of onnx.proto, which never change.
"""

from __future__ import annotations

from collections.abc import Iterator

from primespark.errors import IntegrityError

# Message kind -> field number -> kind of the message in that field.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse_tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse_tensor", 23: "sparse_tensor"},
    "sparse_tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_TENSOR_EXTERNAL_DATA = 13
_TENSOR_DATA_LOCATION = 14
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


def check_self_contained(data: bytes) -> None:
    """Nothing, if `data` is the ONNX file of a model that keeps all its tensors inside.

    Raises:
        IntegrityError: Code `external_data`: a tensor lies elsewhere; code `bad_model`: not an ONNX file.
    """
    pending = [("model", 0, len(data))]
    has_graph = False
    while pending:
        kind, start, end = pending.pop()
        for number, wire_type, value, value_end in _fields(data, start, end):
            if kind == "tensor":
                _check_tensor_field(number, wire_type, value)
            child = _CHILDREN[kind].get(number)
            if child is not None and wire_type == _LENGTH_DELIMITED:
                has_graph = has_graph or (kind, child) == ("model", "graph")
                pending.append((child, value, value_end))
    if not has_graph:
        raise _not_onnx()


def _check_tensor_field(number: int, wire_type: int, value: int) -> None:
    inside = number == _TENSOR_DATA_LOCATION and wire_type == _VARINT and value == 0
    if number in (_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION) and not inside:
        raise IntegrityError(
            "the model keeps tensors outside its file", remedy="export it as one ONNX file", code="external_data"
        )


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Fields of one protobuf message: number, wire type, and a varint's value or else the bounds of the bytes."""
    position = start
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _varint(data, position, end)
            yield number, wire_type, value, position
            continue
        if wire_type == _LENGTH_DELIMITED:
            length, position = _varint(data, position, end)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise _not_onnx()
        if number == 0 or length > end - position:
            raise _not_onnx()
        yield number, wire_type, position, position + length
        position += length


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = 0
    for index in range(min(_MAX_VARINT_BYTES, end - position)):
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise _not_onnx()


def _not_onnx() -> IntegrityError:
    return IntegrityError("not an ONNX model", remedy="check the file", code="bad_model")
