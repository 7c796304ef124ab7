"""The whole system on one machine: which services, in which order, with which addresses."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from primespark.core.paths import private_directory, write_private
from primespark.core.settings import Settings
from primespark.embedded.broker import broker_service
from primespark.embedded.dagster import EmbeddedDagster
from primespark.embedded.ports import choose_port, url_on
from primespark.embedded.postgres import EmbeddedPostgres
from primespark.embedded.probes import http_answers
from primespark.embedded.supervisor import Service, State, Supervisor
from primespark.embedded.valkey import VALKEY_SOCKET, valkey_service
from primespark.errors import ConfigurationError, UnavailableError

PARTS = ("postgres", "valkey", "broker", "cloud", "streams", "dagster", "edge")
_POSTGRES_PORT = 55432
_BROKER_PORT = 59092
# In the folder `run`, while it serves.
_BROKER_FILE = "broker.address"
_END_WAITS_TIMEOUT_S = 2
_LOOPBACK = "127.0.0.1"
# The kernel takes 107 bytes; PostgreSQL's and gRPC's names come to 30.
_LONGEST_SOCKETS_FOLDER = 75
_TOKEN_LIFETIME = timedelta(hours=1)
_CPU_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """One device to run here.

    Attributes:
        device_id: Of the device.
        cloud_url: Where it reaches the cloud; the cloud itself when None.
        environment: Further settings of it.
    """

    device_id: str
    cloud_url: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


DEFAULT_AGENTS = (AgentSpec("edge-1"), AgentSpec("edge-2"))


class Stack:
    """All services of `settings` under one supervisor.

    Args:
        settings: Ports are preferences; an address of an external system keeps its embedded part away.
        home: State directory; one stack at a time.
        claim: Of the state directory, from a caller that needed it before; this stack ends it.
        agents: Devices to run.
        only: Parts to start, all when empty.
        environment: Added for every child.
        on_change: Called with service and state.
    """

    def __init__(
        self,
        settings: Settings,
        home: Path,
        *,
        agents: tuple[AgentSpec, ...] = DEFAULT_AGENTS,
        only: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        on_change: Callable[[str, State], None] | None = None,
        claim: TextIO | None = None,
    ) -> None:
        unknown = set(only) - set(PARTS)
        if unknown:
            raise ConfigurationError(
                f"no such part: {', '.join(sorted(unknown))}", remedy=f"there are {', '.join(PARTS)}"
            )
        self._settings = settings
        self._home = home
        self._agents = agents
        self._wanted = _wanted_parts(settings, only)
        self._claim = claim or claim_home(home)
        self._sockets = _sockets_folder(home)
        self.replaced_ports: list[str] = []
        self._ports = self._choose_ports()
        self._environment = {**_CPU_THREADS, "PRIMESPARK_HOME": str(home), **(environment or {})}
        self.supervisor = Supervisor(home / "logs", on_change)
        self.endpoints = self._list_endpoints()

    @property
    def store_url(self) -> str:
        """Of the store that is used."""
        configured = self._settings.cloud.store.url
        return configured.get_secret_value() if configured else self._postgres().url

    def key_file(self, device_id: str) -> Path:
        """Where a device keeps the key for people at it."""
        return self._home / "edge" / device_id / "local.key"

    @property
    def admin_key_file(self) -> Path:
        """Where the cloud keeps its first key."""
        return self._home / "cloud" / "admin.key"

    async def start(self) -> None:
        """Start everything; return when all is ready."""
        self.launch()
        await self.supervisor.wait_ready()

    def launch(self) -> None:
        """Begin to start everything."""
        self.supervisor.launch(self._services())

    async def stop(self) -> None:
        """Stop everything and free the state directory."""
        await self.supervisor.stop()
        for name in ("store.url", _BROKER_FILE):
            (self._home / "run" / name).unlink(missing_ok=True)
        shutil.rmtree(self._sockets, ignore_errors=True)
        self._claim.close()

    def _services(self) -> list[Service]:
        services: list[Service] = []
        if "postgres" in self._wanted:
            services.append(dataclasses.replace(self._postgres().service(), after_ready=self._prepare_store))
        if "valkey" in self._wanted:
            services.append(valkey_service(self._home / "valkey", self._sockets / VALKEY_SOCKET))
        if "broker" in self._wanted:
            broker = broker_service(self._home / "broker", self._ports["broker"])
            services.append(dataclasses.replace(broker, after_ready=self._tell_broker))
        if "cloud" in self._wanted:
            services.append(self._python_service("cloud", ("postgres", "broker", "valkey")))
        if "streams" in self._wanted:
            services.append(self._python_service("streams", ("postgres", "broker")))
        if "dagster" in self._wanted:
            services += self._dagster().services(("postgres",), self._end_waits)
        if "edge" in self._wanted:
            services += [self._agent_service(agent) for agent in self._agents]
        return services

    def _postgres(self) -> EmbeddedPostgres:
        return EmbeddedPostgres(self._home / "postgres", self._sockets, self._ports["postgres"])

    def _dagster(self) -> EmbeddedDagster:
        settings = self._settings.orchestration
        return EmbeddedDagster(
            self._home / "dagster", self._sockets / "code.sock", settings.host, self._ports["dagster"],
            self._service_environment(),
        )  # fmt: skip

    async def _tell_broker(self) -> None:
        """Once the broker serves: leave its address for commands."""
        write_private(self._home / "run" / _BROKER_FILE, f"{_LOOPBACK}:{self._ports['broker']}".encode())

    async def _prepare_store(self) -> None:
        """Once PostgreSQL serves: leave its address for commands, make the schema, give each new device a token."""
        write_private(self._home / "run" / "store.url", self.store_url.encode())
        await asyncio.to_thread(self._migrate_and_invite)

    def _migrate_and_invite(self) -> None:
        from primespark.store import database, devices

        engine = database.connect(self.store_url, pool_size=1)
        database.migrate(engine)
        for agent in self._agents if "edge" in self._wanted else ():
            folder = private_directory(self._home / "edge" / agent.device_id)
            if (folder / "device.key").exists() or (folder / "enrolment.token").exists():
                continue
            with engine.begin() as connection:
                token = devices.create_token(connection, 1, _TOKEN_LIFETIME)
            write_private(folder / "enrolment.token", token.encode())
        engine.dispose()

    async def _end_waits(self) -> None:
        with contextlib.suppress(UnavailableError, TimeoutError):
            async with asyncio.timeout(_END_WAITS_TIMEOUT_S):
                await asyncio.to_thread(self._notify_waits)

    def _notify_waits(self) -> None:
        from primespark.store import database

        engine = database.connect(self.store_url, pool_size=1)
        try:
            database.end_waits(engine)
        finally:
            engine.dispose()

    def _python_service(self, command: str, needs: tuple[str, ...]) -> Service:
        async def is_ready() -> bool:
            return await http_answers(f"{self.endpoints[command]}/readyz")

        return Service(
            name=command,
            command=(sys.executable, "-m", "primespark.cli.main", command),
            is_ready=is_ready,
            needs=tuple(need for need in needs if need in self._wanted),
            environment=self._service_environment(),
        )

    def _agent_service(self, agent: AgentSpec) -> Service:
        port = self._ports[agent.device_id]

        async def is_ready() -> bool:
            return await http_answers(f"{self.endpoints[agent.device_id]}/readyz")

        environment = {
            **self._environment,
            "PRIMESPARK_EDGE__DEVICE_ID": agent.device_id,
            "PRIMESPARK_EDGE__PORT": str(port),
            "PRIMESPARK_SUPERVISED": "1",
            **agent.environment,
        }
        cloud_url = agent.cloud_url or self._settings.network.cloud_url or self.endpoints.get("cloud")
        if cloud_url:
            environment["PRIMESPARK_NETWORK__CLOUD_URL"] = cloud_url
        if "valkey" in self._wanted and self._settings.edge.cache.memory.url is None:
            environment.setdefault("PRIMESPARK_EDGE__CACHE__MEMORY__URL", f"unix://{self._sockets / VALKEY_SOCKET}")
        return Service(
            name=agent.device_id,
            command=(sys.executable, "-m", "primespark.cli.main", "edge"),
            is_ready=is_ready,
            environment=environment,
        )

    def _service_environment(self) -> dict[str, str]:
        environment = {
            **self._environment,
            "PRIMESPARK_CLOUD__PORT": str(self._ports["cloud"]),
            "PRIMESPARK_CLOUD__STREAMS__PORT": str(self._ports["streams"]),
            "PRIMESPARK_ORCHESTRATION__PORT": str(self._ports["dagster"]),
        }
        if self._settings.cloud.store.url is None:
            environment["PRIMESPARK_CLOUD__STORE__URL_FILE"] = str(self._home / "run" / "store.url")
        if "valkey" in self._wanted:
            environment["PRIMESPARK_CLOUD__CACHE__URL"] = f"unix://{self._sockets / VALKEY_SOCKET}"
        if "broker" in self._wanted:
            environment["PRIMESPARK_CLOUD__KAFKA__BOOTSTRAP_SERVERS"] = f"127.0.0.1:{self._ports['broker']}"
            environment["PRIMESPARK_CLOUD__KAFKA__EMBEDDED"] = "true"
        return environment

    def _choose_ports(self) -> dict[str, int]:
        taken: set[int] = set()
        settings = self._settings
        preferred = {
            "cloud": (settings.cloud.host, settings.cloud.port),
            "dagster": (settings.orchestration.host, settings.orchestration.port),
            "streams": (settings.cloud.streams.host, settings.cloud.streams.port),
            "postgres": (_LOOPBACK, _POSTGRES_PORT),
            "broker": (_LOOPBACK, _BROKER_PORT),
        }
        for index, agent in enumerate(self._agents):
            preferred[agent.device_id] = (settings.edge.host, settings.edge.port + index)
        ports = {}
        for name, (host, port) in preferred.items():
            ports[name] = choose_port(port, taken, host)
            part = "edge" if name not in PARTS else name
            if port and ports[name] != port and part in self._wanted:
                self.replaced_ports.append(f"port {port} is taken: {name} listens on {ports[name]}")
        return ports

    def _list_endpoints(self) -> dict[str, str]:
        endpoints: dict[str, str] = {}
        settings = self._settings
        hosts = {
            "cloud": settings.cloud.host, "streams": settings.cloud.streams.host, "dagster": settings.orchestration.host
        }  # fmt: skip
        for part, host in hosts.items():
            if part in self._wanted:
                endpoints[part] = url_on(host, self._ports[part])
        if "edge" in self._wanted:
            for agent in self._agents:
                endpoints[agent.device_id] = url_on(settings.edge.host, self._ports[agent.device_id])
        return endpoints


def broker_address(home: Path) -> str | None:
    """Where the broker of a running `up` listens; None if there is none, or it is not there yet."""
    if running_on(home) is None:
        return None
    try:
        return (home / "run" / _BROKER_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _sockets_folder(home: Path) -> Path:
    """A folder for sockets: under the state directory, unless its path is too long for their names."""
    folder = home / "run" / "sockets"
    if len(str(folder)) <= _LONGEST_SOCKETS_FOLDER:
        private_directory(folder)
        for socket in folder.iterdir():
            # Through its own, a cache that outlived its supervisor is found and ended.
            if socket.name != VALKEY_SOCKET:
                socket.unlink(missing_ok=True)
        return folder
    runtime = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="ps-", dir=runtime if Path(runtime).is_dir() else None))


def _wanted_parts(settings: Settings, only: tuple[str, ...]) -> set[str]:
    wanted = set(only or PARTS)
    if settings.cloud.store.url is not None:
        wanted.discard("postgres")
    if settings.cloud.cache.url is not None or not settings.features.cache:
        wanted.discard("valkey")
    if settings.cloud.kafka.bootstrap_servers is not None or not settings.features.streams:
        wanted.discard("broker")
    if not settings.features.streams:
        wanted.discard("streams")
    if not settings.features.orchestration:
        wanted.discard("dagster")
    return wanted


def claim_home(home: Path) -> TextIO:
    """Be the only one to use a state directory, until the answer is closed or the process ends.

    Raises:
        UnavailableError: Somebody else uses it.
    """
    private_directory(home / "run")
    file = (home / "run" / "up.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise UnavailableError(
            f"already running on {home} (process {holder})", remedy="stop it first, or set PRIMESPARK_HOME to another"
        ) from None
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file


def running_on(home: Path) -> int | None:
    """The process that runs a stack on a state directory, if one does."""
    try:
        file = (home / "run" / "up.lock").open()
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return int(file.read().strip() or 0)
    return None
