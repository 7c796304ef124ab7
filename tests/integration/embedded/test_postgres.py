"""The embedded PostgreSQL: what kills, power cuts and restarts leave behind, and who may log in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from primespark.embedded.ports import choose_port
from primespark.embedded.postgres import EmbeddedPostgres
from primespark.embedded.supervisor import State, Supervisor
from primespark.errors import ConfigurationError, UnavailableError
from tests.helpers import wait_until
from tests.integration.embedded.programs import are_gone
from tests.postgres import running


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A short path, as sockets need it."""
    with tempfile.TemporaryDirectory(prefix="ps-") as folder:
        yield Path(folder)


@pytest.fixture
def server(tmp_path: Path, sockets: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres(tmp_path / "postgres", sockets, choose_port(0, set()))


def lock_of(folder: Path) -> Path:
    return folder / "data" / "postmaster.pid"


def is_a_zombie(process_id: int) -> bool:
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def execute(server: EmbeddedPostgres, statement: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(server.url.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


async def test_committed_rows_survive_kill_9_and_the_supervisor_starts_it_again(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    readies: list[str] = []
    supervisor = Supervisor(tmp_path / "logs", lambda _, state: readies.append(state) if state == "ready" else None)
    await supervisor.start([server.service()])
    try:
        await asyncio.to_thread(execute, server, "CREATE TABLE kept (number int)")
        for number in range(3):
            await asyncio.to_thread(execute, server, f"INSERT INTO kept VALUES ({number})")
            os.kill(supervisor.process_ids()["postgres"], signal.SIGKILL)
            async with asyncio.timeout(20):
                while len(readies) < number + 2:  # noqa: ASYNC110 (the state of a process, which sets no event)
                    await asyncio.sleep(0.02)
        rows = await asyncio.to_thread(execute, server, "SELECT number FROM kept ORDER BY number")
        assert rows == [(0,), (1,), (2,)]
    finally:
        running_ids = list(supervisor.process_ids().values())
        await supervisor.stop()
    wait_until(lambda: are_gone(running_ids), 2)
    assert supervisor.states() == {"postgres": State.STOPPED}
    assert not lock_of(tmp_path / "postgres").exists(), "it did not shut down in order"


@pytest.mark.parametrize("is_zombie", [True, False], ids=["zombie", "foreign"])
def test_what_was_committed_is_there_after_kill_9_whoever_has_its_process_id(tmp_path: Path, is_zombie: bool) -> None:
    folder = tmp_path / "postgres"
    with running(folder) as (server, process):
        execute(server, "CREATE TABLE kept (number int)")
        with closing(psycopg2.connect(server.url.replace("+psycopg2", ""))) as session:
            session.cursor().execute("INSERT INTO kept VALUES (1); COMMIT; BEGIN; INSERT INTO kept VALUES (2)")
            # Until it is waited for, it is a zombie, and named by its locks: that of the data, and that of the socket.
            socket_folder = Path(lock_of(folder).read_text().splitlines()[4])
            locks = [lock_of(folder), socket_folder / f".s.PGSQL.{server.port}.lock"]
            process.kill()
            wait_until(lambda: is_a_zombie(process.pid))
            if not is_zombie:
                process.wait()
                for lock in locks:
                    _, *rest = lock.read_text().splitlines(keepends=True)
                    lock.write_text(f"{os.getpid()}\n" + "".join(rest))
            assert asyncio.run(_answer_of_a_new_start(server, tmp_path / "logs")) == [(1,)]


async def _answer_of_a_new_start(server: EmbeddedPostgres, logs: Path) -> list[tuple[object, ...]]:
    supervisor = Supervisor(logs)
    await supervisor.start([server.service()])
    try:
        return await asyncio.to_thread(execute, server, "SELECT number FROM kept")
    finally:
        await supervisor.stop()


def test_a_server_that_really_runs_is_left_alone(tmp_path: Path, sockets: Path) -> None:
    folder = tmp_path / "postgres"
    with running(folder) as (server, process):
        second = EmbeddedPostgres(folder, sockets, choose_port(0, set()))
        with pytest.raises(ConfigurationError, match="already runs") as refused:
            second.initialise()
        assert refused.value.code == "store_in_use"
        assert process.poll() is None
        assert execute(server, "SELECT 1") == [(1,)]


_INITIALISE = """
import sys
from pathlib import Path
from primespark.embedded.postgres import EmbeddedPostgres
EmbeddedPostgres(Path(sys.argv[1]), Path(sys.argv[1]), 1).initialise()
"""


def test_an_initialisation_that_was_killed_half_way_is_done_again(tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    process = subprocess.Popen([sys.executable, "-c", _INITIALISE, str(folder)], start_new_session=True)
    wait_until(lambda: (folder / "data.staging" / "PG_VERSION").exists(), interval_s=0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "data").exists()
    with running(folder) as (server, _process):
        assert execute(server, "SELECT 1") == [(1,)]
    assert not (folder / "data.staging").exists()


def test_only_the_password_lets_in_and_only_the_owner_can_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    with running(folder) as (server, _process):
        password = (folder / "password").read_text()
        assert execute(server, "SHOW listen_addresses") == [("127.0.0.1",)]
        for wrong in ("", "wrong", password[:-1]):
            url = server.url.replace("+psycopg2", "").replace(password, wrong)
            with pytest.raises(psycopg2.OperationalError, match="password"):
                psycopg2.connect(url)
        assert (folder / "password").stat().st_mode & 0o777 == 0o600
        assert folder.stat().st_mode & 0o777 == 0o700
        assert password not in " ".join(server.service().command)


def test_data_whose_password_was_lost_are_not_touched(tmp_path: Path, server: EmbeddedPostgres) -> None:
    server.initialise()
    (tmp_path / "postgres" / "password").unlink()
    with pytest.raises(ConfigurationError) as refused:
        server.initialise()
    assert refused.value.code == "store_password"
    assert not (tmp_path / "postgres" / "password").exists()


def test_data_of_another_major_version_are_not_touched(tmp_path: Path, server: EmbeddedPostgres) -> None:
    server.initialise()
    (tmp_path / "postgres" / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(ConfigurationError, match="made by PostgreSQL 17") as refused:
        server.initialise()
    assert refused.value.code == "store_version"


async def test_a_port_in_use_is_named(tmp_path: Path, sockets: Path) -> None:
    # One that listened would let each look at the server wait for an answer that never comes.
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        server = EmbeddedPostgres(tmp_path / "postgres", sockets, holder.getsockname()[1])
        supervisor = Supervisor(tmp_path / "logs")
        with pytest.raises(UnavailableError, match="postgres did not start"):
            await supervisor.start([server.service()])
        await supervisor.stop()
    assert "Address already in use" in (tmp_path / "logs" / "postgres.log").read_text()


_SUPERVISED = """
import asyncio, sys
from pathlib import Path
from primespark.embedded.postgres import EmbeddedPostgres
from primespark.embedded.supervisor import Supervisor
async def main(folder, sockets, port):
    supervisor = Supervisor(folder / "logs")
    await supervisor.start([EmbeddedPostgres(folder / "postgres", sockets, port).service()])
    print(supervisor.process_ids()["postgres"], flush=True)
    await asyncio.Event().wait()
asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_the_server_shuts_down_in_order_when_its_supervisor_is_killed(tmp_path: Path, sockets: Path) -> None:
    command = [sys.executable, "-c", _SUPERVISED, str(tmp_path), str(sockets), str(choose_port(0, set()))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    server = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    wait_until(lambda: are_gone([server]), 5)
    assert not lock_of(tmp_path / "postgres").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_of_two_that_start_at_once_one_serves_and_the_other_follows_it(tmp_path: Path, sockets: Path) -> None:
    ports = [choose_port(0, set()) for _ in range(2)]
    said = {port: tmp_path / f"said-{port}" for port in ports}

    def serving() -> dict[int, int]:
        lines = {port: said[port].read_text().splitlines() for port in ports}
        return {port: int(line) for port in ports for line in lines[port] if line.isdecimal()}

    with contextlib.ExitStack() as stack:
        started = {}
        for port in ports:
            output = stack.enter_context(said[port].open("w"))
            command = [sys.executable, "-c", _SUPERVISED, str(tmp_path), str(sockets), str(port)]
            started[port] = subprocess.Popen(command, stdout=output)
            stack.callback(started[port].wait)
            stack.callback(started[port].kill)
        wait_until(serving, 60)
        ((first, server),) = serving().items()
        assert not are_gone([server])
        # Its supervisor's death asks it to end; the other has waited for that.
        started[first].kill()
        wait_until(lambda: len(serving()) == 2, 60)
        assert are_gone([server])
    wait_until(lambda: are_gone(list(serving().values())), 10)
    assert not lock_of(tmp_path / "postgres").exists()
