"""The metrics store with ten million samples: what taking them costs, and how soon questions are answered."""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, Engine, MetaData, Table, insert, text

from benchmarks.processes import postgres, valkey
from benchmarks.result import Result
from primespark.store import database, packing, rollups, samples
from primespark.store.analytics import queries
from primespark.store.analytics.aggregates import Aggregation
from primespark.store.analytics.answers import Answers
from primespark.store.analytics.buckets import Unit, of_unit
from primespark.store.analytics.cache import RedisCache
from primespark.store.analytics.queries import Query
from primespark.store.analytics.selection import Filter, Op
from primespark.store.samples import Sample
from primespark.store.schema import sample_standard

START = datetime(2026, 3, 5, tzinfo=UTC)
DAY = timedelta(days=1)
SERIES, EVERY_S, DAYS = 39, 10, 30
ROUNDS = 15
INGESTED, BATCH = 60_000, 1000
SEVEN = [one for one in Aggregation if one is not Aggregation.PERCENTILE]
MONTH = Query(
    ["m"], SEVEN, START, START + DAYS * DAY, of_unit(Unit.HOUR), (), [Filter("device_id", Op.EQUAL, "edge-1")]
)
_FILL = """
INSERT INTO metrics.sample_standard (series_id, time, seq, value)
SELECT s.series_id, moment, 0, 50 + 10 * sin(extract(epoch FROM moment) / 7000) + 5 * random()
FROM metrics.series s, generate_series(:first, :last, make_interval(secs => :every)) AS moment
ORDER BY moment, s.series_id
"""
_RAW = """
SELECT date_bin('1 hour', m.time, '2000-01-03Z') AS b, sum(value), avg(value), min(value), max(value), count(value),
    stddev_samp(value), var_samp(value)
FROM metrics.sample m JOIN metrics.series s USING (series_id)
WHERE s.metric = 'm' AND s.device_id = 'edge-1' AND m.time >= :first AND m.time < :last GROUP BY 1 ORDER BY 1
"""
_WIDE = """
CREATE TABLE wide (time timestamptz NOT NULL, metric_name text NOT NULL, value float8, labels jsonb, source text,
    device_id text, UNIQUE (metric_name, device_id, time))
"""


def run() -> Iterator[Result]:
    """Figures of the store alone; the database and Valkey are processes of their own."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder, ExitStack() as stack:
        engine = database.connect(stack.enter_context(postgres(Path(folder))))
        stack.callback(engine.dispose)
        database.migrate(engine)
        yield from _ingest(engine)
        _fill(engine)
        yield from _questions(engine)
        yield from _kept(engine, stack.enter_context(valkey(Path(folder))))
        yield _refresh(engine)
        yield _size(engine)


def _ingest(engine: Engine) -> Iterator[Result]:
    """Processor time a sample, of server and client, to take batches of a thousand."""
    rows = [
        Sample("m", f"edge-{at % 20}", "bench", {}, START - 9 * DAY + timedelta(seconds=at // 20), 0, float(at))
        for at in range(INGESTED)
    ]
    batches = [rows[first : first + BATCH] for first in range(0, INGESTED, BATCH)]
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE bare (LIKE metrics.sample_standard INCLUDING ALL)"))
        connection.execute(text("CREATE TABLE core (LIKE metrics.sample_standard INCLUDING ALL)"))
        series = {f"edge-{number}": number for number in range(20)}
    core = Table("core", MetaData(), *(Column(column.name, column.type) for column in sample_standard.columns))
    texts = [
        "".join(f"{series[row.device_id]}\t{row.time.isoformat()}\t{row.seq}\t{row.value}\t\\N\n" for row in batch)
        for batch in batches
    ]

    def copy(connection: Connection, number: int) -> None:
        cursor = connection.connection.cursor()
        cursor.copy_expert("COPY bare FROM STDIN", io.StringIO(texts[number]))

    def through_sqlalchemy(connection: Connection, number: int) -> None:
        values = [
            {"series_id": series[row.device_id], "time": row.time, "seq": row.seq, "value": row.value}
            for row in batches[number]
        ]
        connection.execute(insert(core), values)

    def ours(connection: Connection, number: int) -> None:
        samples.insert(connection, batches[number])

    bare, mapped, taken, again = (_cpu_us(engine, one) for one in (copy, through_sqlalchemy, ours, ours))
    yield _result("processor time to take a sample, once, marked", taken, "us", "bare COPY", bare, "<=", 2.5)
    name = "processor time to take a sample, against SQLAlchemy's inserts"
    yield _result(name, taken, "us", "insertmanyvalues", mapped, "<=", 0.2)
    yield _result("processor time for a sample that is there already", again, "us", "a new one", taken, "<=", 1.0)


def _cpu_us(engine: Engine, work: Callable[[Connection, int], None]) -> float:
    with engine.connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        connection.commit()
        before = _spent(pid)
        for number in range(INGESTED // BATCH):
            with connection.begin():
                work(connection, number)
        return (_spent(pid) - before) / INGESTED * 1e6


def _spent(pid: int) -> float:
    """Processor seconds of this process and of a server's process, whose ticks would miss short turns."""
    on_processor_ns = Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]
    return time.process_time() + int(on_processor_ns) / 1e9


