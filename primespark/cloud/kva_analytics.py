"""The specification's analytics classes over the metrics store: measurements in, answers out, for programs."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import Engine

from primespark.core.settings import Settings, load_settings
from primespark.store import database, samples
from primespark.store.analytics.aggregates import Aggregation as AggregationType
from primespark.store.analytics.answers import Answers
from primespark.store.analytics.buckets import Unit as TimeGranularity
from primespark.store.analytics.buckets import of_unit
from primespark.store.analytics.cache import NoCache
from primespark.store.analytics.cache import RedisCache as RedisAnalyticsCache
from primespark.store.analytics.queries import Query
from primespark.store.analytics.selection import Filter
from primespark.store.edition import edition
from primespark.store.samples import Inserted, Sample

__all__ = [
    "AggregationType", "KVAAnalyticsEngine", "QueryConfig", "RedisAnalyticsCache", "TimeGranularity",
    "TimescaleDBManager", "get_analytics_engine",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class QueryConfig:
    """A question; a time without a zone is taken for local time, with a warning."""

    metric_name: str
    aggregation: AggregationType
    time_range: tuple[datetime, datetime]
    granularity: TimeGranularity = TimeGranularity.MINUTE
    group_by: Sequence[str] = ()
    filters: Sequence[Filter] = ()
    percentile: float | None = None

    def to_query(self) -> Query:
        """The same as the store takes it."""
        start, end = map(_aware, self.time_range)
        return Query(
            [self.metric_name], [self.aggregation], start, end, of_unit(self.granularity), self.group_by, self.filters,
            self.percentile,
        )  # fmt: skip


class TimescaleDBManager:
    """The metrics store: TimescaleDB, or any PostgreSQL.

    Args:
        url: Of the database.
    """

    def __init__(self, url: str) -> None:
        self._engine: Engine = database.connect(url)

    def initialize(self) -> None:
        """Bring the schema up to date."""
        database.migrate(self._engine)

    def edition(self) -> str:
        """`none` for a PostgreSQL without TimescaleDB, else its licence: `apache` or `timescale`."""
        with database.available(), self._engine.begin() as connection:
            return edition(connection)

    def insert(self, rows: Sequence[Sample]) -> Inserted:
        """Store samples, all or none."""
        with database.available(), self._engine.begin() as connection:
            return samples.insert(connection, rows)

    def query(self, query: Query, answers: Answers) -> list[dict[str, Any]]:
        """Points as `{time, value, …}` with the fields they are grouped by."""
        with database.available(), self._engine.begin() as connection:
            answer, _ = answers.answer(connection, query)
        return [
            {**series.group, "time": moment, "value": values[0]}
            for series in answer.series
            for moment, values in series.points()
        ]

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


@dataclass
class KVAAnalyticsEngine:
    """Measurements in, answers out, and a cache between."""

    settings: Settings
    _manager: TimescaleDBManager = field(init=False)
    _answers: Answers = field(init=False)

    async def initialize(self) -> None:
        """Connect to the store that the settings name.

        Raises:
            ConfigurationError: They name none.
            UnavailableError: It does not answer.
        """
        url = self.settings.cloud.cache.url
        self._answers = Answers(RedisAnalyticsCache(url.get_secret_value()) if url else NoCache())
        self._manager = TimescaleDBManager(self.settings.require_store_url())
        await asyncio.to_thread(self._manager.initialize)

    async def insert_metric(
        self,
        metric_name: str,
        value: float,
        labels: dict[str, str] | None = None,
        device_id: str = "",
        source: str = "api",
        timestamp: datetime | None = None,
    ) -> bool:
        """Store a measurement, now or of `timestamp`; whether it was new.

        Raises:
            InvalidInputError: It cannot be stored.
        """
        time = datetime.now(UTC) if timestamp is None else _aware(timestamp)
        row = Sample(metric_name, device_id, source, labels or {}, time, 0, value)
        return (await asyncio.to_thread(self._manager.insert, [row])).inserted == 1

    async def query(self, config: QueryConfig) -> list[dict[str, Any]]:
        """Points as `{time, value, …}` with the fields they are grouped by.

        Raises:
            InvalidInputError: It says what is wrong with the question.
        """
        return await asyncio.to_thread(self._manager.query, config.to_query(), self._answers)

    async def shutdown(self) -> None:
        """Close all connections."""
        await asyncio.to_thread(self._manager.close)


@cache
def get_analytics_engine() -> KVAAnalyticsEngine:
    """The process's engine, of the store that config and environment name."""
    return KVAAnalyticsEngine(load_settings())


def _aware(moment: datetime) -> datetime:
    if moment.tzinfo is not None:
        return moment
    warnings.warn("a time without a zone is taken for local time", stacklevel=4)
    return moment.astimezone()
