"""Tensors on the wire and as numpy arrays: JSON, or the binary data extension's little-endian bytes. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primespark.errors import InvalidInputError, MalformedError


class Datatype(StrEnum):
    """The protocol's types of elements; `BYTES` is text, which only metadata names here."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"


NUMPY_TYPES: dict[Datatype, np.dtype[Any]] = {
    Datatype.BOOL: np.dtype(np.bool_),
    Datatype.UINT8: np.dtype(np.uint8),
    Datatype.UINT16: np.dtype(np.uint16),
    Datatype.UINT32: np.dtype(np.uint32),
    Datatype.UINT64: np.dtype(np.uint64),
    Datatype.INT8: np.dtype(np.int8),
    Datatype.INT16: np.dtype(np.int16),
    Datatype.INT32: np.dtype(np.int32),
    Datatype.INT64: np.dtype(np.int64),
    Datatype.FP16: np.dtype(np.float16),
    Datatype.FP32: np.dtype(np.float32),
    Datatype.FP64: np.dtype(np.float64),
}
_DATATYPES = {**{kind: datatype for datatype, kind in NUMPY_TYPES.items()}, np.dtype(np.object_): Datatype.BYTES}
# By numpy's letter for a kind: what an element is in JSON. A boolean is no number, and 1.0 no whole one.
_ELEMENTS: dict[str, tuple[set[type], str]] = {
    "b": ({bool}, "true and false"),
    "u": ({int}, "whole numbers"),
    "i": ({int}, "whole numbers"),
    "f": ({int, float}, "numbers"),
}


@dataclass(frozen=True, slots=True)
class TensorForm:
    """An input or output as a model has it; None is a length that is not fixed."""

    name: str
    datatype: Datatype
    shape: tuple[int | None, ...]

    def fits(self, array: NDArray[Any]) -> bool:
        """Whether an array is of this type and shape."""
        return (
            _DATATYPES.get(array.dtype) is self.datatype
            and array.ndim == len(self.shape)
            and all(want in (None, length) for want, length in zip(self.shape, array.shape, strict=True))
        )

    def __str__(self) -> str:
        return f"{self.name} is {self.datatype} {self.wire_shape}"

    @property
    def wire_shape(self) -> list[int]:
        """The shape as the protocol writes it, -1 for a length that is not fixed."""
        return [-1 if length is None else length for length in self.shape]


def forms(
    names: Sequence[str], types: Sequence[np.dtype[Any] | None], shapes: Sequence[tuple[int | None, ...]]
) -> tuple[TensorForm, ...]:
    """An engine's inputs or outputs in the protocol's terms.

    Raises:
        InvalidInputError: Code `unsupported_tensor`: one is of a type the protocol does not have.
    """
    found = []
    for name, kind, shape in zip(names, types, shapes, strict=True):
        datatype = None if kind is None else _DATATYPES.get(kind)
        if datatype is None:
            raise unsupported(f"{name} of this model is of a type that the protocol does not have")
        found.append(TensorForm(name, datatype, shape))
    return tuple(found)


def datatype_of(array: NDArray[Any]) -> Datatype:
    """The protocol's name for the type of an array that a form fits."""
    return _DATATYPES[array.dtype]


def from_json(name: str, data: list[Any], datatype: Datatype, shape: Sequence[int]) -> NDArray[Any]:
    """The array of JSON elements, given flat in row-major order, or nested as the shape is.

    Args:
        name: Of the tensor, for errors.
        data: What JSON had.
        datatype: Of the elements; they must be of it, not convertible to it, but for the rounding of a fraction.
        shape: Lengths, each at least 1.

    Raises:
        InvalidInputError: Code `bad_tensor`: other elements, or not as many as the shape has; `unsupported_tensor`.
    """
    kind = _numpy_type(name, datatype)
    flat = _flat(name, data, shape)
    allowed, told = _ELEMENTS[kind.kind]
    if not set(map(type, flat)) <= allowed:
        raise _bad(name, f"{datatype} takes {told}")
    if kind.kind in "ui" and flat and not np.iinfo(kind).min <= min(flat) <= max(flat) <= np.iinfo(kind).max:
        raise _bad(name, f"a number beyond {datatype}")
    if kind.kind != "f":
        return np.array(flat, kind).reshape(shape)
    return _floats(name, flat, datatype).reshape(shape)


