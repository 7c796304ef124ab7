"""Connections, migrations and notifications on a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from sqlalchemy import Engine, create_engine, inspect, text

from primespark.errors import ConfigurationError, UnavailableError
from primespark.store import database
from primespark.store.schema import metadata


def test_the_migrations_make_what_the_tables_say(store_engine: Engine) -> None:
    with store_engine.connect() as connection:
        command.check(database.alembic_config(connection))
        inspector = inspect(connection)
        found = {
            f"{schema}.{name}"
            for schema in ("sync", "metrics", "control")
            for name in inspector.get_table_names(schema)
        }
    assert found == set(metadata.tables)


def test_services_that_start_at_once_migrate_once(empty_postgres_url: str) -> None:
    engines = [database.connect(empty_postgres_url, pool_size=1) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(database.migrate, engines))
    with engines[0].connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM control.server")).scalar_one() == 1
        assert connection.execute(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")).scalar_one() == 0
    for engine in engines:
        engine.dispose()


def test_a_statement_that_takes_too_long_is_ended(empty_postgres_url: str) -> None:
    engine = database.connect(empty_postgres_url, pool_size=1, statement_timeout_s=0.05)
    database.migrate(engine)
    with pytest.raises(UnavailableError), database.available(), engine.begin() as connection:
        connection.execute(text("SELECT pg_sleep(60)"))
    engine.dispose()


def test_no_free_connection_is_an_unavailable_store(postgres_url: str) -> None:
    engine = create_engine(postgres_url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    with engine.connect(), pytest.raises(UnavailableError), database.available():
        engine.connect()
    engine.dispose()


def test_a_listener_hears_what_is_committed(store_engine: Engine) -> None:
    listener = database.Listener(store_engine, "sync_log")
    try:
        assert not listener.wait(0.01)
        with store_engine.begin() as connection:
            connection.execute(text("SELECT pg_notify('sync_log', '')"))
            assert not listener.wait(0.05), "heard before the commit"
        started = time.monotonic()
        assert listener.wait(10)
        assert time.monotonic() - started < 2
        assert not listener.wait(0.01), "one notification was heard twice"
    finally:
        listener.close()


def test_a_listener_wakes_while_it_waits(store_engine: Engine) -> None:
    listener = database.Listener(store_engine, "sync_log", "other")
    heard: list[frozenset[str]] = []
    waiter = threading.Thread(target=lambda: heard.append(listener.wait(30)))
    waiter.start()
    with store_engine.begin() as connection:
        connection.execute(text("NOTIFY other"))
    waiter.join(10)
    listener.close()
    assert heard == [{"other"}]


def test_a_listener_says_that_its_connection_broke(store_engine: Engine) -> None:
    listener = database.Listener(store_engine, "sync_log")
    with store_engine.begin() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE query LIKE 'LISTEN%' AND datname = current_database()"
            )
        )
    with pytest.raises(UnavailableError) as caught:
        listener.wait(10)
    assert caught.value.code == "store_unavailable"
    listener.close()


def test_a_store_that_does_not_answer_is_unavailable() -> None:
    engine = database.connect("postgresql://nobody:nothing@127.0.0.1:1/none")
    with pytest.raises(UnavailableError), database.available(), engine.connect():
        pass
    with pytest.raises(UnavailableError):
        database.Listener(engine, "sync_log")


@pytest.mark.parametrize("url", ["", "no url", "mysql://localhost/x", "postgresql+asyncpg"])
def test_an_address_of_something_else_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        database.connect(url)


def test_a_schema_of_a_newer_version_is_told(empty_postgres_url: str) -> None:
    engine = database.connect(empty_postgres_url, pool_size=1)
    database.migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999_newer'"))
    with pytest.raises(ConfigurationError, match="9999_newer") as caught:
        database.migrate(engine)
    assert caught.value.code == "store_version"
    engine.dispose()
