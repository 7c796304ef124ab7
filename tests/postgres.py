"""A real PostgreSQL for tests: one server for the session, a database of its own for each test.

A pytest plugin (see `tests/conftest.py`): name a fixture as an argument, import nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from primespark.embedded.ports import choose_port
from primespark.embedded.postgres import EmbeddedPostgres
from primespark.embedded.supervisor import Service
from primespark.store import database
from primespark.store.edition import Edition
from tests import timescaledb

_START_TIMEOUT_S = 60.0
_numbers = itertools.count(1)


class PostgresServer:
    """The server, and databases on it that are copies of one migrated template."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._template: str | None = None
        self._admin = create_engine(
            self._url.set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool
        )

    def create_empty(self) -> str:
        """The URL of a new database without any schema."""
        return self._create("template1")

    def create_store(self) -> str:
        """The URL of a new database with the newest schema."""
        if self._template is None:
            url = self.create_empty()
            engine = database.connect(url, pool_size=1)
            database.migrate(engine)
            engine.dispose()
            self._template = make_url(url).database
        return self._create(str(self._template))

    def drop(self, url: str) -> None:
        """Remove a database with whoever is connected to it."""
        self._execute(f'DROP DATABASE IF EXISTS "{make_url(url).database}" WITH (FORCE)')

    def _create(self, template: str) -> str:
        name = f"test_{next(_numbers)}"
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self._url.set(database=name).render_as_string(hide_password=False)

    def _execute(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(text(statement))


async def _is_ready(service: Service) -> bool:
    return await service.is_ready()


@contextlib.contextmanager
def running(folder: Path, *options: str) -> Iterator[tuple[EmbeddedPostgres, subprocess.Popen[bytes]]]:
    """A server with its data under `folder`, stopped at the end if it still runs.

    Args:
        folder: Holds its data, password and log.
        options: Further options of the `postgres` program.
    """
    sockets = Path(tempfile.mkdtemp(prefix="ps-pg-"))
    server = EmbeddedPostgres(folder, sockets, choose_port(0, set()))
    server.initialise()
    service = server.service()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([*service.command, *options], stdout=log, stderr=log, cwd="/")
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not asyncio.run(_is_ready(service)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)
        yield server, process
    finally:
        if process.poll() is None:
            process.send_signal(service.stop_signal)
        process.wait(30)
        shutil.rmtree(sockets, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """The session's server: the embedded one, or with `--timescaledb` a TimescaleDB."""
    # The machine's crash is no test here, and making a database waits for the disk many times.
    options = ("-c", "fsync=off")
    folder = tmp_path_factory.mktemp("postgres") / "server"
    programs: Path | None = pytestconfig.getoption("--timescaledb")
    if programs is not None:
        with timescaledb.running(programs, folder, *options) as url:
            yield PostgresServer(url)
    else:
        with running(folder, *options) as (server, _process):
            yield PostgresServer(server.url)


@pytest.fixture(scope="session")
def timescaledb_edition(pytestconfig: pytest.Config) -> Edition:
    """The edition of TimescaleDB that stores of tests have."""
    return Edition.NONE if pytestconfig.getoption("--timescaledb") is None else Edition.APACHE


@pytest.fixture
def empty_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a database without any schema."""
    url = postgres_server.create_empty()
    yield url
    postgres_server.drop(url)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a store of the test's own, with the newest schema."""
    url = postgres_server.create_store()
    yield url
    postgres_server.drop(url)


@pytest.fixture
def store_engine(postgres_url: str) -> Iterator[Engine]:
    """An engine on a store of the test's own."""
    engine = database.connect(postgres_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def law_engine(postgres_server: PostgresServer) -> Iterator[Engine]:
    """An engine on a store that all tests of a module share: each example of a law empties what it uses."""
    url = postgres_server.create_store()
    engine = database.connect(url)
    yield engine
    engine.dispose()
    postgres_server.drop(url)
