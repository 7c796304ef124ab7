"""Which series an answer is made of, and how they are grouped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, cast, literal, or_, select
from sqlalchemy.dialects.postgresql import JSONB

from primespark.core.values import EARLIEST, check_text
from primespark.errors import InvalidInputError
from primespark.store.schema import retention, series

MAX_SERIES = 100_000
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
_COLUMNS = {METRIC: series.c.metric, "device_id": series.c.device_id, "source": series.c.source}


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
    """

    groups: list[dict[str, str | None]]
    series: list[tuple[int, int]]
    raw_from: datetime

    def parameters(self) -> dict[str, Any]:
        """What `CHOSEN` binds."""
        chosen = self.series
        return {"series": [series_id for series_id, _ in chosen], "groups": [group for _, group in chosen]}


def group_fields(metrics: Sequence[str], group_by: Sequence[str]) -> list[str]:
    """The fields of each group: several metrics are always told apart."""
    return list(dict.fromkeys([*([METRIC] if len(metrics) > 1 else []), *group_by]))


def select_series(
    connection: Connection, metrics: Sequence[str], filters: Sequence[Filter], group_by: Sequence[str]
) -> Selection:
    """The series of `metrics` that all of `filters` hold for.

    Raises:
        InvalidInputError: No such field, a value that does not fit, or too many of anything.
    """
    _check(metrics, filters, group_by)
    fields = group_fields(metrics, group_by)
    columns = [_column(field).label(f"field_{number}") for number, field in enumerate(fields)]
    conditions = [series.c.metric.in_(metrics), *map(_condition, filters)]
    statement = select(series.c.series_id, retention.c.raw_from, *columns).where(
        and_(*conditions, retention.c["class"] == series.c["class"])
    )
    rows = connection.execute(statement.order_by(*columns, series.c.series_id).limit(MAX_SERIES + 1)).all()
    if len(rows) > MAX_SERIES:
        raise InvalidInputError(f"more than {MAX_SERIES} series", remedy="filter", code="too_many_series")
    numbers: dict[tuple[Any, ...], int] = {}
    chosen = [(series_id, numbers.setdefault(tuple(key), len(numbers))) for series_id, _, *key in rows]
    groups = [dict(zip(fields, key, strict=True)) for key in numbers]
    return Selection(groups, chosen, max((row.raw_from for row in rows), default=EARLIEST))


def _check(metrics: Sequence[str], filters: Sequence[Filter], group_by: Sequence[str]) -> None:
    counts = {"metrics": (len(metrics), MAX_METRICS), "filters": (len(filters), MAX_FILTERS)}
    for name, (count, most) in (counts | {"fields to group by": (len(group_by), MAX_GROUP_FIELDS)}).items():
        if count > most:
            raise InvalidInputError(f"more than {most} {name}", remedy="ask in parts", code="too_many_parts")
    check_text(*metrics, *group_by)


def _column(field: str) -> ColumnElement[str]:
    if field in _COLUMNS:
        return _COLUMNS[field]
    name = field.removeprefix(_LABEL)
    if name == field or not name or len(name) > 128:
        raise InvalidInputError(
            f"no field {field[:60]!r}", remedy="device_id, source or labels.NAME", code="unknown_field"
        )
    label: ColumnElement[str] = series.c.labels[name].astext
    return label


def _condition(given: Filter) -> ColumnElement[bool]:
    column = _column(given.field)
    check_text(given.field)
    if given.op is Op.EXISTS:
        if not isinstance(given.value, bool):
            raise _bad_value(given, "true or false")
        is_there = column.is_not(None) if given.field.startswith(_LABEL) else column != ""
        return is_there if given.value else ~is_there
    if given.op is Op.IN:
        if not isinstance(given.value, list) or len(given.value) > 1000:
            raise _bad_value(given, "a list of at most 1000 texts")
        return or_(literal(False), *(_equal(given, value) for value in given.value))
    equal = _equal(given, given.value)
    return equal if given.op is Op.EQUAL else or_(column.is_(None), ~equal)


def _equal(given: Filter, value: Any) -> ColumnElement[bool]:
    if not isinstance(value, str):
        raise _bad_value(given, "a text")
    check_text(value)
    if given.field.startswith(_LABEL):
        # Asked in this way the index on labels can answer.
        return series.c.labels.contains(cast({given.field.removeprefix(_LABEL): value}, JSONB))
    return _column(given.field) == value


def _bad_value(given: Filter, wanted: str) -> InvalidInputError:
    return InvalidInputError(
        f"the filter on {given.field[:60]!r} has no value {given.op} takes", remedy=f"give {wanted}", code="bad_filter"
    )
