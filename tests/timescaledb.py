"""A real TimescaleDB for tests, from the programs that `tools/fetch_timescaledb` unpacks."""

from __future__ import annotations

import contextlib
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2

from primespark.core.paths import private_directory, write_private
from primespark.embedded.ports import choose_port
from primespark.embedded.postgres import as_unprivileged
from tests.helpers import wait_until

_PROGRAMS = "usr/lib/postgresql/17/bin"
_USER = "primespark"


@contextlib.contextmanager
def running(programs: Path, folder: Path, *options: str) -> Iterator[str]:
    """The URL of a server with its data under `folder`, stopped at the end.

    Args:
        programs: What `tools/fetch_timescaledb` filled.
        folder: Holds its data, password and log.
        options: Further options of the `postgres` program.
    """
    found = programs.absolute() / _PROGRAMS
    private_directory(folder)
    password = secrets.token_urlsafe(24)
    write_private(folder / "password", password.encode())
    log = folder / "log"
    port = choose_port(0, set())
    with log.open("wb") as output, tempfile.TemporaryDirectory(prefix="ps-pg-") as sockets:
        initdb = [
            *as_unprivileged(), str(found / "initdb"), "--pgdata", str(folder / "data"), "--username", _USER,
            "--pwfile", str(folder / "password"), "--auth", "scram-sha-256", "--encoding", "UTF8",
            "--locale", "C.UTF-8",
        ]  # fmt: skip
        subprocess.run(initdb, stdout=output, stderr=output, check=True, cwd="/")
        postgres = [
            *as_unprivileged(), str(found / "postgres"), "-D", str(folder / "data"), "-p", str(port), "-k", sockets,
            "-c", "listen_addresses=127.0.0.1", "-c", "jit=off", "-c", "shared_preload_libraries=timescaledb",
            # Its own jobs, none of which is ours, keep a connection to each database, which then is no template.
            "-c", "timescaledb.max_background_workers=0", *options,
        ]  # fmt: skip
        process = subprocess.Popen(postgres, stdout=output, stderr=output, cwd="/")
        try:
            wait_until(lambda: process.poll() is not None or _accepts(port, password), timeout_s=60)
            assert process.poll() is None, f"TimescaleDB did not start: {log.read_text()[-2000:]}"
            yield f"postgresql+psycopg2://{_USER}:{password}@127.0.0.1:{port}/postgres"
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(30)


def _accepts(port: int, password: str) -> bool:
    try:
        psycopg2.connect(
            dbname="postgres", host="127.0.0.1", port=port, user=_USER, password=password, connect_timeout=2
        ).close()
    except psycopg2.OperationalError:
        return False
    return True
