"""`/api/v1/analytics`: measurements, and questions about them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import AwareDatetime, Field, StringConstraints

from primespark.cloud.state import Cloud, cloud_of
from primespark.core.clock import to_rfc3339, utc_now
from primespark.core.web import Principal, Role, read_model, require
from primespark.core.web.negotiation import negotiate
from primespark.store import samples
from primespark.store.analytics.aggregates import Aggregation
from primespark.store.analytics.buckets import Granularity, Unit, of_seconds, of_unit, zone_named
from primespark.store.analytics.export import Columns, Format, export, to_json
from primespark.store.analytics.fill import Fill
from primespark.store.analytics.latest import latest
from primespark.store.analytics.pages import MAX_CURSOR_CHARACTERS, page
from primespark.store.analytics.plan import Span
from primespark.store.analytics.queries import MAX_POINTS, Answer, Query
from primespark.store.analytics.selection import Filter, Op, group_fields
from primespark.store.edition import edition
from primespark.store.samples import MAX_QUALITY_CHARACTERS
from primespark.sync.records import Message, Name

router = APIRouter(prefix="/api/v1/analytics")
CloudState = Annotated[Cloud, Depends(cloud_of)]
Viewer = Depends(require(Role.VIEWER))
Operator = Annotated[Principal, Depends(require(Role.OPERATOR))]
_JSON = "application/json"
Text = Annotated[str, StringConstraints(max_length=200)]


class MetricRequest(Message):
    """One measurement of a metric; without a value, `quality` says why there is none."""

    metric_name: Name
    value: float | None
    quality: Annotated[str, StringConstraints(min_length=1, max_length=MAX_QUALITY_CHARACTERS)] | None = None
    time: Annotated[AwareDatetime | None, Field(strict=False)] = None
    device_id: Annotated[str, StringConstraints(max_length=63)] = ""
    source: Annotated[str, StringConstraints(max_length=63)] = "api"
    labels: dict[str, str] = Field(default_factory=dict)


class InsertRequest(Message):
    """Measurements that are stored together or not at all."""

    metrics: Annotated[list[MetricRequest], Field(min_length=1, max_length=5000, fail_fast=True)]


class UnitRequest(Message):
    """Days, weeks or months of a time zone."""

    unit: Annotated[Unit, Field(strict=False)]
    tz: Text = "UTC"


class IntervalRequest(Message):
    """Buckets of so many seconds."""

    every_s: Annotated[float, Field(gt=0)]
    tz: Text = "UTC"


class SelectionRequest(Message):
    """Which series, how they are grouped, and how many points make a page."""

    metric_name: Name | Annotated[list[Name], Field(min_length=1, max_length=32)]
    group_by: Annotated[list[Text], Field(max_length=8)] = Field(default_factory=list)
    filters: Annotated[list[tuple[Text, Text, Any]], Field(strict=False, max_length=32)] = Field(default_factory=list)
    limit: Annotated[int, Field(ge=1, le=MAX_POINTS)] | None = None
    cursor: Annotated[str, StringConstraints(max_length=MAX_CURSOR_CHARACTERS)] | None = None

    def metrics(self) -> list[str]:
        """The names."""
        return [self.metric_name] if isinstance(self.metric_name, str) else self.metric_name

    def conditions(self) -> list[Filter]:
        """The filters.

        Raises:
            InvalidInputError: An unknown operator.
        """
        return [Filter(field, Op.named(op), value) for field, op, value in self.filters]


class QueryRequest(SelectionRequest):
    """A question about one metric or several."""

    aggregation: (
        Annotated[Aggregation, Field(strict=False)]
        | Annotated[list[Annotated[Aggregation, Field(strict=False)]], Field(min_length=1, max_length=8)]
    )
    time_range: Annotated[tuple[AwareDatetime, AwareDatetime], Field(strict=False)]
    granularity: Annotated[Unit, Field(strict=False)] | UnitRequest | IntervalRequest | None = Unit.MINUTE
    percentile: Annotated[float, Field(ge=0, le=100)] | None = None
    exact: bool = False
    fill: Annotated[Fill, Field(strict=False)] = Fill.NONE
    order: Literal["asc", "desc"] = "asc"
    explain: bool = False

    def to_query(self) -> Query:
        """What is asked, without how it is paged.

        Raises:
            InvalidInputError: An unknown time zone, operator or interval.
        """
        start, end = self.time_range
        return Query(
            metrics=self.metrics(),
            aggregations=[self.aggregation] if isinstance(self.aggregation, Aggregation) else self.aggregation,
            start=start, end=end, granularity=_granularity(self.granularity), group_by=self.group_by,
            filters=self.conditions(), percentile=self.percentile, is_exact=self.exact, fill=self.fill,
        )  # fmt: skip


@router.post("/insert")
async def insert_metrics(request: Request, cloud: CloudState, _: Operator) -> dict[str, int]:
    """Store measurements, all or none; one that is there already counts as a duplicate.

    One of a time whose samples are no longer kept counts as beyond retention, and is not stored.
    """
    asked = await read_model(request, InsertRequest)
    now = utc_now()
    rows = [
        samples.Sample(
            metric=item.metric_name, device_id=item.device_id, source=item.source, labels=item.labels,
            time=item.time or now, seq=0, value=item.value, quality=item.quality,
        )
        for item in asked.metrics
    ]  # fmt: skip
    inserted = await cloud.transact(lambda connection: samples.insert(connection, rows))
    answer = {"inserted": inserted.inserted, "duplicates": inserted.duplicates}
    return answer | {"beyond_retention": inserted.beyond} if inserted.beyond else answer


@router.post("/query", dependencies=[Viewer])
async def query_metrics(request: Request, cloud: CloudState) -> Any:
    """Aggregate metrics in buckets of time over `[start, end)`; as JSON, or a table in a format the caller accepts."""
    wanted = negotiate(request.headers.get("accept"), (_JSON, *Format))
    asked = await read_model(request, QueryRequest)
    query = asked.to_query()
    answer, is_kept = await cloud.transact(lambda connection: cloud.answers.answer(connection, query))
    series, cursor = page(answer.series, asked.limit, asked.cursor, newest_first=asked.order == "desc")
    if wanted != _JSON:
        columns = Columns(group_fields(query.metrics, query.group_by), query.aggregations)
        table = await asyncio.to_thread(export, series, columns, Format(wanted))
        return Response(table, media_type=wanted, headers={"Next-Cursor": cursor} if cursor else None)
    body: dict[str, Any] = {"series": [to_json(one, query.aggregations) for one in series], "next_cursor": cursor}
    if asked.explain:
        body["explain"] = _explain(answer, is_kept) | {"timescaledb": await cloud.transact(edition)}
    return body


@router.post("/latest", dependencies=[Viewer])
async def latest_metrics(request: Request, cloud: CloudState) -> dict[str, Any]:
    """The newest value of each group."""
    asked = await read_model(request, SelectionRequest)
    metrics, filters = asked.metrics(), asked.conditions()
    found = await cloud.transact(lambda connection: latest(connection, metrics, filters, asked.group_by))
    series, cursor = page(found, asked.limit, asked.cursor)
    return {"series": [to_json(one, ()) for one in series], "next_cursor": cursor}


def _granularity(asked: Unit | UnitRequest | IntervalRequest | None) -> Granularity | None:
    if asked is None:
        return None
    if isinstance(asked, Unit):
        return of_unit(asked)
    if isinstance(asked, UnitRequest):
        return of_unit(asked.unit, zone_named(asked.tz))
    return of_seconds(asked.every_s, zone_named(asked.tz))


def _explain(answer: Answer, is_kept: bool) -> dict[str, Any]:
    """From where the answer was read."""

    def told(spans: list[Span]) -> list[list[str]]:
        return [[to_rfc3339(begin), to_rfc3339(finish)] for begin, finish in spans]

    return {
        "daily_rollup": told(answer.plan.days), "hourly_rollup": told(answer.plan.hours),
        "samples": told(answer.plan.raw), "hours_read_from_samples": answer.stale_hours, "exact": answer.is_exact,
        "cached": is_kept,
    }  # fmt: skip
