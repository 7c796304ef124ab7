"""Rows that came as columns of Arrow, and are made only where one is asked for by itself, as few are.

A null is a field that the row does not have.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from primespark.windows.columns import Columns, Flags, Floats, Groups, Integers, Table, encode, usable
from primespark.windows.filters import LARGEST_EXACT, Condition
from primespark.windows.records import EARLIEST_MS, LATEST_MS, Row, group_of

if TYPE_CHECKING:
    import pyarrow as pa


class ArrowRows(Table):
    """The rows of one message.

    Args:
        table: Valid, its columns texts, integers, finite numbers, booleans or nulls, each of another name.
        layout: Equal for tables of one schema.
    """

    def __init__(self, table: pa.Table, layout: Hashable) -> None:
        self.table = table
        self._size: int = table.num_rows
        self._layout = layout
        self._made: list[Row] | None = None

    @property
    def layout(self) -> Hashable:
        """See `Table.layout`."""
        return self._layout

    def joined(self, others: Sequence[ArrowRows]) -> Columns:
        """See `Table.joined`."""
        return _ArrowColumns([self.table, *[other.table for other in others]])

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows())

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | Sequence[Row]:
        return self._rows()[place]

    def _rows(self) -> list[Row]:
        if self._made is None:
            names, columns = self.table.column_names, self.table.columns
            cells = zip(*[column.to_pylist() for column in columns], strict=True)
            rows: list[Row] = [dict(zip(names, row, strict=True)) for row in cells]
            if any(column.null_count for column in columns):
                rows = [{name: cell for name, cell in row.items() if cell is not None} for row in rows]
            self._made = rows
        return self._made


class _ArrowColumns:
    """Columns of tables of one schema."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        import pyarrow as pa

        self._table = pa.concat_tables(tables)
        self._size = self._table.num_rows
        self._places = {name: place for place, name in enumerate(self._table.column_names)}

    def times(self) -> tuple[Integers, Flags]:
        column = self._column("ts")
        if column is None or not _is_integer(column):
            return np.zeros(self._size, np.int64), np.zeros(self._size, np.bool_)
        given, has_one = _filled(column)
        # Those of 64 bits without a sign that do not fit are above the latest.
        return given.astype(np.int64), has_one & (given >= EARLIEST_MS) & (given <= LATEST_MS)

    def numbers(self, field: str | None) -> tuple[Floats, Flags]:
        if field is None:
            return np.ones(self._size), np.ones(self._size, np.bool_)
        column = self._column(field)
        if column is None or not _is_number(column):
            return np.zeros(self._size), np.zeros(self._size, np.bool_)
        given, has_one = _filled(column)
        return given.astype(np.float64), has_one

    def groups(self, fields: Sequence[str]) -> Groups:
        columns = [self._column(field) for field in fields]
        if any(column is None for column in columns):
            return Groups(np.full(self._size, -1), [])
        if not columns or not all(is_text(column.type) for column in columns):
            cells = zip(*[column.to_pylist() for column in columns], strict=True) if columns else [()] * self._size
            return usable(*encode([group_of(dict(zip(fields, row, strict=True)), fields) for row in cells]))
        codes, texts = _encoded(columns[0])
        names: list[tuple[str | None, ...]] = [(text,) for text in texts]
        for column in columns[1:]:
            codes, names = _paired(codes, names, *_encoded(column))
        return usable(codes, [group_of(dict(zip(fields, name, strict=True)), fields) for name in names])

    def matching(self, conditions: Sequence[Condition]) -> Flags:
        found: Flags = np.ones(self._size, np.bool_)
        for condition in conditions:
            found &= self._meeting(condition)
        return found

    def _meeting(self, condition: Condition) -> Flags:
        column = self._column(condition.field)
        if column is None:
            return np.full(self._size, condition.of_missing)
        if _is_number(column) and condition.of_numbers is not None:
            given, has_one = _filled(column)
            compare, wanted = condition.of_numbers
            if _is_exact(given):
                return np.where(has_one, compare(given.astype(np.float64), wanted), condition.of_missing)
        codes, cells = _encoded(column) if is_text(column.type) else encode(column.to_pylist())
        said = [condition.of_missing if cell is None else condition.matches(cell) for cell in cells]
        return np.array(said, np.bool_)[codes]

    def _column(self, field: str) -> Any:
        place = self._places.get(field)
        return None if place is None else self._table.column(place)


def is_text(kind: pa.DataType) -> bool:
    """Whether it is a type of texts that lie there as they are."""
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_integer(column: pa.ChunkedArray) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(column.type))


def _is_number(column: pa.ChunkedArray) -> bool:
    import pyarrow as pa

    return _is_integer(column) or bool(pa.types.is_floating(column.type))


def _is_exact(numbers: NDArray[Any]) -> bool:
    """Whether all are the same as numbers of 64 bits with a point."""
    if numbers.dtype.kind == "f" or numbers.dtype.itemsize < 8:
        return True
    return bool(numbers.max() <= LARGEST_EXACT and numbers.min() >= -LARGEST_EXACT)


def _filled(column: pa.ChunkedArray) -> tuple[NDArray[Any], Flags]:
    """The numbers, 0 for none, and where there is one."""
    if not column.null_count:
        return column.to_numpy(), np.ones(len(column), np.bool_)
    return column.fill_null(0).to_numpy(), column.is_valid().to_numpy()


def _encoded(column: pa.ChunkedArray) -> tuple[Integers, list[str | None]]:
    """Numbers for equal texts, and the texts; None for none."""
    # Chunks together, as each is worked on by itself.
    encoded = column.combine_chunks().dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    if not encoded.null_count:
        return encoded.indices.to_numpy().astype(np.int64), texts
    return encoded.indices.fill_null(len(texts)).to_numpy().astype(np.int64), [*texts, None]


def _paired(
    codes: Integers, names: list[tuple[str | None, ...]], more: Integers, texts: list[str | None]
) -> tuple[Integers, list[tuple[str | None, ...]]]:
    """Numbers for equal names with one more text."""
    pairs, joined = np.unique(codes * len(texts) + more, return_inverse=True)
    return joined, [(*names[pair // len(texts)], texts[pair % len(texts)]) for pair in pairs.tolist()]
