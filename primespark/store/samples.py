"""Samples of series, each inserted once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any

from psycopg2.errors import UniqueViolation
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from primespark.core.clock import utc_now
from primespark.core.values import LARGEST_NUMBER, check_text, check_time, storable_json
from primespark.errors import InvalidInputError
from primespark.store import arrays
from primespark.store.schema import RETENTION_CLASSES

# A series is found through a B-tree, whose entries have at most 2704 bytes.
_MAX_LABELS_BYTES = 1024
_MAX_NAME_CHARACTERS = 128
MAX_QUALITY_CHARACTERS = 64
# Forecasts are measured too; a device's own clock is put right before it sends.
MOST_AHEAD = timedelta(days=31)
# For fewer, finding out that they are new costs more than it saves.
_MANY = 200
# Metric, device, source, and the labels as JSON.
_SeriesKey = tuple[str, str, str, str]
_PARTS = "metric, device_id, source, labels"
_GIVEN = (
    "unnest(CAST(:metrics AS text[]), CAST(:devices AS text[]), CAST(:sources AS text[]), CAST(:labels AS jsonb[]))"
    " WITH ORDINALITY AS given(metric, device_id, source, labels, place)"
)
_FIND_SERIES = text(
    f"SELECT s.series_id, s.class FROM {_GIVEN} LEFT JOIN metrics.series s USING (metric, device_id, source, labels)"
    " ORDER BY given.place"
)
# Sorted wherever rows are taken that another transaction may take too: then none waits for one that waits for it.
_CREATE_SERIES = text(
    f"INSERT INTO metrics.series ({_PARTS}, class) SELECT DISTINCT {_PARTS}, metrics.class_of(metric) FROM {_GIVEN}"
    " WHERE NOT EXISTS (SELECT 1 FROM metrics.series s WHERE (s.metric, s.device_id, s.source, s.labels)"
    " = (given.metric, given.device_id, given.source, given.labels))"
    " ORDER BY metric, device_id, source, labels ON CONFLICT DO NOTHING"
)


def _insertion(retention_class: str, on_conflict: str) -> str:
    return (
        "WITH inserted AS ("
        f" INSERT INTO metrics.sample_{retention_class} (series_id, time, seq, value, quality)"
        # Of two values for one key the first given stands.
        " SELECT DISTINCT ON (series_id, time, seq) series_id, time, seq, value, quality"
        " FROM unnest(CAST(:series AS bigint[]), CAST(:times AS timestamptz[]), CAST(:seqs AS bigint[]),"
        " CAST(:values AS float8[]), CAST(:qualities AS text[]))"
        " WITH ORDINALITY AS given(series_id, time, seq, value, quality, place)"
        f" ORDER BY series_id, time, seq, place {on_conflict} RETURNING series_id, time, seq, value"
        "), hours AS ("
        " SELECT DISTINCT series_id, date_bin('1 hour', time, '2000-01-01Z') AS hour FROM inserted"
        "), marked AS ("
        " INSERT INTO metrics.dirty (series_id, bucket) SELECT series_id, hour FROM hours"
        "), newest AS ("
        " INSERT INTO metrics.last_sample AS known (series_id, time, seq, value)"
        " SELECT DISTINCT ON (series_id) series_id, time, seq, value FROM inserted WHERE value IS NOT NULL"
        " ORDER BY series_id, time DESC, seq DESC"
        " ON CONFLICT (series_id) DO UPDATE SET (time, seq, value) = (excluded.time, excluded.seq, excluded.value)"
        " WHERE (excluded.time, excluded.seq) > (known.time, known.seq)"
        "), counted AS ("
        " INSERT INTO metrics.day_version AS known (series_id, day, version)"
        " SELECT DISTINCT series_id, date_bin('1 day', hour, '2000-01-01Z'), 1 FROM hours ORDER BY 1, 2"
        " ON CONFLICT (series_id, day) DO UPDATE SET version = known.version + 1"
        ") SELECT count(*) FROM inserted"
    )


_INSERT = {name: text(_insertion(name, "ON CONFLICT DO NOTHING")) for name in RETENTION_CLASSES}
# Where keys are known to be new, looking for each first is left out: it is a third of a row's cost.
# The savepoint lasts until the transaction ends: nothing is gained by a statement more to release it.
_INSERT_NEW = {name: text("SAVEPOINT new_samples; " + _insertion(name, "")) for name in RETENTION_CLASSES}
_UNDO_NEW = text("ROLLBACK TO SAVEPOINT new_samples; RELEASE SAVEPOINT new_samples")
_PREPARE = text("SELECT metrics.ensure_parts(:class, CAST(:times AS timestamptz[])), false")
_PREPARE_MANY = text(
    "SELECT metrics.ensure_parts(:class, CAST(:times AS timestamptz[])), NOT EXISTS (SELECT"
    " FROM unnest(CAST(:series AS bigint[]), CAST(:oldest AS timestamptz[])) AS given(series_id, oldest)"
    " JOIN metrics.last_sample USING (series_id) WHERE time >= oldest)"
)
_COUNT_BEYOND = text("UPDATE metrics.retention SET beyond = beyond + :count WHERE class = :class")


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a series; `seq` tells apart what one moment has of it.

    Without a value, `quality` says why there is none.
    """

    metric: str
    device_id: str
    source: str
    labels: dict[str, str]
    time: datetime
    seq: int
    value: float | None
    quality: str | None = None


