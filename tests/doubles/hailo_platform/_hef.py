"""A HEF of the double: the vendor's container (header, MD5, protobuf with the architecture) around our own network.

The network is an ONNX model or the name of a function; both compute for real. Fields 100 and 101 of the protobuf hold
the description (JSON) and the ONNX file; the vendor's schema does not use these numbers.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

MAGIC = 0x01484546
ARCHITECTURES = {"HAILO8": 0, "HAILO8L": 3, "HAILO15M": 4, "HAILO10H": 5, "HAILO15L": 6, "HAILO15H": 103}
_HEADER = struct.Struct(">IIII16s")
_DESCRIPTION, _ONNX = 100, 101


class HefError(Exception):
    """A HEF that is refused, with HailoRT's status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True, slots=True)
class Nms:
    """Non-maximum suppression on the host, over tensors `scores` [n, classes] and `boxes` [n, 4] of the network."""

    classes: int
    max_boxes: int
    scores: str = ""
    boxes: str = ""
    score_threshold: float = 0.2
    iou_threshold: float = 0.7
    by_score: bool = False


@dataclass(frozen=True, slots=True)
class Stream:
    """One input or output; `tensor` is its name in the network, a scale other than 0 makes it quantised."""

    name: str
    shape: tuple[int, ...]
    tensor: str = ""
    type: str = "UINT8"
    scale: float = 0.0
    zero_point: float = 0.0
    nms: Nms | None = None


@dataclass(frozen=True, slots=True)
class Hef:
    """A whole network; `function` names one of `_network.FUNCTIONS` where there is no ONNX model."""

    name: str
    inputs: tuple[Stream, ...]
    outputs: tuple[Stream, ...]
    architecture: str = "HAILO8"
    queue_size: int = 4
    function: str = ""
    onnx: bytes = field(default=b"", repr=False)

    def to_bytes(self) -> bytes:
        """The file's content."""
        described = {key: value for key, value in asdict(self).items() if key not in ("onnx", "architecture")}
        header = _varint_field(1, ARCHITECTURES[self.architecture]) + _bytes_field(3, b"double")
        proto = (
            _bytes_field(1, header)
            + _bytes_field(2, _network_group(self))
            + _bytes_field(_DESCRIPTION, json.dumps(described).encode())
        )
        proto += _bytes_field(_ONNX, self.onnx)
        return _HEADER.pack(MAGIC, 0, len(proto), 0, hashlib.md5(proto).digest()) + proto


def _network_group(hef: Hef) -> bytes:
    """Name, layers at the host, and the suppressions as operations there, by the numbers of the vendor's schema."""
    group = _bytes_field(1, _bytes_field(1, hef.name.encode()))
    layers = [_layer(0, stream) for stream in hef.inputs]
    layers += [_layer(1, stream) for stream in hef.outputs if stream.nms is None]
    group += _bytes_field(3, _bytes_field(3, b"".join(_bytes_field(2, layer) for layer in layers)))
    for stream in hef.outputs:
        if stream.nms is not None:
            boxes = _varint_field(1, stream.nms.classes) + _varint_field(2, stream.nms.max_boxes)
            suppression = _varint_field(3, stream.nms.max_boxes) + _varint_field(4, stream.nms.classes)
            operation = _bytes_field(1, stream.name.encode()) + _bytes_field(3, _bytes_field(7, boxes))
            group += _bytes_field(8, operation + _bytes_field(5, suppression + _bytes_field(12, b"")))
    return group


def _layer(direction: int, stream: Stream) -> bytes:
    # A vector has one row and one column.
    height, width, channels = (1, 1, 1, *stream.shape)[-3:]
    base = _varint_field(1, height) + _varint_field(3, width) + _varint_field(5, channels)
    info = _bytes_field(1, stream.name.encode()) + _bytes_field(2, base)
    return _varint_field(1, direction) + _bytes_field(3, info)


def parse(data: bytes) -> Hef:
    """The network of a file.

    Raises:
        HefError: Status 92: another magic; status 91: another size or digest.
    """
    if len(data) < _HEADER.size or struct.unpack_from(">I", data)[0] != MAGIC:
        raise HefError(92)
    _, _, size, _, digest = _HEADER.unpack_from(data)
    proto = data[_HEADER.size :]
    if len(proto) != size or hashlib.md5(proto).digest() != digest:
        raise HefError(91)
    parts = dict(_fields(proto))
    header = dict(_fields(bytes(parts[1])))
    names = {number: name for name, number in ARCHITECTURES.items()}
    described = json.loads(bytes(parts[_DESCRIPTION]))
    described["inputs"] = tuple(_stream(one) for one in described["inputs"])
    described["outputs"] = tuple(_stream(one) for one in described["outputs"])
    return Hef(**described, architecture=names[header.get(1, 0)], onnx=bytes(parts[_ONNX]))


def _stream(described: dict[str, Any]) -> Stream:
    nms = Nms(**described.pop("nms")) if described.get("nms") else described.pop("nms") and None
    return Stream(**{**described, "shape": tuple(described["shape"])}, nms=nms)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _varint_field(number: int, value: int) -> bytes:
    # As proto3: a zero is not written.
    return _varint(number << 3) + _varint(value) if value else b""


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    position = 0

    def read() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        tag = read()
        if tag & 7 == 0:
            yield tag >> 3, read()
        else:
            length = read()
            yield tag >> 3, data[position : position + length]
            position += length
