"""A look into a HEF without the vendor's library: is it whole, and for which chip was it compiled.

The container is a big-endian header (magic, version, size of the protobuf, then what the version adds), the protobuf,
and from version 1 on the weights. Only the protobuf's header message is read; its numbers never change.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from primespark.errors import IntegrityError

_MAGIC = 0x01484546
_COMMON = struct.Struct(">III")
# Bytes that each version's header has behind the common part.
_HEADER_TAIL = {0: 20, 1: 16, 2: 28, 3: 44}
_ARCHITECTURES = {0: "hailo8", 1: "hailo8", 2: "hailo8r", 3: "hailo8l", 4: "hailo15m", 5: "hailo10h", 6: "hailo15l"}
_ARCHITECTURES |= {103: "hailo15h"}
# The header message comes first and holds three numbers and a version.
_MAX_MESSAGE_BYTES = 4096
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_HEADER_FIELD, _ARCHITECTURE_FIELD, _COMPILER_FIELD = 1, 1, 3


@dataclass(frozen=True, slots=True)
class HefHeader:
    """What a HEF says of itself.

    Attributes:
        architecture: `hailo8`, `hailo8l`, `hailo10h`, ... or `architecture N` for one not known here.
        compiler: Version of the compiler; empty when it does not say.
    """

    architecture: str
    compiler: str


def read_header(path: Path) -> HefHeader:
    """The header of a HEF.

    Raises:
        IntegrityError: Code `bad_model`: it cannot be read, is no HEF, or is shorter than it says.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            return _parse(path.name, file.read(_COMMON.size + max(_HEADER_TAIL.values()) + _MAX_MESSAGE_BYTES), size)
    except OSError as error:
        raise _bad(f"{path.name} cannot be read: {error.strerror}") from None
    except (IndexError, UnicodeDecodeError):
        raise _bad(f"the header of {path.name} is damaged") from None


def runs_on(compiled_for: str, chip: str) -> bool:
    """Whether a HEF compiled for one architecture runs on a chip: Hailo-8 takes those of its smaller kinds, slower."""
    return compiled_for == chip or (chip == "hailo8" and compiled_for in ("hailo8l", "hailo8r"))


def _parse(name: str, data: bytes, size: int) -> HefHeader:
    if len(data) < _COMMON.size or _COMMON.unpack_from(data)[0] != _MAGIC:
        raise _bad(f"{name} is no HEF")
    _, version, proto_bytes = _COMMON.unpack_from(data)
    if version not in _HEADER_TAIL:
        raise _bad(f"{name} is a HEF of version {version}, newer than HailoRT 4.23 reads")
    start = _COMMON.size + _HEADER_TAIL[version]
    if size < start + proto_bytes:
        raise _bad(f"{name} has {size} bytes and must have {start + proto_bytes} or more")
    header = _fields(data[start : start + proto_bytes], until=_HEADER_FIELD).get(_HEADER_FIELD, b"")
    fields = _fields(header) if isinstance(header, bytes) else {}
    # A zero, which is Hailo-8, is not written.
    number = fields.get(_ARCHITECTURE_FIELD, 0)
    compiler = fields.get(_COMPILER_FIELD, b"")
    return HefHeader(
        _ARCHITECTURES.get(number, f"architecture {number}") if isinstance(number, int) else "unknown",
        compiler.decode() if isinstance(compiler, bytes) else "",
    )


def _fields(data: bytes, until: int = 0) -> dict[int, int | bytes]:
    """Fields of one protobuf message that lie within `data`, up to the one numbered `until`."""
    found: dict[int, int | bytes] = {}
    at = 0
    while at < len(data) and until not in found:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            found.setdefault(tag >> 3, value)
            continue
        if kind == _LENGTH_DELIMITED:
            length, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise IndexError(kind)
        if at + length > len(data):
            return found
        found.setdefault(tag >> 3, data[at : at + length])
        at += length
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise IndexError(at)


def _bad(message: str) -> IntegrityError:
    return IntegrityError(message, remedy="fetch the HEF again, compiled for this chip", code="bad_model")