@dataclass(frozen=True, slots=True)
class Inserted:
    """How many samples were new, were there already, and are of a time whose samples are no longer kept."""

    inserted: int
    duplicates: int
    beyond: int = 0


def insert(connection: Connection, rows: Sequence[Sample]) -> Inserted:
    """Store samples and mark their hours for the rollup.

    Raises:
        InvalidInputError: A sample that cannot be stored; `errors` has its index, and nothing is stored.
    """
    if not rows:
        return Inserted(0, 0)
    latest = _latest()
    keys: list[_SeriesKey] = []
    known: set[_SeriesKey] = set()
    for index, row in enumerate(rows):
        try:
            _check_value(row)
            _check_time(row, latest)
            keys.append(_key(row))
            if keys[-1] not in known:
                _check_names(keys[-1])
                known.add(keys[-1])
        except InvalidInputError as error:
            error.errors = [{"loc": [index], "msg": error.message}]
            raise
    series = _series(connection, sorted(known))
    by_class: dict[str, list[tuple[int, Sample]]] = {}
    for row, key in zip(rows, keys, strict=True):
        series_id, retention_class = series[key]
        by_class.setdefault(retention_class, []).append((series_id, row))
    # All parts first: who waits to make one must hold no rows that another waits for.
    prepared = {name: _prepare(connection, name, of_class) for name, of_class in sorted(by_class.items())}
    inserted = beyond = 0
    for name, of_class in sorted(by_class.items()):
        kept_from, are_new = prepared[name]
        kept = [entry for entry in of_class if entry[1].time >= kept_from]
        inserted += _store(connection, name, kept, are_new) if kept else 0
        if len(kept) < len(of_class):
            beyond += len(of_class) - len(kept)
            connection.execute(_COUNT_BEYOND, {"class": name, "count": len(of_class) - len(kept)})
    return Inserted(inserted, len(rows) - inserted - beyond, beyond)


def _prepare(connection: Connection, name: str, rows: Sequence[tuple[int, Sample]]) -> tuple[datetime, bool]:
    """Make the parts for rows of one retention class.

    Returns:
        Samples from before are no longer kept; whether all are many, and newer than the known values of their series.
    """
    days = {row.time.astimezone(UTC).date() for _, row in rows}
    # Of a day whose samples are kept in part, its last moment is.
    given = {"class": name, "times": arrays.moments(datetime.combine(day, time.max, UTC) for day in days)}
    if len(rows) < _MANY:
        kept_from, are_new = connection.execute(_PREPARE, given).one()
    else:
        oldest: dict[int, datetime] = {}
        for series_id, row in rows:
            if row.time < oldest.setdefault(series_id, row.time):
                oldest[series_id] = row.time
        given |= {"series": arrays.numbers(oldest), "oldest": arrays.moments(oldest.values())}
        kept_from, are_new = connection.execute(_PREPARE_MANY, given).one()
    return kept_from, are_new


