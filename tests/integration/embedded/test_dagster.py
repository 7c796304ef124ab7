"""Dagster's home as `up` makes it."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import dagster as dg
import pytest
from alembic.script import ScriptDirectory

from primespark.embedded.dagster import EmbeddedDagster
from primespark.embedded.supervisor import Service, Supervisor
from primespark_assets.code_server import SCHEMA_STAMP, keep_migrations


@pytest.fixture
def sockets() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ps-") as folder:
        yield Path(folder)


def assert_whole_schema(home: Path) -> None:
    made = sorted(home.rglob("*.db"), key=lambda path: path.name)
    assert [path.name for path in made] == ["index.db", "runs.db", "schedules.db"]
    for path in made:
        with sqlite3.connect(path) as database:
            assert len(database.execute("SELECT version_num FROM alembic_version").fetchall()) == 1, path


async def nothing() -> None:
    pass


def code_server(home: Path, sockets: Path) -> list[Service]:
    dagster = EmbeddedDagster(home, sockets / "code.sock", "127.0.0.1", 0, {})
    return dagster.services((), nothing)[:1]


async def test_a_home_with_half_a_schema_is_made_again(tmp_path: Path, sockets: Path) -> None:
    home = tmp_path / "dagster"
    half = home / "history" / "runs.db"
    half.parent.mkdir(parents=True)
    with sqlite3.connect(half) as database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.executemany("INSERT INTO alembic_version VALUES (?)", [("one",), ("two",)])
    supervisor = Supervisor(tmp_path / "logs")
    await supervisor.start(code_server(home, sockets))
    await supervisor.stop()
    assert (home / SCHEMA_STAMP).exists()
    assert_whole_schema(home)


async def test_a_home_with_its_schema_is_kept(tmp_path: Path, sockets: Path) -> None:
    home = tmp_path / "dagster"
    for _ in range(2):
        supervisor = Supervisor(tmp_path / "logs")
        await supervisor.start(code_server(home, sockets))
        await supervisor.stop()
        (home / "history" / "mine").touch()
    assert (home / "history" / "mine").exists()


def test_dagsters_migrations_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is put in its place goes with the test.
    monkeypatch.setattr(ScriptDirectory, "from_config", ScriptDirectory.from_config)
    keep_migrations()
    executed: list[str] = []
    execute = SourceFileLoader.exec_module

    def note(loader: SourceFileLoader, module: ModuleType) -> None:
        executed.append(loader.path)
        execute(loader, module)

    monkeypatch.setattr(SourceFileLoader, "exec_module", note)
    read = []
    for _ in range(2):
        with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
            assert (instance.get_runs_count(), instance.all_instigator_state()) == (0, [])
        read.append([path for path in executed if "alembic/versions" in path])
        executed.clear()
    assert len(read[0]) > 10
    assert read[1] == []
    assert_whole_schema(tmp_path)
