"""Rows out of an Arrow IPC stream, with nothing believed of what it claims before it is known to be small enough.

Arrow makes room for what a message says its buffers unpack to, so these figures are looked up beforehand, in the
flatbuffers that Arrow has verified (format/Message.fbs). Columns are of types whose values are JSON's scalars; a null
is a field that the row does not have. What is said of all rows is said without a look at each.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from primespark.errors import InvalidInputError, MalformedError, TooLargeError, UnsupportedMediaError
from streams.arrow_rows import ArrowRows, is_text

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
_SHORT, _INT, _SIGNED, _LONG, _PAIR = map(struct.Struct, ("<H", "<I", "<i", "<q", "<qq"))


@dataclass(frozen=True, slots=True)
class _Claims:
    """What the buffers of a stream say that they unpack to, in bytes."""

    plain_bytes: int
    dictionary_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """The columns of a stream.

    Attributes:
        floats: Which are numbers with a point.
        dictionaries: Which are dictionaries of texts.
        width: How many there are.
        row_bytes: Most bytes in JSON of a row whose texts are empty.
    """

    floats: tuple[int, ...]
    dictionaries: tuple[int, ...]
    width: int
    row_bytes: int


def rows_of(value: bytes, *, max_rows: int, max_bytes: int, max_record_bytes: int) -> ArrowRows:
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
        claims = _claims_of(value, max_rows, max_bytes)
        table = _read(value)
        layout = _layout_of(table.schema.serialize().to_pybytes())
        _check_sizes(table, claims, layout, max_bytes, max_record_bytes)
        if not _are_finite(map(table.column, layout.floats)):
            raise MalformedError("a number that is not finite")
        return ArrowRows(_repeated(table, layout.dictionaries), layout)
    except InvalidInputError:
        raise
    except (pa.ArrowException, OSError, ValueError, struct.error):
        # A ValueError where Arrow's own words, or a name, are not UTF-8.
        raise MalformedError("not an Arrow stream") from None


def _read(value: bytes) -> pa.Table:
    import pyarrow as pa

    source = pa.BufferReader(value)
    # Threads cost more than they save on what one message has.
    with pa.ipc.open_stream(source, options=pa.ipc.IpcReadOptions(use_threads=False)) as reader:
        table = reader.read_all()
    if source.tell() != len(value):
        raise MalformedError("an Arrow stream followed by other bytes")
    # Lengths, offsets, indices and UTF-8: none is checked when it is read.
    table.validate(full=True)
    return table


@lru_cache(maxsize=32)
def _layout_of(serialized: bytes) -> _Layout:
    """Looked at once, as most messages are of few schemas."""
    import pyarrow as pa

    schema = pa.ipc.read_schema(pa.py_buffer(serialized))
    if not schema.names or len(set(schema.names)) != len(schema.names):
        raise MalformedError("columns without a name of their own")
    floats, dictionaries, row_bytes = [], [], 0
    for place, (name, kind) in enumerate(zip(schema.names, schema.types, strict=True)):
        row_bytes += len(name.encode()) + _AROUND_BYTES
        if pa.types.is_dictionary(kind) and is_text(kind.value_type):
            dictionaries.append(place)
        elif not is_text(kind):
            row_bytes += _NUMBER_BYTES
            if pa.types.is_floating(kind):
                floats.append(place)
            elif not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
                raise UnsupportedMediaError(f"column {name[:80]!r} of type {str(kind)[:80]}")
    return _Layout(tuple(floats), tuple(dictionaries), len(schema.names), row_bytes)


def _check_sizes(table: pa.Table, claims: _Claims, layout: _Layout, max_bytes: int, max_record_bytes: int) -> None:
    count = table.num_rows
    if count * layout.width > MAX_CELLS:
        raise TooLargeError(f"more than {MAX_CELLS} cells")
    longest = layout.row_bytes + claims.plain_bytes + claims.dictionary_bytes
    if longest <= max_record_bytes and count * (longest - claims.plain_bytes) + claims.plain_bytes <= max_bytes:
        # Not even if one row had all texts, or each row all of the dictionaries.
        return
    sizes = sum(map(_text_sizes, table.columns), np.full(count, layout.row_bytes))
    if count and sizes.max() > max_record_bytes:
        raise TooLargeError(f"a record of more than {max_record_bytes} bytes")
    if sizes.sum() > max_bytes:
        raise TooLargeError(f"unpacks to more than {max_bytes} bytes")


def _text_sizes(column: pa.ChunkedArray) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    if is_text(column.type):
        return _numbers(pc.binary_length(column))
    if pa.types.is_dictionary(column.type):
        return np.concatenate([np.zeros(0, np.int64), *map(_repeated_sizes, column.chunks)])
    return 0


def _are_finite(columns: Iterable[pa.ChunkedArray]) -> bool:
    # A product says of most columns that they are; large numbers, and nulls, which are NaN here, are too much for it.
    with np.errstate(over="ignore", invalid="ignore"):
        doubtful = [column for column in columns if not math.isfinite(_square(column.to_numpy()))]
    return all(map(_is_finite, doubtful))


def _square(numbers: NDArray[np.floating[Any]]) -> float:
    return float(numbers.dot(numbers))


def _is_finite(column: pa.ChunkedArray) -> bool:
    import pyarrow.compute as pc

    return not pc.any(pc.invert(pc.is_finite(column))).as_py()


def _repeated(table: pa.Table, dictionaries: Sequence[int]) -> pa.Table:
    """With texts in place of dictionaries."""
    for place in dictionaries:
        column = table.column(place)
        table = table.set_column(place, table.column_names[place], column.cast(column.type.value_type))
    return table


def _repeated_sizes(chunk: pa.DictionaryArray) -> NDArray[np.int64]:
    import pyarrow.compute as pc

    if not len(chunk.dictionary):
        return np.zeros(len(chunk), np.int64)
    return _numbers(pc.binary_length(chunk.dictionary))[_numbers(chunk.indices)]


def _numbers(column: Any) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers


def _claims_of(value: bytes, max_rows: int, max_bytes: int) -> _Claims:
    import pyarrow as pa

    rows = 0
    unpacked = {"record batch": 0, "dictionary": 0}
    for number, message in enumerate(pa.ipc.MessageReader.open_stream(pa.py_buffer(value))):
        if number >= _MAX_MESSAGES:
            raise TooLargeError(f"more than {_MAX_MESSAGES} parts")
        kind = message.type
        if kind == "schema":
            continue
        if kind not in unpacked:
            raise MalformedError("a part that is neither rows nor a dictionary")
        header = _Flatbuffer.of(message.metadata.to_pybytes()).table(2)
        if kind == "dictionary":
            header = header.table(1)
        rows += header.integer(0)
        unpacked[kind] += _unpacked_bytes(header, message.body)
        if rows > max_rows:
            raise TooLargeError(f"more than {max_rows} records")
        if sum(unpacked.values()) > max_bytes:
            raise TooLargeError(f"unpacks to more than {max_bytes} bytes")
    return _Claims(unpacked["record batch"], unpacked["dictionary"])


def _unpacked_bytes(batch: _Flatbuffer, body: pa.Buffer) -> int:
    content = memoryview(body)
    size = len(content)
    is_compressed = batch.has(3)
    total = 0
    for offset, length in batch.pairs(2):
        if offset < 0 or length < 0 or offset + length > size:
            raise MalformedError("a buffer beyond the end of its message")
        if is_compressed and length:
            (claimed,) = _LONG.unpack_from(content, offset)
            if claimed < _NOT_COMPRESSED:
                raise MalformedError("a buffer of less than no bytes")
            if claimed != _NOT_COMPRESSED:
                total += claimed
                continue
        total += length
    return total


class _Flatbuffer:
    """A table of a flatbuffer: fields by number, each found through the table's list of offsets."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position

    @classmethod
    def of(cls, data: bytes) -> _Flatbuffer:
        """The root."""
        return cls(data, _INT.unpack_from(data)[0])

    def has(self, field: int) -> bool:
        """Whether the field is set."""
        return self._place(field) is not None

    def integer(self, field: int) -> int:
        """A number of 64 bits; 0 by default."""
        place = self._place(field)
        number: int = 0 if place is None else _LONG.unpack_from(self._data, place)[0]
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
        (count,) = _INT.unpack_from(self._data, start)
        return list(_PAIR.iter_unpack(self._data[start + 4 : start + 4 + 16 * count]))

    def _target(self, place: int) -> int:
        return place + int(_INT.unpack_from(self._data, place)[0])

    def _place(self, field: int) -> int | None:
        (back,) = _SIGNED.unpack_from(self._data, self._position)
        offsets = self._position - back
        (size,) = _SHORT.unpack_from(self._data, offsets)
        if 4 + 2 * field >= size:
            return None
        (offset,) = _SHORT.unpack_from(self._data, offsets + 4 + 2 * field)
        return self._position + offset if offset else None