def from_bytes(name: str, data: memoryview, datatype: Datatype, shape: Sequence[int]) -> NDArray[Any]:
    """The array of binary data, of lengths of at least 1; it may be read-only, and share the memory of `data`.

    Raises:
        MalformedError: Code `bad_binary_data`: not as many bytes as the shape has, or a BOOL that is neither 0 nor 1.
        InvalidInputError: Code `unsupported_tensor`.
    """
    kind = _numpy_type(name, datatype)
    wanted = math.prod(shape) * kind.itemsize
    if len(data) != wanted:
        raise MalformedError(
            f"{name[:64]!r}: {len(data)} bytes of binary data, {datatype} {list(shape)} has {wanted}",
            remedy="send the numbers little-endian, the last axis running fastest",
            code="bad_binary_data",
        )
    array = np.frombuffer(data, kind.newbyteorder("<"))
    if kind.kind == "b" and np.frombuffer(data, np.uint8).max() > 1:
        raise MalformedError(
            f"{name[:64]!r} has bytes other than 0 and 1", remedy="a BOOL is a byte 0 or 1", code="bad_binary_data"
        )
    # The JSON before it has any length, so the numbers may lie across what a processor loads at once.
    return np.require(array.reshape(shape), kind, ["C", "A"])


def to_json(name: str, array: NDArray[Any]) -> list[Any]:
    """The elements, flat in row-major order; each reads back as the same number.

    Raises:
        InvalidInputError: Code `non_finite_output`: JSON has no word for NaN and infinity.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInputError(
            f"{name} has NaN or infinity, which JSON has not",
            remedy="ask for it as binary data",
            code="non_finite_output",
        )
    elements: list[Any] = array.reshape(-1).tolist()
    return elements


def to_bytes(array: NDArray[Any]) -> bytes:
    """The elements as binary data."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes("C")


def unsupported(message: str) -> InvalidInputError:
    """The error for a tensor that cannot travel."""
    return InvalidInputError(
        message, remedy="use /api/v1/inference, or a model of numbers alone", code="unsupported_tensor"
    )


def _numpy_type(name: str, datatype: Datatype) -> np.dtype[Any]:
    if datatype is Datatype.BYTES:
        raise unsupported(f"{name[:64]!r}: text is not taken")
    return NUMPY_TYPES[datatype]


def _floats(name: str, flat: list[Any], datatype: Datatype) -> NDArray[Any]:
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, np.float64).astype(NUMPY_TYPES[datatype])
    except OverflowError:  # a whole number of hundreds of digits
        raise _bad(name, f"a number beyond {datatype}") from None
    if not np.isfinite(array).all():
        raise _bad(name, f"a number beyond {datatype}, NaN or infinity")
    return array


def _flat(name: str, data: list[Any], shape: Sequence[int]) -> list[Any]:
    level = data
    if list in set(map(type, data)):
        if not shape or len(data) != shape[0]:
            raise _wrong_count(name, shape)
        for length in shape[1:]:
            if any(type(row) is not list or len(row) != length for row in level):
                raise _wrong_count(name, shape)
            level = list(chain.from_iterable(level))
    if len(level) != math.prod(shape):
        raise _wrong_count(name, shape)
    return level


def _wrong_count(name: str, shape: Sequence[int]) -> InvalidInputError:
    return _bad(name, f"`data` is neither {math.prod(shape)} elements nor nested as {list(shape)}")


def _bad(name: str, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"{name[:64]!r}: {what}", remedy="see its shape and datatype; NaN and infinity travel as binary data alone",
        code="bad_tensor",
    )  # fmt: skip
