"""Answers for others to read: JSON, and tables with a row for each point, with its group, its time and its values."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from primespark.core.clock import to_rfc3339
from primespark.errors import NotAcceptableError
from primespark.store.analytics.aggregates import Aggregation
from primespark.store.analytics.series import Series

if TYPE_CHECKING:
    import pyarrow as pa

# What spreadsheets take for a formula (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


class Format(StrEnum):
    """A table's media type."""

    CSV = "text/csv"
    PARQUET = "application/vnd.apache.parquet"
    ARROW = "application/vnd.apache.arrow.stream"


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns beside the time: fields of the groups, and what each value is."""

    fields: Sequence[str]
    aggregations: Sequence[Aggregation]


def to_json(series: Series, aggregations: Sequence[Aggregation]) -> dict[str, Any]:
    """A group and its points `[time, value, …]`; counts are integers."""
    counts = [at for at, aggregation in enumerate(aggregations, 1) if aggregation is Aggregation.COUNT]
    points: list[list[Any]] = [[to_rfc3339(moment), *values] for moment, values in series.points()]
    for at in counts:
        for point in points:
            point[at] = None if point[at] is None else int(point[at])
    return {"group": series.group, "points": points}


def export(series: Sequence[Series], columns: Columns, wanted: Format) -> bytes:
    """The table in a format.

    Raises:
        NotAcceptableError: Code `format_unavailable`: it takes a package that is not installed.
    """
    return _WRITERS[wanted](series, columns)


def _csv(series: Sequence[Series], columns: Columns) -> bytes:
    """Text in UTF-8, times as in RFC 3339; what would be a formula is text, by an apostrophe before it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([_harmless(name) for name in (*columns.fields, "time", *columns.aggregations)])
    kinds = [int if one is Aggregation.COUNT else float for one in columns.aggregations]
    for one in series:
        group = [_harmless(one.group[field]) for field in columns.fields]
        for moment, values in one.points():
            told = (None if value is None else kind(value) for kind, value in zip(kinds, values, strict=True))
            writer.writerow([*group, to_rfc3339(moment), *told])
    return text.getvalue().encode()


def _harmless(text: str | None) -> str | None:
    return f"'{text}" if text and text.startswith(_FORMULA) else text


def _parquet(series: Sequence[Series], columns: Columns) -> bytes:
    table = _table(series, columns)
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _arrow(series: Sequence[Series], columns: Columns) -> bytes:
    table = _table(series, columns)
    import pyarrow as pa

    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _table(series: Sequence[Series], columns: Columns) -> pa.Table:
    """Times in microseconds of UTC, counts as integers, absent values as null."""
    try:
        import pyarrow as pa
    except ImportError:
        raise NotAcceptableError(
            "Parquet and Arrow take a package that is not installed",
            remedy="`make extra-arrow`, or accept text/csv",
            code="format_unavailable",
        ) from None
    taken: dict[str, pa.Array] = {}
    for field in columns.fields:
        of_each = [one.group[field] for one in series for _ in one.times]
        taken[field] = pa.array(of_each, pa.string()).dictionary_encode()
    times = [moment for one in series for moment in one.times]
    taken["time"] = pa.array(times, pa.int64()).cast(pa.timestamp("us", "UTC"))
    for at, aggregation in enumerate(columns.aggregations):
        values = (value for one in series for value in one.columns[at])
        known: list[Any] = [None if math.isnan(value) else value for value in values]
        column = pa.array(known, pa.float64())
        taken[aggregation] = column.cast(pa.int64()) if aggregation is Aggregation.COUNT else column
    return pa.table(taken)


_WRITERS: dict[Format, Callable[[Sequence[Series], Columns], bytes]] = {
    Format.CSV: _csv,
    Format.PARQUET: _parquet,
    Format.ARROW: _arrow,
}
