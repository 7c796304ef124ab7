"""Samples of series, each inserted once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from primespark.core.values import LARGEST_NUMBER, check_text, check_time, storable_json
from primespark.errors import InvalidInputError
from primespark.store import arrays

# A series is found through a B-tree, whose entries have at most 2704 bytes.
_MAX_LABELS_BYTES = 1024
_MAX_NAME_CHARACTERS = 128
# Metric, device, source, and the labels as JSON.
_SeriesKey = tuple[str, str, str, str]
_PARTS = "metric, device_id, source, labels"
_GIVEN = (
    "unnest(CAST(:metrics AS text[]), CAST(:devices AS text[]), CAST(:sources AS text[]), CAST(:labels AS jsonb[]))"
    " WITH ORDINALITY AS given(metric, device_id, source, labels, place)"
)
_FIND_SERIES = text(
    f"SELECT s.series_id FROM {_GIVEN} LEFT JOIN metrics.series s USING (metric, device_id, source, labels)"  # noqa: S608 (constants)
    " ORDER BY given.place"
)
# Sorted wherever rows are taken that another transaction may take too: then none waits for one that waits for it.
_CREATE_SERIES = text(
    f"INSERT INTO metrics.series ({_PARTS}) SELECT DISTINCT {_PARTS} FROM {_GIVEN}"  # noqa: S608 (constants)
    " WHERE NOT EXISTS (SELECT 1 FROM metrics.series s WHERE (s.metric, s.device_id, s.source, s.labels)"
    " = (given.metric, given.device_id, given.source, given.labels))"
    " ORDER BY metric, device_id, source, labels ON CONFLICT DO NOTHING"
)
_INSERT = text(
    "WITH inserted AS ("
    " INSERT INTO metrics.sample (series_id, time, seq, value) SELECT series_id, time, seq, value"
    " FROM unnest(CAST(:series AS bigint[]), CAST(:times AS timestamptz[]), CAST(:seqs AS bigint[]),"
    " CAST(:values AS float8[])) WITH ORDINALITY AS given(series_id, time, seq, value, place)"
    # Of two values for one key the first given stands.
    " ORDER BY series_id, time, seq, place"
    " ON CONFLICT DO NOTHING RETURNING series_id, time, seq, value"
    "), marked AS ("
    " INSERT INTO metrics.dirty (series_id, bucket)"
    " SELECT DISTINCT series_id, date_trunc('hour', time, 'UTC') FROM inserted"
    "), newest AS ("
    " INSERT INTO metrics.last_sample AS known (series_id, time, seq, value)"
    " SELECT DISTINCT ON (series_id) series_id, time, seq, value FROM inserted ORDER BY series_id, time DESC, seq DESC"
    " ON CONFLICT (series_id) DO UPDATE SET (time, seq, value) = (excluded.time, excluded.seq, excluded.value)"
    " WHERE (excluded.time, excluded.seq) > (known.time, known.seq)"
    "), counted AS ("
    " INSERT INTO metrics.day_version AS known (series_id, day, version)"
    " SELECT DISTINCT series_id, date_trunc('day', time, 'UTC'), 1 FROM inserted ORDER BY 1, 2"
    " ON CONFLICT (series_id, day) DO UPDATE SET version = known.version + 1"
    ") SELECT count(*) FROM inserted"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a series; `seq` tells apart what one moment has of it."""

    metric: str
    device_id: str
    source: str
    labels: dict[str, str]
    time: datetime
    seq: int
    value: float


@dataclass(frozen=True, slots=True)
class Inserted:
    """How many samples were new, and how many were there already."""

    inserted: int
    duplicates: int


def insert(connection: Connection, rows: Sequence[Sample]) -> Inserted:
    """Store samples and mark their hours for the rollup.

    Raises:
        InvalidInputError: A sample that cannot be stored; `errors` has its index, and nothing is stored.
    """
    if not rows:
        return Inserted(0, 0)
    keys: list[_SeriesKey] = []
    known: set[_SeriesKey] = set()
    for index, row in enumerate(rows):
        try:
            _check_value(row)
            keys.append(_key(row))
            if keys[-1] not in known:
                _check_names(keys[-1])
                known.add(keys[-1])
        except InvalidInputError as error:
            error.errors = [{"loc": [index], "msg": error.message}]
            raise
    series = _series_ids(connection, sorted(known))
    values = {
        "series": arrays.numbers([series[key] for key in keys]), "times": arrays.moments([row.time for row in rows]),
        "seqs": arrays.numbers([row.seq for row in rows]), "values": arrays.numbers([row.value for row in rows]),
    }  # fmt: skip
    inserted = connection.execute(_INSERT, values).scalar_one()
    return Inserted(inserted, len(rows) - inserted)


def check(sample: Sample) -> None:
    """Refuse a sample that cannot be stored, or whose aggregates could not be.

    Raises:
        InvalidInputError: It says what is wrong.
    """
    _check_value(sample)
    _check_names(_key(sample))


def _check_value(sample: Sample) -> None:
    if not math.isfinite(sample.value) or abs(sample.value) > LARGEST_NUMBER:
        raise InvalidInputError(
            f"not a finite number up to {LARGEST_NUMBER:g}", remedy="send such a number", code="value_out_of_range"
        )
    check_time(sample.time)


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


def _series_ids(connection: Connection, keys: list[_SeriesKey]) -> dict[_SeriesKey, int]:
    """Ids of series, which are made where they are missing."""
    metrics, devices, sources, labels = (list(column) for column in zip(*keys, strict=True))
    given = {"metrics": metrics, "devices": devices, "sources": sources, "labels": labels}
    found = list(connection.execute(_FIND_SERIES, given).scalars())
    if None in found:
        connection.execute(_CREATE_SERIES, given)
        found = list(connection.execute(_FIND_SERIES, given).scalars())
    return dict(zip(keys, found, strict=True))