def _fill(engine: Engine) -> None:
    first, last = START, START + DAYS * DAY - timedelta(seconds=EVERY_S)
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE metrics.dirty, metrics.sample_standard"))
        for number in range(SERIES):
            samples.insert(connection, [Sample("m", f"edge-{number}", "fill", {}, first, 0, 1.0)])
        connection.execute(text("DELETE FROM metrics.sample_standard; DELETE FROM metrics.dirty"))
        connection.execute(text("DELETE FROM metrics.series WHERE source = 'bench'"))
        days = [first + day * DAY for day in range(DAYS)]
        connection.execute(text("SELECT metrics.ensure_parts('standard', :days)"), {"days": days})
        connection.execute(text(_FILL), {"first": first, "last": last, "every": EVERY_S})
        connection.execute(
            text(
                "INSERT INTO metrics.dirty SELECT series_id, hour FROM metrics.series,"
                " generate_series(CAST(:first AS timestamptz), :last, '1 hour') AS hour"
            ),
            {"first": first, "last": last},
        )
    for day in range(DAYS):
        with engine.begin() as connection:
            rollups.refresh_hours(connection, START + day * DAY, START + (day + 1) * DAY)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def _questions(engine: Engine) -> Iterator[Result]:
    bound = {"first": MONTH.start, "last": MONTH.end}

    def raw() -> None:
        with engine.begin() as connection:
            assert len(connection.execute(text(_RAW), bound).all()) == DAYS * 24

    rolled_ms, raw_ms = _both(lambda: _ask(engine, MONTH), raw)
    yield _result("30 days by hour, seven aggregates", rolled_ms, "ms", "from the samples", raw_ms, "<=", 0.05)
    # In turns with a scan of all samples it finds no processor cache as it left it.
    half = statistics.median(_timed(lambda: _ask(engine, MONTH)) for _ in range(4 * ROUNDS))
    yield _result("30 days by hour, seven aggregates, half of 60", half, "ms", "the goal of 5 ms", 5.0, "<=", 1.0)
    whole = replace(MONTH, aggregations=[Aggregation.PERCENTILE], percentile=95.0, granularity=None)
    exactly = replace(whole, is_exact=True)
    near, exact = (_ask(engine, query).series[0].columns[0][0] for query in (whole, exactly))
    binned_ms, exact_ms = _both(lambda: _ask(engine, whole), lambda: _ask(engine, exactly))
    yield _result("95th percentile of 30 days", binned_ms, "ms", "from the samples", exact_ms, "<=", 0.1)
    yield _result("its error", abs(near - exact) / exact * 100, "%", "the bound of 1 %", 1.0, "<=", 1.0)
    for hours in (1, 24):
        by_minute = replace(
            MONTH, aggregations=[Aggregation.AVG], granularity=of_unit(Unit.MINUTE), end=START + timedelta(hours=hours)
        )
        taken = sorted(_timed(lambda query=by_minute: _ask(engine, query)) for _ in range(4 * ROUNDS))  # type: ignore[misc]
        name = f"{hours} h by minute, 95 of 100 answers"
        yield _result(name, taken[int(0.95 * len(taken))], "ms", "the goal of 25 ms", 25.0, "<=", 1.0)


