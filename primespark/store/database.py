"""Connections, migrations under one lock, and waiting for notifications."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, TextIO

import psycopg2
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from primespark.errors import ConfigurationError, UnavailableError

MIGRATION_LOCK = 7_301_001
# Who waits long for a commit listens to this too, and gives up when told: a service that stops must not wait for it.
END_WAITS_CHANNEL = "end_waits"
_CONNECT_TIMEOUT_S = 5
_COPY_CHARACTERS = 64 * 1024
_CONNECT_OPTIONS: dict[str, Any] = {
    "connect_timeout": _CONNECT_TIMEOUT_S,
    "application_name": "primespark",
    # Many short queries: just-in-time compilation costs more than it saves.
    "options": "-c jit=off",
    # A peer that has gone without a word is found out.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}


def connect(url: str, pool_size: int = 10, *, statement_timeout_s: float | None = None) -> Engine:
    """An engine on the database; connects on first use.

    Args:
        url: Of the database.
        pool_size: Most connections at once.
        statement_timeout_s: After this the server ends a statement; migrations are exempt.

    Raises:
        ConfigurationError: `url` is no address of a PostgreSQL.
    """
    try:
        parsed = make_url(url)
    # A port that is no number is a ValueError.
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "the store's URL cannot be read", remedy="write postgresql://user:password@host:port/database"
        ) from None
    if parsed.get_backend_name() != "postgresql":
        raise ConfigurationError(
            f"the store's URL names {parsed.get_backend_name()!r}", remedy="only PostgreSQL 16 or newer is a store"
        )
    arguments = dict(_CONNECT_OPTIONS)
    if statement_timeout_s is not None:
        arguments["options"] += f" -c statement_timeout={statement_timeout_s * 1000:.0f}"
    return create_engine(
        parsed.set(drivername="postgresql+psycopg2"),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=_CONNECT_TIMEOUT_S,
        pool_pre_ping=True,
        connect_args=arguments,
    )


@contextmanager
def available() -> Iterator[None]:
    """Turn a database that does not answer into UnavailableError.

    Raises:
        UnavailableError: No connection, or it broke.
    """
    try:
        yield
    except (OperationalError, PoolTimeoutError) as error:
        raise store_unavailable() from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise store_unavailable() from error
        raise


def store_unavailable() -> UnavailableError:
    """The store does not answer."""
    return UnavailableError(
        "the store does not answer", remedy="try again; see that PostgreSQL runs", code="store_unavailable",
        retry_after_s=1,
    )  # fmt: skip


def copy_rows(connection: Connection, statement: str, rows: TextIO) -> None:
    """Write rows in the text format of COPY, in the connection's transaction.

    Args:
        connection: In a transaction, which must be rolled back when this raises.
        statement: `COPY … FROM STDIN`, from the program, never from outside.
        rows: The rows.

    Raises:
        UnavailableError: The store refuses, or the connection broke.
    """
    # SQLAlchemy has no COPY, so errors do not come as its own, and it must be told of a connection that broke.
    driver_connection: Any = connection.connection
    try:
        with driver_connection.cursor() as cursor:
            cursor.copy_expert(statement, rows, _COPY_CHARACTERS)
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        if driver_connection.closed:
            connection.invalidate(error)
        raise store_unavailable() from error


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest version; safe when several services start at once.

    Raises:
        ConfigurationError: Code `store_version`: a newer version of this program made it.
        UnavailableError: The store does not answer.
    """
    with available(), engine.connect() as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
        connection.commit()
        try:
            command.upgrade(alembic_config(connection), "head")
            connection.commit()
        except CommandError as error:
            raise ConfigurationError(
                f"the store's schema is of another version: {error}",
                remedy="install the newer version again",
                code="store_version",
            ) from None
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
            connection.execute(text("RESET statement_timeout"))
            connection.execute(text("RESET statement_timeout"))
            connection.commit()


def alembic_config(connection: Connection) -> Config:
    """Alembic on the packaged history, using an open connection."""
    config = Config()
    config.set_main_option("script_location", str(files("primespark.store").joinpath("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def end_waits(engine: Engine) -> None:
    """End every long wait on the database, see END_WAITS_CHANNEL.

    Raises:
        UnavailableError: The store does not answer.
    """
    with available(), engine.begin() as connection:
        connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": END_WAITS_CHANNEL})


class Listener:
    """Waits for NOTIFY on its own connection.

    Args:
        engine: Of the database; the connection is outside its pool.
        channels: Identifiers, from the program, never from outside.
    """

    def __init__(self, engine: Engine, *channels: str) -> None:
        with _driver_errors():
            self._connection = connect_outside_pool(engine)
            with self._connection.cursor() as cursor:
                for channel in channels:
                    cursor.execute(f'LISTEN "{channel}"')

    def wait(self, timeout_s: float) -> frozenset[str]:
        """The channels that were notified; none when the time was over first.

        Raises:
            UnavailableError: The connection broke.
        """
        return frozenset(channel for channel, _ in self.wait_for_payloads(timeout_s))

    def wait_for_payloads(self, timeout_s: float) -> frozenset[tuple[str, str]]:
        """The same, each with what was said.

        Raises:
            UnavailableError: The connection broke.
        """
        deadline = time.monotonic() + timeout_s
        readable = select.poll()
        with _driver_errors():
            readable.register(self._connection.fileno(), select.POLLIN)
            while True:
                self._connection.poll()
                if self._connection.notifies:
                    notified = frozenset((said.channel, said.payload) for said in self._connection.notifies)
                    self._connection.notifies.clear()
                    return notified
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0:
                    return frozenset()
                readable.poll(remaining_s * 1000)

    def fileno(self) -> int:
        """For an event loop: readable when `wait(0)` is worth a call."""
        with _driver_errors():
            return int(self._connection.fileno())

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def connect_outside_pool(engine: Engine) -> Any:
    """A psycopg2 connection of its own in autocommit mode, to the engine's database."""
    arguments, options = engine.dialect.create_connect_args(engine.url)
    connection = psycopg2.connect(*arguments, **{**_CONNECT_OPTIONS, **options})
    connection.autocommit = True
    return connection


@contextmanager
def _driver_errors() -> Iterator[None]:
    try:
        yield
    except psycopg2.Error as error:
        raise store_unavailable() from error
