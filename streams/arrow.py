"""Rows out of an Arrow IPC stream, with nothing believed of what it claims before it is known to be small enough.

Arrow makes room for what a message says its buffers unpack to, so these figures are looked up beforehand, in the
flatbuffers that Arrow has verified (format/Message.fbs). Columns are of types whose values are JSON's scalars; a null
is a field that the row does not have.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from primespark.errors import InvalidInputError, MalformedError, TooLargeError, UnsupportedMediaError

if TYPE_CHECKING:
    import pyarrow as pa

ARROW_STREAM = "application/vnd.apache.arrow.stream"
# A null column and a column of booleans take no or few bytes, but each cell becomes a Python object.
MAX_CELLS = 500_000
_MAX_MESSAGES = 1_000
# Longest text of a number or a boolean, and what stands around a value in JSON.
_NUMBER_BYTES = 24
_AROUND_BYTES = 4
_NOT_COMPRESSED = -1


def rows_of(value: bytes, *, max_rows: int, max_bytes: int, max_record_bytes: int) -> list[dict[str, Any]]:
    """The rows of one stream.

    Args:
        value: The stream, its buffers compressed or not.
        max_rows: Most rows it may have.
        max_bytes: Most bytes it may have unpacked, with what dictionaries repeat.
        max_record_bytes: Most bytes of one row.

    Raises:
        MalformedError: No Arrow stream, followed by other bytes, or with a value that JSON does not have.
        TooLargeError: More than allowed.
        UnsupportedMediaError: A column of another type.
    """
    import pyarrow as pa

    try:
        _check_claims(value, max_rows, max_bytes)
        table = _read(value)
        names = table.column_names
        sizes = _sizes(table)
    except InvalidInputError:
        raise
    except (pa.ArrowException, OSError, ValueError, struct.error):
        # A ValueError where Arrow's own words, or a name, are not UTF-8.
        raise MalformedError("not an Arrow stream") from None
    if len(sizes) and sizes.max() > max_record_bytes:
        raise TooLargeError(f"a record of more than {max_record_bytes} bytes")
    if sizes.sum() > max_bytes:
        raise TooLargeError(f"unpacks to more than {max_bytes} bytes")
    cells = zip(*[column.to_pylist() for column in table.columns], strict=True)
    rows = [dict(zip(names, row, strict=True)) for row in cells]
    if any(column.null_count for column in table.columns):
        rows = [{name: cell for name, cell in row.items() if cell is not None} for row in rows]
    return rows


def _read(value: bytes) -> pa.Table:
    import pyarrow as pa

    source = pa.BufferReader(value)
    with pa.ipc.open_stream(source) as reader:
        table = reader.read_all()
    if source.tell() != len(value):
        raise MalformedError("an Arrow stream followed by other bytes")
    # Lengths, offsets, indices and UTF-8: none is checked when it is read.
    table.validate(full=True)
    return table


def _sizes(table: pa.Table) -> NDArray[np.int64]:
    """The bytes of each row in JSON, not escaped."""
    names = table.column_names
    if not names or len(set(names)) != len(names):
        raise MalformedError("columns without a name of their own")
    if table.num_rows * len(names) > MAX_CELLS:
        raise TooLargeError(f"more than {MAX_CELLS} cells")
    sizes = np.zeros(table.num_rows, np.int64)
    for name, column in zip(names, table.columns, strict=True):
        sizes += _value_sizes(name, column) + len(name.encode()) + _AROUND_BYTES
    return sizes


def _value_sizes(name: str, column: pa.ChunkedArray) -> NDArray[np.int64]:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if _is_text(kind):
        return _numbers(pc.binary_length(column))
    if pa.types.is_dictionary(kind) and _is_text(kind.value_type):
        return np.concatenate([np.zeros(0, np.int64), *map(_repeated_sizes, column.chunks)])
    if pa.types.is_floating(kind):
        if pc.any(pc.invert(pc.is_finite(column))).as_py():
            raise MalformedError("a number that is not finite")
    elif not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise UnsupportedMediaError(f"column {name[:80]!r} of type {str(kind)[:80]}")
    return np.full(len(column), _NUMBER_BYTES, np.int64)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _repeated_sizes(chunk: pa.DictionaryArray) -> NDArray[np.int64]:
    import pyarrow.compute as pc

    if not len(chunk.dictionary):
        return np.zeros(len(chunk), np.int64)
    return _numbers(pc.binary_length(chunk.dictionary))[_numbers(chunk.indices)]


def _numbers(column: Any) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers


def _check_claims(value: bytes, max_rows: int, max_bytes: int) -> None:
    import pyarrow as pa

    rows = unpacked = 0
    for number, message in enumerate(pa.ipc.MessageReader.open_stream(pa.py_buffer(value))):
        if number >= _MAX_MESSAGES:
            raise TooLargeError(f"more than {_MAX_MESSAGES} parts")
        if message.type == "schema":
            continue
        header = _Flatbuffer.of(message.metadata.to_pybytes()).table(2)
        if message.type == "dictionary":
            header = header.table(1)
        elif message.type != "record batch":
            raise MalformedError("a part that is neither rows nor a dictionary")
        rows += header.integer(0)
        unpacked += _unpacked_bytes(header, message.body)
        if rows > max_rows:
            raise TooLargeError(f"more than {max_rows} records")
        if unpacked > max_bytes:
            raise TooLargeError(f"unpacks to more than {max_bytes} bytes")


def _unpacked_bytes(batch: _Flatbuffer, body: pa.Buffer) -> int:
    content = memoryview(body)
    is_compressed = batch.has(3)
    total = 0
    for offset, length in batch.pairs(2):
        if offset < 0 or length < 0 or offset + length > len(content):
            raise MalformedError("a buffer beyond the end of its message")
        claimed = struct.unpack_from("<q", content, offset)[0] if is_compressed and length else _NOT_COMPRESSED
        if claimed < _NOT_COMPRESSED:
            raise MalformedError("a buffer of less than no bytes")
        total += length if claimed == _NOT_COMPRESSED else claimed
    return total


class _Flatbuffer:
    """A table of a flatbuffer: fields by number, each found through the table's list of offsets."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position

    @classmethod
    def of(cls, data: bytes) -> _Flatbuffer:
        """The root."""
        return cls(data, struct.unpack_from("<I", data)[0])

    def has(self, field: int) -> bool:
        """Whether the field is set."""
        return self._place(field) is not None

    def integer(self, field: int) -> int:
        """A number of 64 bits; 0 by default."""
        place = self._place(field)
        number: int = 0 if place is None else struct.unpack_from("<q", self._data, place)[0]
        if number < 0:
            raise MalformedError("a negative number of rows")
        return number

    def table(self, field: int) -> _Flatbuffer:
        """A table in it."""
        place = self._place(field)
        if place is None:
            raise MalformedError("a part without content")
        return _Flatbuffer(self._data, self._target(place))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """A vector of structures of two numbers of 64 bits."""
        place = self._place(field)
        if place is None:
            return []
        start = self._target(place)
        (count,) = struct.unpack_from("<I", self._data, start)
        return list(struct.iter_unpack("<qq", self._data[start + 4 : start + 4 + 16 * count]))

    def _target(self, place: int) -> int:
        return place + int(struct.unpack_from("<I", self._data, place)[0])

    def _place(self, field: int) -> int | None:
        (back,) = struct.unpack_from("<i", self._data, self._position)
        offsets = self._position - back
        (size,) = struct.unpack_from("<H", self._data, offsets)
        if 4 + 2 * field >= size:
            return None
        (offset,) = struct.unpack_from("<H", self._data, offsets + 4 + 2 * field)
        return self._position + offset if offset else None