def _kept(engine: Engine, url: str) -> Iterator[Result]:
    answers = Answers(RedisCache(url))
    for days, goal in ((1, 0.25), (DAYS, 0.02)):
        query = replace(MONTH, aggregations=[Aggregation.AVG], granularity=of_unit(Unit.MINUTE), end=START + days * DAY)

        def kept(query: Query = query) -> None:
            with engine.begin() as connection:
                assert answers.answer(connection, query)[1]

        with engine.begin() as connection:
            answers.answer(connection, query)
        kept_ms, anew_ms = _both(kept, lambda query=query: _ask(engine, query))  # type: ignore[misc]
        yield _result(f"a kept answer, {days} days by minute", kept_ms, "ms", "worked out", anew_ms, "<=", goal)


def _refresh(engine: Engine) -> Result:
    """Hours with late samples, ten times as many: what an hour of a series costs."""

    def hour_ms(hours: int, seq: int) -> float:
        late = [
            Sample("m", f"edge-{number % SERIES}", "fill", {}, START + timedelta(hours=number // SERIES), seq, 1.0)
            for number in range(hours)
        ]
        with engine.begin() as connection:
            samples.insert(connection, late)
        with engine.begin() as connection:
            started = time.perf_counter()
            assert rollups.refresh_hours(connection, START, START + DAYS * DAY) == hours
            return (time.perf_counter() - started) / hours * 1000

    few = statistics.median(hour_ms(100, seq) for seq in range(1, 6))
    many = statistics.median(hour_ms(1000, seq) for seq in range(11, 16))
    return _result("refresh of an hour of a series, 1,000 late samples", many, "ms", "100 late samples", few, "<=", 1.5)


def _size(engine: Engine) -> Result:
    """Bytes of a row with its indexes, against the specification's wide table, with names as in its examples."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        packing.pack(connection, START + DAYS * DAY)
    with engine.begin() as connection:
        connection.execute(text(_WIDE))
        connection.execute(
            text(
                "INSERT INTO wide SELECT m.time, 'cpu_usage', m.value, jsonb_build_object('host', 'edge-000000000001'),"
                " s.source, replace(s.device_id, 'edge-', 'pi5-')"
                " FROM metrics.sample m JOIN metrics.series s USING (series_id)"
                " WHERE m.seq = 0 AND m.time < CAST(:start AS timestamptz) + interval '7 days'"
            ),
            {"start": START},
        )
        wide, rows = connection.execute(
            text("SELECT pg_total_relation_size('wide'), (SELECT count(*) FROM wide)")
        ).one()
        ours = connection.execute(
            text("SELECT pg_total_relation_size('metrics_parts.sample_standard_20260305')")
        ).scalar_one()
    return _result("bytes of a sample with its index", ours / rows, "B", "the wide table", wide / rows, "<=", 0.6)


def _ask(engine: Engine, query: Query) -> queries.Answer:
    with engine.begin() as connection:
        return queries.run(connection, query)


def _both(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[float, float]:
    """Median milliseconds of each, taken in turns."""
    pairs = [(_timed(first), _timed(second)) for _ in range(ROUNDS)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def _result(name: str, value: float, unit: str, against: str, reference: float, compared: str, goal: float) -> Result:
    ratio = value / reference
    return Result(
        area="analytics", name=name, value=value, unit=unit, against=against, reference=reference, ratio=ratio,
        goal=f"{compared} {goal}", ok=ratio <= goal,
    )  # fmt: skip
