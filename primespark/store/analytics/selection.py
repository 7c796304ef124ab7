"""Which series an answer is made of, and how they are grouped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, text

from primespark.core.values import EARLIEST, check_text
from primespark.errors import InvalidInputError
from primespark.store.analytics.plan import DAY, floor

MAX_SERIES = 100_000
# Finding out whether so many days of series have changed costs more than most answers.
MAX_SERIES_DAYS = 50_000
MAX_FILTERS = 32
MAX_GROUP_FIELDS = 8
MAX_METRICS = 32
# A selection in SQL: table `chosen` of series and the numbers of their groups.
CHOSEN = (
    "WITH chosen AS MATERIALIZED ("
    "SELECT * FROM unnest(CAST(:series AS bigint[]), CAST(:groups AS int[])) AS c(series_id, g))"
)
_LABEL = "labels."
METRIC = "metric_name"
_COLUMNS = {METRIC: "s.metric", "device_id": "s.device_id", "source": "s.source"}
_BEGIN = (
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;"
    # Before anything is seen: what is seen then stays until the answer is read, see `retention.drop_parts`.
    " LOCK TABLE metrics.part IN ACCESS SHARE MODE"
)
# Versions only grow and rows are only added, so equal sums are of equal versions.
_VERSION = (
    "(SELECT CASE WHEN count(*) * :days <= :most_days THEN (SELECT CAST(coalesce(sum(version), 0) AS bigint)"
    " FROM found JOIN metrics.day_version USING (series_id) WHERE day >= :first AND day < :end) END FROM found)"
)
# Making one from its words takes as long as the server takes to answer it.
_statement = lru_cache(maxsize=64)(text)


class Op(StrEnum):
    """How a field is compared; a label that is not there is equal to nothing."""

    EQUAL = "=="
    NOT_EQUAL = "!="
    IN = "in"
    EXISTS = "exists"

    @classmethod
    def named(cls, name: str) -> Op:
        """The operator of a name; `=` is `==`.

        Raises:
            InvalidInputError: Code `bad_filter`.
        """
        try:
            return cls("==" if name == "=" else name)
        except ValueError:
            raise InvalidInputError(
                f"no operator {name[:20]!r}", remedy=f"use one of {', '.join(cls)}", code="bad_filter"
            ) from None


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on `device_id`, `source` or `labels.NAME`; `value` is a list for `in`, and a bool for `exists`."""

    field: str
    op: Op
    value: Any


@dataclass(frozen=True, slots=True)
class Selection:
    """Chosen series.

    Attributes:
        groups: What each group has in common, by name of the field; a label a series lacks is None.
        series: Ids, and the number of each one's group.
        raw_from: Samples from before may be gone, which rollups have seen.
        version: Grows with each change of their samples of the range asked about; None where finding out costs too
            much, or nobody asked.
    """

    groups: list[dict[str, str | None]]
    series: list[tuple[int, int]]
    raw_from: datetime
    version: int | None = None

    def parameters(self) -> dict[str, Any]:
        """What `CHOSEN` binds."""
        chosen = self.series
        return {"series": [series_id for series_id, _ in chosen], "groups": [group for _, group in chosen]}


def group_fields(metrics: Sequence[str], group_by: Sequence[str]) -> list[str]:
    """The fields of each group: several metrics are always told apart."""
    return list(dict.fromkeys([*([METRIC] if len(metrics) > 1 else []), *group_by]))


def begin(connection: Connection) -> None:
    """Begin the transaction of an answer: all of it is as of one moment."""
    connection.execute(text(_BEGIN))


