"""`primespark query`: the metrics store for a person, on the cloud's machine."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from primespark.cli.cells import plain
from primespark.cli.devices import parse_duration
from primespark.cli.store import connect_store
from primespark.core.clock import utc_now
from primespark.core.settings import Settings
from primespark.errors import InvalidInputError
from primespark.store.analytics import queries
from primespark.store.analytics.aggregates import Aggregation
from primespark.store.analytics.buckets import Granularity, Unit, of_seconds, of_unit, zone_named
from primespark.store.analytics.export import Columns, Format, export, to_json
from primespark.store.analytics.fill import Fill
from primespark.store.analytics.queries import Query
from primespark.store.analytics.selection import Filter, Op, group_fields
from primespark.store.analytics.series import Series
from primespark.store.analytics.summary import summarise
from primespark.store.database import available

# So many buckets make a line that a terminal has room for.
_WIDTH = 60
_STEPS_S = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 86_400, 7 * 86_400)
_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = "_.:-=+*#"
_CONDITION = re.compile(r"([^=!]+)(?:(==|!=|=)(.*))?", re.DOTALL)
_MOST_SUMMARIES = 200


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as it is typed; see the command."""

    metrics: Sequence[str]
    aggregations: Sequence[str]
    last: str | None
    start: datetime | None
    end: datetime | None
    by: str | None
    zone: str
    group_by: Sequence[str]
    where: Sequence[str]


def show_query(settings: Settings, asked: Asked, output: str) -> None:
    """Print the answer: a table with a line for each group, CSV or JSON.

    Raises:
        InvalidInputError: It says what is wrong with the question.
    """
    zone = zone_named(asked.zone)
    start, end = _range(asked, zone)
    if not asked.metrics:
        _show_summary(settings, start, end, zone, output)
        return
    names, percentile = _aggregations(asked.aggregations)
    query = Query(
        metrics=asked.metrics, aggregations=names, start=start, end=end,
        granularity=_granularity(asked.by, end - start, zone), group_by=asked.group_by,
        filters=[_filter(text) for text in asked.where], percentile=percentile,
        fill=Fill.NULL if output == "table" else Fill.NONE,
    )  # fmt: skip
    with available(), connect_store(settings).connect() as connection, connection.begin():
        found = queries.run(connection, query).series
    if output == "csv":
        columns = Columns(group_fields(query.metrics, query.group_by), query.aggregations)
        typer.echo(export(found, columns, Format.CSV).decode(), nl=False)
    elif output == "json":
        typer.echo(json.dumps({"series": [to_json(one, names) for one in found]}))
    else:
        print_series(Console(), query, found, zone)


def print_series(console: Console, query: Query, found: Sequence[Series], zone: tzinfo | None) -> None:
    """Print a row for each group and aggregation, with its course as a line of blocks."""
    title = f"{', '.join(query.metrics)}, {_moment(query.start, zone)} to {_moment(query.end, zone)}"
    if not found:
        console.print(Text(f"no samples of {title}"))
        console.print("  try: primespark query, without a metric, shows what there is")
        return
    fields = group_fields(query.metrics, query.group_by)
    # No title of the table, which would be broken to its width.
    console.print(Text(f"{title}, by {_length(query)}"))
    table = Table()
    for field in fields:
        table.add_column(plain(field))
    table.add_column("")
    table.add_column("course", no_wrap=True)
    for heading in ("least", "most", "last"):
        table.add_column(heading, justify="right")
    blocks = _BLOCKS if console.encoding.lower().startswith("utf") else _ASCII
    for series in found:
        group = [series.group[field] or "" for field in fields]
        for aggregation, column in zip(query.aggregations, series.columns, strict=True):
            known = [value for value in column if not math.isnan(value)]
            name = f"p{query.percentile:g}" if aggregation is Aggregation.PERCENTILE else aggregation.value
            figures = [f"{value:.6g}" for value in (min(known), max(known), known[-1])] if known else ["", "", ""]
            cells = [*group, name, sparkline(column, blocks), *figures]
            table.add_row(*map(plain, cells))
    console.print(table)


