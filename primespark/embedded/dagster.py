"""Dagster as three processes that share one code server: code server, daemon, webserver.

`dagster dev` is for people at a desk; here each process is the supervisor's own child, and starts 1.6 s sooner.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path

import httpx2

from primespark.core.paths import private_directory
from primespark.embedded.probes import PLAIN_HTTP, http_answers
from primespark.embedded.supervisor import Service

LOCATION = "primespark"
MODULE = "primespark_assets.definitions"
CODE_SERVER = "primespark_assets.code_server"
_DAEMON_HEALTH = "{ instance { daemonHealth { allDaemonStatuses { daemonType healthy } } } }"
_SENSOR_DAEMON = "SENSOR"


class EmbeddedDagster:
    """Dagster with its home under `folder`.

    Args:
        folder: Becomes DAGSTER_HOME.
        socket_path: Of the code server; short, see `EmbeddedPostgres`.
        host: The webserver binds it.
        port: Of the webserver.
        environment: What the code location needs to know.
    """

    def __init__(self, folder: Path, socket_path: Path, host: str, port: int, environment: dict[str, str]) -> None:
        self._folder = folder
        self._socket_path = socket_path
        self._host = host
        self._port = port
        self._environment = {**environment, "DAGSTER_HOME": str(folder)}
        self._workspace = folder / "workspace.yaml"
        self._stamp = folder / "schema.complete"

    @property
    def url(self) -> str:
        """Of the webserver."""
        return f"http://{self._host}:{self._port}"

    def services(self, needs: tuple[str, ...], end_ticks: Callable[[], Awaitable[None]]) -> list[Service]:
        """Code server, daemon and webserver.

        Args:
            needs: Services the daemon's sensors need.
            end_ticks: Ends the ticks that wait; the daemon waits for them before it ends.
        """
        python = sys.executable
        workspace = ("-w", str(self._workspace))
        return [
            Service(
                name="dagster-code",
                command=(
                    python, "-m", CODE_SERVER, "api", "grpc", "--socket", str(self._socket_path),
                    "--module-name", MODULE, "--location-name", LOCATION, "--log-level", "warning",
                ),
                is_ready=self._code_server_is_ready,
                environment=self._environment,
                prepare=self._prepare,
            ),
            Service(
                name="dagster-daemon",
                command=(python, "-m", "dagster._daemon", "run", *workspace),
                is_ready=self._daemon_is_ready,
                needs=("dagster-code", *needs),
                environment=self._environment,
                after_stop_signal=end_ticks,
            ),
            Service(
                name="dagster-web",
                command=(
                    python, "-m", "dagster_webserver", "--host", self._host, "--port", str(self._port), *workspace,
                    "--log-level", "warning",
                ),
                is_ready=self._webserver_is_ready,
                needs=("dagster-code",),
                environment=self._environment,
            ),
        ]  # fmt: skip

    async def _prepare(self) -> None:
        self._socket_path.unlink(missing_ok=True)
        # The code server makes the schema and stamps it; one that was ended before is made again from the start.
        if self._folder.exists() and not self._stamp.exists():
            shutil.rmtree(self._folder)
        private_directory(self._folder)
        (self._folder / "dagster.yaml").write_text(_instance_configuration(), encoding="utf-8")
        self._workspace.write_text(
            f"load_from:\n  - grpc_server:\n      socket: {self._socket_path}\n      location_name: {LOCATION}\n",
            encoding="utf-8",
        )

    async def _code_server_is_ready(self) -> bool:
        try:
            _, writer = await asyncio.open_unix_connection(str(self._socket_path))
        except OSError:
            return False
        writer.close()
        return True

    async def _webserver_is_ready(self) -> bool:
        return await http_answers(f"{self.url}/server_info")

    async def _daemon_is_ready(self) -> bool:
        try:
            async with httpx2.AsyncClient(timeout=2, verify=PLAIN_HTTP) as client:
                answer = await client.post(f"{self.url}/graphql", json={"query": _DAEMON_HEALTH})
                statuses = answer.json()["data"]["instance"]["daemonHealth"]["allDaemonStatuses"]
        except (httpx2.HTTPError, OSError, ValueError, KeyError, TypeError):
            return False
        return any(status["daemonType"] == _SENSOR_DAEMON and status["healthy"] for status in statuses)


def _instance_configuration() -> str:
    shipped = files("primespark").joinpath("_data", "config", "dagster.yaml")
    if shipped.is_file():
        return shipped.read_text(encoding="utf-8")
    return Path("dagster.yaml").read_text(encoding="utf-8")
