"""Samples in hypertables where TimescaleDB is, and the same parts either way; `make timescale` has it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import make_url

from primespark.cli.doctor import run_doctor
from primespark.core.settings import load_settings
from primespark.store import database, retention, samples
from primespark.store.edition import Edition, classes_in_hypertables, described, edition
from primespark.store.samples import Inserted, Sample
from primespark.store.schema import RETENTION_CLASSES

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
DAY = timedelta(days=1)
FILL = """
WITH known AS (INSERT INTO metrics.series (metric, device_id, source, labels) VALUES ('m', 'd', '', '{}')
    RETURNING series_id)
INSERT INTO metrics.sample_standard (series_id, time, seq, value)
SELECT series_id, moment, 0, 1 FROM known, unnest(:days) AS moment
"""


def put(connection: Connection, *days: int) -> Inserted:
    return samples.insert(connection, [Sample("m", "d", "", {}, MONDAY + day * DAY, 0, float(day)) for day in days])


def parts(connection: Connection) -> list[tuple[str, datetime, datetime]]:
    """Name, beginning and end of each part as the database has it, once its samples are found to be in theirs."""
    stray = text(
        "SELECT count(*) FROM metrics.sample_standard s JOIN pg_class c ON c.oid = s.tableoid WHERE NOT EXISTS"
        " (SELECT FROM metrics.part WHERE name = c.relname AND s.time >= starts AND s.time < ends)"
    )
    assert connection.execute(stray).scalar_one() == 0
    children = text(
        "SELECT relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid"
        " WHERE inhparent = CAST('metrics.sample_standard' AS regclass) ORDER BY relname"
    )
    listed = connection.execute(
        text("SELECT name, greatest(starts, '1970-01-01Z'), ends FROM metrics.part ORDER BY name")
    ).all()
    assert list(connection.execute(children).scalars()) == [name for name, _, _ in listed]
    return [(name, starts, ends) for name, starts, ends in listed]


def test_a_new_store_has_hypertables_where_timescaledb_is(store_engine: Engine, timescaledb_edition: Edition) -> None:
    with store_engine.begin() as connection:
        assert edition(connection) is timescaledb_edition
        kept = list(RETENTION_CLASSES) if timescaledb_edition is not Edition.NONE else []
        assert classes_in_hypertables(connection) == kept
        put(connection, -12_000, 0, 8, 3)
        found = parts(connection)
        assert [name for name, _, _ in found] == [
            f"sample_standard_{begin}" for begin in ("20260226", "20260305", "before")
        ]
        indexes = "SELECT indexname FROM pg_indexes WHERE tablename = 'sample_standard'"
        assert list(connection.execute(text(indexes)).scalars()) == ["sample_standard_pkey"]
        if timescaledb_edition is not Edition.NONE:
            chunks = text("SELECT chunk_name, range_start, range_end FROM timescaledb_information.chunks ORDER BY 1")
            assert [tuple(row) for row in connection.execute(chunks)] == found


def test_a_store_with_samples_keeps_its_parts(empty_postgres_url: str, timescaledb_edition: Edition) -> None:
    engine = database.connect(empty_postgres_url)
    with engine.begin() as connection:
        command.upgrade(database.alembic_config(connection), "0013_retention")
        days = {"days": [MONDAY, MONDAY + 5 * DAY]}
        connection.execute(text("SELECT metrics.ensure_parts('standard', :days)"), days)
        connection.execute(text(FILL), days)
    database.migrate(engine)
    with engine.begin() as connection:
        command.check(database.alembic_config(connection))
        others = [name for name in RETENTION_CLASSES if name != "standard"]
        assert classes_in_hypertables(connection) == (others if timescaledb_edition is not Edition.NONE else [])
        assert put(connection, 0, 6, 7, 8, 10) == Inserted(4, 1)
        # The week from Thursday begins in the middle of one from Monday, so what is left of it are days.
        assert [(name, ends - starts) for name, starts, ends in parts(connection)] == [
            ("sample_standard_20260302", 7 * DAY), ("sample_standard_20260309", DAY),
            ("sample_standard_20260310", DAY), ("sample_standard_20260312", 7 * DAY),
        ]  # fmt: skip
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM metrics.dirty"))
        retention.begin_later(connection, "standard", MONDAY + 8 * DAY)
        assert retention.drop_parts(connection, "standard") == ["sample_standard_20260302", "sample_standard_20260309"]
        found = connection.execute(text("SELECT value FROM metrics.sample ORDER BY time")).scalars()
        assert list(found) == [8.0, 10.0]
    engine.dispose()


@pytest.mark.parametrize("change", [{}, {"password": "wrong"}, {"username": "a b"}])
def test_the_doctor_says_what_serves_the_store(
    postgres_url: str, timescaledb_edition: Edition, change: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    url = make_url(postgres_url).set(**change).render_as_string(hide_password=False)
    run_doctor(load_settings(overrides={"cloud": {"store": {"url": url}}}), as_json=True)
    printed = capsys.readouterr().out
    (found,) = (check for check in json.loads(printed)["checks"] if check["name"] == "store")
    assert str(make_url(url).password) not in printed
    if change:
        assert found["state"] == "bad"
        assert "password authentication failed" in found["found"]
    elif timescaledb_edition is Edition.NONE:
        assert re.fullmatch(r"answers: PostgreSQL \d+\.\d+ without TimescaleDB", found["found"])
    else:
        said = r"with TimescaleDB [\d.]+ \(apache\); hypertables hold samples of short, standard, long"
        assert re.fullmatch(rf"answers: PostgreSQL \d+\.\d+ {said}", found["found"])


def test_an_empty_database_is_described_too(empty_postgres_url: str) -> None:
    engine = database.connect(empty_postgres_url)
    with engine.begin() as connection:
        assert described(connection).endswith("without TimescaleDB")
        assert classes_in_hypertables(connection) == []
    engine.dispose()