def select_series(
    connection: Connection,
    metrics: Sequence[str],
    filters: Sequence[Filter],
    group_by: Sequence[str],
    versions_of: tuple[datetime, datetime] | None = None,
) -> Selection:
    """Begin the transaction of an answer, and find the series of `metrics` that all of `filters` hold for.

    Args:
        connection: It has begun no transaction yet.
        metrics: Names.
        filters: What must hold of a series.
        group_by: Fields whose values are told apart.
        versions_of: Of this range, `[start, end)`, the version is asked for.

    Raises:
        InvalidInputError: No such field, a value that does not fit, or too many of anything.
    """
    _check(metrics, filters, group_by)
    bound: dict[str, Any] = {"metrics": list(metrics), "limit": MAX_SERIES + 1}
    fields = group_fields(metrics, group_by)
    columns = "".join(f", {_column(field, bound)} AS field_{number}" for number, field in enumerate(fields))
    conditions = "".join(f" AND {_condition(given, bound)}" for given in filters)
    order = "".join(f"field_{number}, " for number in range(len(fields)))
    if versions_of is not None:
        first, end = floor(versions_of[0], DAY), versions_of[1]
        bound |= {"first": first, "end": end, "days": (end - first) / DAY + 1, "most_days": MAX_SERIES_DAYS}
    statement = (
        # One question and one answer take less time than two.
        f"{_BEGIN}; WITH found AS MATERIALIZED (SELECT s.series_id, r.raw_from{columns}"
        " FROM metrics.series s JOIN metrics.retention r USING (class)"
        f" WHERE s.metric = ANY(:metrics){conditions} LIMIT :limit)"
        f" SELECT {_VERSION if versions_of is not None else 'NULL'}, * FROM found ORDER BY {order}series_id"
    )
    rows = connection.execute(_statement(statement), bound).all()
    if len(rows) > MAX_SERIES:
        raise InvalidInputError(f"more than {MAX_SERIES} series", remedy="filter", code="too_many_series")
    numbers: dict[tuple[Any, ...], int] = {}
    chosen = [(series_id, numbers.setdefault(tuple(key), len(numbers))) for _, series_id, _, *key in rows]
    groups = [dict(zip(fields, key, strict=True)) for key in numbers]
    raw_from = max((row.raw_from for row in rows), default=EARLIEST)
    return Selection(groups, chosen, raw_from, rows[0][0] if rows else None)


def _check(metrics: Sequence[str], filters: Sequence[Filter], group_by: Sequence[str]) -> None:
    counts = {"metrics": (len(metrics), MAX_METRICS), "filters": (len(filters), MAX_FILTERS)}
    for name, (count, most) in (counts | {"fields to group by": (len(group_by), MAX_GROUP_FIELDS)}).items():
        if count > most:
            raise InvalidInputError(f"more than {most} {name}", remedy="ask in parts", code="too_many_parts")
    check_text(*metrics, *group_by)


def _bind(value: Any, bound: dict[str, Any]) -> str:
    name = f"given_{len(bound)}"
    bound[name] = value
    return f":{name}"


def _column(field: str, bound: dict[str, Any]) -> str:
    if field in _COLUMNS:
        return _COLUMNS[field]
    name = field.removeprefix(_LABEL)
    if name == field or not name or len(name) > 128:
        raise InvalidInputError(
            f"no field {field[:60]!r}", remedy="device_id, source or labels.NAME", code="unknown_field"
        )
    return f"(s.labels ->> {_bind(name, bound)})"


def _condition(given: Filter, bound: dict[str, Any]) -> str:
    column = _column(given.field, bound)
    check_text(given.field)
    if given.op is Op.EXISTS:
        if not isinstance(given.value, bool):
            raise _bad_value(given, "true or false")
        is_there = f"{column} IS NOT NULL" if given.field.startswith(_LABEL) else f"{column} <> ''"
        return is_there if given.value else f"NOT ({is_there})"
    if given.op is Op.IN:
        if not isinstance(given.value, list) or len(given.value) > 1000:
            raise _bad_value(given, "a list of at most 1000 texts")
        return _is_any(given, column, given.value, bound)
    equal = _is_any(given, column, [given.value], bound)
    return equal if given.op is Op.EQUAL else f"({column} IS NULL OR NOT {equal})"


def _is_any(given: Filter, column: str, values: list[Any], bound: dict[str, Any]) -> str:
    if not all(isinstance(value, str) for value in values):
        raise _bad_value(given, "a text")
    check_text(*values)
    if given.field.startswith(_LABEL):
        # Asked in this way the index on labels can answer.
        labels = [json.dumps({given.field.removeprefix(_LABEL): value}) for value in values]
        return f"s.labels @> ANY(CAST({_bind(labels, bound)} AS jsonb[]))"
    return f"{column} = ANY(CAST({_bind(values, bound)} AS text[]))"


def _bad_value(given: Filter, wanted: str) -> InvalidInputError:
    return InvalidInputError(
        f"the filter on {given.field[:60]!r} has no value {given.op} takes", remedy=f"give {wanted}", code="bad_filter"
    )