def sparkline(values: Sequence[float], blocks: str = _BLOCKS, width: int = _WIDTH) -> str:
    """Values as blocks between the least and the most of them, a blank for each that is NaN.

    Of more than `width` each block is the mean of several.
    """
    count = max(min(len(values), width), 1)
    cells = [
        _mean(values[at * len(values) // count : (at + 1) * len(values) // count])
        for at in range(min(count, len(values)))
    ]
    known = [cell for cell in cells if not math.isnan(cell)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    span = high - low
    return "".join(
        " "
        if math.isnan(cell)
        else blocks[round((cell - low) / span * (len(blocks) - 1)) if span else len(blocks) // 2]
        for cell in cells
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _show_summary(settings: Settings, start: datetime, end: datetime, zone: tzinfo | None, output: str) -> None:
    if output != "table":
        raise InvalidInputError("no metric", remedy="name one; without, only a table of all is shown")
    with available(), connect_store(settings).connect() as connection, connection.begin():
        summary = summarise(connection, start, end, limit=_MOST_SUMMARIES)
    console = Console()
    table = Table(title=f"Metrics, {_moment(start, zone)} to {_moment(end, zone)}")
    for heading in ("metric", "device", "samples", "last", "at", "least", "mean", "most", "p95", "gaps"):
        table.add_column(heading, justify="left" if heading in ("metric", "device", "at") else "right")
    for one in summary.items:
        figures = [f"{value:.6g}" for value in (one.minimum, one.average, one.maximum, one.percentile_95)]
        cells = [one.metric, one.device_id, str(one.count), f"{one.last_value:.6g}", _moment(one.last, zone)]
        table.add_row(*map(plain, [*cells, *figures, str(one.gaps.count)]))
    console.print(table)
    if summary.next_cursor is not None:
        console.print(f"the first {_MOST_SUMMARIES}; all are in GET /api/v1/analytics/summary")


def _range(asked: Asked, zone: tzinfo | None) -> tuple[datetime, datetime]:
    end = _aware(asked.end, zone) if asked.end else utc_now()
    if asked.start is None:
        return end - parse_duration(asked.last or "24h"), end
    if asked.last is not None:
        raise InvalidInputError("--last and --from", remedy="give one of them", code="bad_time_range")
    return _aware(asked.start, zone), end


def _aware(moment: datetime, zone: tzinfo | None) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=zone or UTC)


def _aggregations(names: Sequence[str]) -> tuple[list[Aggregation], float | None]:
    """What is asked for, and the percentile where that is one."""
    found: list[Aggregation] = []
    percentile = None
    for name in names:
        match = re.fullmatch(r"p(\d{1,3}(?:\.\d+)?)", name)
        if match and percentile is None:
            percentile = float(match[1])
            found.append(Aggregation.PERCENTILE)
        elif name in [*Aggregation] and name != Aggregation.PERCENTILE:
            found.append(Aggregation(name))
        else:
            plain = ", ".join(one for one in Aggregation if one is not Aggregation.PERCENTILE)
            raise InvalidInputError(
                f"no aggregation {name[:40]!r}", remedy=f"use {plain}, or one percentile, such as p95",
                code="unknown_aggregation",
            )  # fmt: skip
    return found, percentile


def _granularity(by: str | None, span: timedelta, zone: tzinfo | None) -> Granularity | None:
    if by is None:
        fitting = [step for step in _STEPS_S if span / timedelta(seconds=step) <= _WIDTH]
        return of_seconds(fitting[0], zone) if fitting else of_unit(Unit.MONTH, zone)
    if by == "none":
        return None
    if by in [*Unit]:
        return of_unit(Unit(by), zone)
    try:
        return of_seconds(parse_duration(by).total_seconds(), zone)
    except InvalidInputError:
        raise InvalidInputError(
            f"no granularity {by[:40]!r}", remedy=f"{', '.join(Unit)}, none, or a duration such as 15m",
            code="bad_granularity",
        ) from None  # fmt: skip


def _filter(text: str) -> Filter:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise InvalidInputError(
            f"no condition {text[:60]!r}", remedy="write labels.room=hall, device_id!=edge-1, or labels.room",
            code="bad_filter",
        )  # fmt: skip
    field, op, value = match.groups()
    return Filter(field, Op.EXISTS, True) if op is None else Filter(field, Op.named(op), value)


def _moment(moment: datetime, zone: tzinfo | None) -> str:
    return f"{moment.astimezone(zone or UTC):%Y-%m-%d %H:%M:%S %Z}"


def _length(query: Query) -> str:
    granularity = query.granularity
    if granularity is None:
        return "nothing"
    if granularity.width is None:
        return "month"
    for name, unit_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        number = granularity.width / timedelta(seconds=unit_s)
        if number.is_integer():
            return f"{number:.0f} {name}"
    return f"{granularity.width.total_seconds():g} s"
