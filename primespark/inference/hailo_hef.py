"""A look into a HEF without the vendor's library: is it whole, for which chip was it compiled, what network is it.

The container is a big-endian header (magic, version, size of the protobuf, then what the version adds), the protobuf,
and from version 1 on the weights. Of the protobuf a few small messages are read, whose numbers never change; version 0
has the weights in it, and they are skipped.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from primespark.errors import IntegrityError
from primespark.inference.hailo_layers import EdgeShapes, edge_shapes
from primespark.inference.protobuf import DamagedMessageError, Message

_MAGIC = 0x01484546
_COMMON = struct.Struct(">III")
# Bytes that each version's header has behind the common part.
_HEADER_TAIL = {0: 20, 1: 16, 2: 28, 3: 44}
_ARCHITECTURES = {0: "hailo8", 1: "hailo8", 2: "hailo8r", 3: "hailo8l", 4: "hailo15m", 5: "hailo10h", 6: "hailo15l"}
_ARCHITECTURES |= {103: "hailo15h"}
_MAX_TEXT_BYTES = 200
# Of the file: its header and its networks.
_HEADER, _NETWORKS = 1, 2
_ARCHITECTURE, _COMPILER = 1, 3
# Of a network: ways to its name, in the order of HailoRT's preference, and its operations.
_NAMES = ((1, 1), (7, 1, 1, 1), (10,), (8, 4, 1, 1))
_OPERATIONS = 8
# Of an operation: its outputs, and what it does when that is non-maximum suppression on the host.
_OUTPUTS, _SUPPRESSION = 3, 5
# Of an operation on values: 1 where it is softmax, else it looks for the largest one.
_ON_VALUES, _KIND, _SOFTMAX = 6, 1, 1
_SHAPE_OF_BOXES, _CLASSES_OF_SHAPE = 7, 1
_CLASSES, _DECODES_ONLY, _WITH_MASKS = 4, 13, 11

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class HefHeader:
    """What a HEF says of itself.

    Attributes:
        architecture: `hailo8`, `hailo8l`, `hailo10h`, ... or `architecture N` for one not known here.
        compiler: Version of the compiler; empty when it does not say.
    """

    architecture: str
    compiler: str


@dataclass(frozen=True, slots=True)
class HefNetwork:
    """What a HEF says of its networks.

    Attributes:
        names: Of each network; HailoRT takes a HEF of several only with the name of one.
        box_classes: Classes of the boxes, where the one network ends in one suppression on the host, without masks.
        shapes: What the one network takes and gives, where the host does no more to it than softmax; None where it is
            not told.
    """

    names: tuple[str, ...]
    box_classes: int | None
    shapes: EdgeShapes | None = None


def read_header(path: Path) -> HefHeader:
    """The header of a HEF.

    Raises:
        IntegrityError: Code `bad_model`: it cannot be read, is no HEF, or is shorter than it says.
    """
    return _read(path, _header)


def read_network(path: Path) -> HefNetwork:
    """The networks of a HEF.

    Raises:
        IntegrityError: As `read_header`.
    """
    return _read(path, _network)


def runs_on(compiled_for: str, chip: str) -> bool:
    """Whether a HEF compiled for one architecture runs on a chip: Hailo-8 takes those of its smaller kinds, slower."""
    return compiled_for == chip or (chip == "hailo8" and compiled_for in ("hailo8l", "hailo8r"))


def _read(path: Path, look: Callable[[Message], _T]) -> _T:
    try:
        with path.open("rb", buffering=0) as file:
            return look(_protobuf(path.name, file.fileno()))
    except OSError as error:
        raise _bad(f"{path.name} cannot be read: {error.strerror}") from None
    except DamagedMessageError as error:
        raise _bad(f"the header of {path.name} is damaged: {error}") from None


def _protobuf(name: str, descriptor: int) -> Message:
    data = os.pread(descriptor, _COMMON.size, 0)
    if len(data) < _COMMON.size or _COMMON.unpack(data)[0] != _MAGIC:
        raise _bad(f"{name} is no HEF")
    _, version, proto_bytes = _COMMON.unpack(data)
    if version not in _HEADER_TAIL:
        raise _bad(f"{name} is a HEF of version {version}, newer than HailoRT 4.23 reads")
    start, size = _COMMON.size + _HEADER_TAIL[version], os.fstat(descriptor).st_size
    if size < start + proto_bytes:
        raise _bad(f"{name} has {size} bytes and must have {start + proto_bytes} or more")
    return Message(descriptor, start, start + proto_bytes)


def _header(hef: Message) -> HefHeader:
    header = hef.message(_HEADER)
    if header is None:
        return HefHeader(_ARCHITECTURES[0], "")
    number, compiler = header.integer(_ARCHITECTURE), header.message(_COMPILER)
    return HefHeader(
        _ARCHITECTURES.get(number, f"architecture {number}"), compiler.text(_MAX_TEXT_BYTES) if compiler else ""
    )


def _network(hef: Message) -> HefNetwork:
    networks = list(hef.messages(_NETWORKS))
    names = tuple(_name(network) for network in networks)
    if len(networks) != 1:
        return HefNetwork(names, None)
    (network,) = networks
    operations = list(network.messages(_OPERATIONS))
    shapes = edge_shapes(network) if all(_keeps_shape(one) for one in operations) else None
    return HefNetwork(names, _box_classes(operations), shapes)


def _name(network: Message) -> str:
    found = (network.message(*way) for way in _NAMES)
    return next((text for one in found if one is not None and (text := one.text(_MAX_TEXT_BYTES))), "")


def _keeps_shape(operation: Message) -> bool:
    on_values = operation.message(_ON_VALUES)
    is_softmax = on_values is None or on_values.integer(_KIND) == _SOFTMAX
    return is_softmax and operation.message(_SUPPRESSION) is None


def _box_classes(operations: Sequence[Message]) -> int | None:
    suppressions = [(one, found) for one in operations if (found := one.message(_SUPPRESSION)) is not None]
    if len(suppressions) != 1:
        return None
    operation, suppression = suppressions[0]
    if suppression.integer(_DECODES_ONLY) or suppression.message(_WITH_MASKS) is not None:
        return None
    # A background class is told by the operation and not among the boxes.
    boxes = operation.message(_OUTPUTS, _SHAPE_OF_BOXES)
    return (boxes.integer(_CLASSES_OF_SHAPE) if boxes is not None else 0) or suppression.integer(_CLASSES) or None


def _bad(message: str) -> IntegrityError:
    return IntegrityError(message, remedy="fetch the HEF again, compiled for this chip", code="bad_model")