def _store(connection: Connection, name: str, rows: Sequence[tuple[int, Sample]], are_new: bool) -> int:
    """Insert rows of one retention class; how many were not there yet."""
    columns = _columns(rows)
    if are_new:
        try:
            return int(connection.execute(_INSERT_NEW[name], columns).scalar_one())
        except IntegrityError as error:
            # One was committed only now, or has no value, so that `last_sample` does not tell of it.
            if not isinstance(error.orig, UniqueViolation):
                raise
            connection.execute(_UNDO_NEW)
    return int(connection.execute(_INSERT[name], columns).scalar_one())


def _columns(rows: Sequence[tuple[int, Sample]]) -> dict[str, Any]:
    qualities = [row.quality for _, row in rows]
    return {
        "series": arrays.numbers([series_id for series_id, _ in rows]),
        "times": arrays.moments(row.time for _, row in rows),
        "seqs": arrays.numbers([row.seq for _, row in rows]),
        "values": arrays.numbers([row.value for _, row in rows]),
        # Without an array at all, each is null.
        "qualities": qualities if any(qualities) else None,
    }


def check(sample: Sample) -> None:
    """Refuse a sample that cannot be stored, or whose aggregates could not be.

    Raises:
        InvalidInputError: It says what is wrong.
    """
    check_storable(sample)
    _check_time(sample, _latest())


def check_storable(sample: Sample) -> None:
    """`check`, whatever its time: a device that never learned the time may be years ahead.

    Raises:
        InvalidInputError: It says what is wrong.
    """
    _check_value(sample)
    _check_names(_key(sample))


def is_ahead(sample: Sample) -> bool:
    """Whether its time is further ahead than anything is stored of."""
    return sample.time > _latest()


def _latest() -> datetime:
    return utc_now() + MOST_AHEAD


def _check_value(sample: Sample) -> None:
    if sample.value is None:
        if not sample.quality:
            raise InvalidInputError("no value, and no quality to say why", remedy="give one", code="missing_value")
    elif not math.isfinite(sample.value) or abs(sample.value) > LARGEST_NUMBER:
        raise InvalidInputError(
            f"not a finite number up to {LARGEST_NUMBER:g}", remedy="send such a number", code="value_out_of_range"
        )
    if sample.quality is not None:
        check_text(sample.quality)
    check_time(sample.time)


def _check_time(sample: Sample, latest: datetime) -> None:
    if sample.time > latest:
        raise InvalidInputError(
            f"a time more than {MOST_AHEAD.days} days ahead", remedy="set the clock", code="time_ahead"
        )


def _key(sample: Sample) -> _SeriesKey:
    labels = storable_json(sample.labels) if sample.labels else "{}"
    return sample.metric, sample.device_id, sample.source, labels


def _check_names(key: _SeriesKey) -> None:
    *names, labels = key
    check_text(*names)
    if max(map(len, names)) > _MAX_NAME_CHARACTERS or len(labels.encode()) > _MAX_LABELS_BYTES:
        raise InvalidInputError(
            f"a name of more than {_MAX_NAME_CHARACTERS} characters, or labels of more than {_MAX_LABELS_BYTES} bytes",
            remedy="name less in labels",
            code="series_too_long",
        )


def _series(connection: Connection, keys: list[_SeriesKey]) -> dict[_SeriesKey, tuple[int, str]]:
    """Ids and retention classes of series, which are made where they are missing."""
    metrics, devices, sources, labels = (list(column) for column in zip(*keys, strict=True))
    given = {"metrics": metrics, "devices": devices, "sources": sources, "labels": labels}
    found = connection.execute(_FIND_SERIES, given).all()
    if any(series_id is None for series_id, _ in found):
        connection.execute(_CREATE_SERIES, given)
        found = connection.execute(_FIND_SERIES, given).all()
    return {key: (series_id, name) for key, (series_id, name) in zip(keys, found, strict=True)}
