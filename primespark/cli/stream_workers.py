"""`primespark streams --workers N`: several stream workers on this machine, until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from primespark.cli.services import run_room
from primespark.cli.up import stop_event
from primespark.core.logging import configure_logging, get_logger
from primespark.core.settings import Settings
from primespark.embedded.ports import choose_port, url_on
from primespark.embedded.probes import http_answers
from primespark.embedded.supervisor import Service, State, Supervisor
from primespark.errors import ConfigurationError, UnavailableError

_HIGHEST_PORT = 65535

log = get_logger(__name__)


def run_workers(settings: Settings, count: int, config_file: Path | None) -> None:
    """Keep `count` workers running, each a process that is started again when it dies; returns after a signal.

    Raises:
        ConfigurationError: What no worker could work with, or the broker cannot do with several.
        UnavailableError: The broker does not answer at start, a port is taken, or a worker was never ready.
    """
    if settings.cloud.kafka.embedded:
        raise ConfigurationError(
            "the bundled broker has room for one worker: it never forgets one, and waits for it when it has ended",
            remedy="use Apache Kafka for several workers, or leave out --workers",
        )
    # What it says stands between the lines of the workers, in the same form.
    configure_logging(settings.global_, "streams")
    run_room("streams-check", "streams", settings)
    services = [_service(settings, index, port, config_file) for index, port in enumerate(_ports(settings, count))]
    asyncio.run(_run(services))


async def _run(services: list[Service]) -> None:
    stopping = asyncio.create_task(stop_event().wait())
    supervisor = Supervisor(None, _tell)
    ready = asyncio.create_task(supervisor.start(services))
    try:
        await asyncio.wait({ready, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            ready.result()
            await stopping
    finally:
        ready.cancel()
        stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(ready, return_exceptions=True)
        await supervisor.stop()


def _tell(name: str, state: State) -> None:
    log.info("worker_state", worker=name, state=state.value)


def _service(settings: Settings, index: int, port: int, config_file: Path | None) -> Service:
    """A worker; what it needs of the settings beside its name and port it reads as this process did."""
    streams = settings.cloud.streams
    worker_id = f"{streams.worker_id}-{index}"
    page = f"{url_on(streams.host, port)}/readyz"

    async def is_ready() -> bool:
        return await http_answers(page)

    environment = {"PRIMESPARK_CLOUD__STREAMS__WORKER_ID": worker_id, "PRIMESPARK_CLOUD__STREAMS__PORT": str(port)}
    if config_file is not None:
        environment["PRIMESPARK_CONFIG"] = str(config_file.absolute())
    command = (sys.executable, "-m", "primespark.cli.main", "streams")
    return Service(worker_id, command, is_ready, environment=environment)


def _ports(settings: Settings, count: int) -> range:
    """Of the workers' health pages: the configured one and those after it.

    Raises:
        UnavailableError: One is in use.
    """
    streams = settings.cloud.streams
    ports = range(streams.port, streams.port + count)
    remedy = f"set cloud.streams.port: {count} workers listen on it and the ports after it"
    if not 0 < ports[0] <= ports[-1] <= _HIGHEST_PORT:
        raise ConfigurationError(f"{count} workers cannot listen from port {streams.port} on", remedy=remedy)
    for port in ports:
        if choose_port(port, set(), streams.host) != port:
            raise UnavailableError(f"cannot listen on {streams.host}:{port}: it is in use", remedy=remedy)
    return ports
