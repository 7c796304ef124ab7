"""Real processes that benchmarks measure against."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from primespark.embedded.ports import choose_port
from primespark.embedded.postgres import EmbeddedPostgres
from primespark.embedded.supervisor import Service
from primespark.embedded.valkey import valkey_service

_START_S = 60.0


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The URL of an embedded PostgreSQL below `folder`."""
    # A socket's path has a limit, so it lies beside and not below.
    sockets = Path(tempfile.mkdtemp(prefix="ps-pg-"))
    server = EmbeddedPostgres(folder / "postgres", sockets, choose_port(0, set()))
    server.initialise()
    service = server.service()
    with process(service.command, {}, folder / "postgres.log", cwd="/") as server_process:
        try:
            wait(lambda: asyncio.run(_is_ready(service)), folder / "postgres.log")
            yield server.url
        finally:
            server_process.send_signal(service.stop_signal)
            server_process.wait(30)
            shutil.rmtree(sockets, ignore_errors=True)


@contextmanager
def valkey(folder: Path) -> Iterator[str]:
    """The URL of a Valkey below `folder`, bounded as the embedded one is."""
    with tempfile.TemporaryDirectory(prefix="ps-") as sockets:
        path = Path(sockets) / "valkey.sock"
        service = valkey_service(folder / "valkey", path)
        with process(service.command, {}, folder / "valkey.log"):
            wait(lambda: asyncio.run(_is_ready(service)), folder / "valkey.log")
            yield f"unix://{path}"


@contextmanager
def process(
    command: tuple[str, ...], environment: dict[str, str], log: Path, cwd: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with this; what it says is in `log`."""
    with log.open("ab") as file:
        started = subprocess.Popen(command, env={**os.environ, **environment}, stdout=file, stderr=file, cwd=cwd)
    try:
        yield started
    finally:
        if started.poll() is None:
            started.kill()
        started.wait(30)


async def _is_ready(service: Service) -> bool:
    return await service.is_ready()


def wait(condition: Callable[[], bool], log: Path, timeout_s: float = _START_S, interval_s: float = 0.1) -> None:
    """Return as soon as `condition()` is true; fail with what a process said."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not ready after {timeout_s:.0f} s: {log.read_text(errors='replace')[-1000:]}")
        time.sleep(interval_s)
