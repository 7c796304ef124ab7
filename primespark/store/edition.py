"""Which TimescaleDB a store has, and what is kept in it."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import Connection, text

from primespark.store.schema import RETENTION_CLASSES


class Edition(StrEnum):
    """Of TimescaleDB, by what its licence allows."""

    NONE = "none"
    APACHE = "apache"
    TIMESCALE = "timescale"


def edition(connection: Connection) -> Edition:
    """The edition that the database has; NONE where its extension is not in the database."""
    return Edition(
        connection.execute(text("SELECT coalesce(current_setting('timescaledb.license', true), 'none')")).scalar_one()
    )


def classes_in_hypertables(connection: Connection) -> list[str]:
    """The retention classes whose samples are in hypertables; those of the others are in parts of the store's own."""
    if connection.execute(text("SELECT to_regprocedure('metrics.is_hypertable(regclass)') IS NULL")).scalar_one():
        # The store is older, or has not been made yet.
        return []
    statement = text("SELECT metrics.is_hypertable(CAST('metrics.sample_' || CAST(:class AS text) AS regclass))")
    return [name for name in RETENTION_CLASSES if connection.execute(statement, {"class": name}).scalar_one()]


def described(connection: Connection) -> str:
    """What serves the store, for a person."""
    version = connection.execute(text("SELECT split_part(current_setting('server_version'), ' ', 1)")).scalar_one()
    found = edition(connection)
    if found is Edition.NONE:
        return f"PostgreSQL {version} without TimescaleDB"
    extension = connection.execute(
        text("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
    ).scalar_one()
    classes = ", ".join(classes_in_hypertables(connection)) or "no class"
    return f"PostgreSQL {version} with TimescaleDB {extension} ({found}); hypertables hold samples of {classes}"
