"""Serving an application until SIGTERM or SIGINT, then exit status 0."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from primespark.core.web.protocol import MAX_CONNECTIONS, BoundedProtocol
from primespark.errors import ConfigurationError

SHUTDOWN_TIMEOUT_S = 5
KEEP_ALIVE_S = 30
_MAX_WAITING = 2048


class _Server(uvicorn.Server):
    """uvicorn raises the signal it caught again after a clean stop (0.54), which makes the exit status 143."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            # asyncio takes at once as many connections as it lets wait; many may wait, in the kernel.
            listener.listen(_MAX_WAITING)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _stop(self, number: int) -> None:
        self._on_stop()
        self.handle_exit(number, None)


def _nothing() -> None:
    return None


async def serve(
    app: ASGIApp,
    host: str,
    port: int,
    on_stop: Callable[[], None] = _nothing,
    max_connections: int = MAX_CONNECTIONS,
) -> None:
    """Serve `app` until a signal asks to stop.

    Args:
        app: The application.
        host: Address to bind.
        port: Port to bind.
        on_stop: Called when the signal arrives, before open requests are waited for; lets those that wait answer.
        max_connections: Most at once, as far as the files this process may have open allow.

    Raises:
        ConfigurationError: The address is in use or not ours.
    """
    listener = bind(host, port)
    _allow_files(3 * max_connections)
    await _Server(configure(app, max_connections), on_stop).serve(sockets=[listener])


def configure(app: ASGIApp, max_connections: int = MAX_CONNECTIONS) -> uvicorn.Config:
    """How uvicorn serves `app`."""

    class Protocol(BoundedProtocol):
        most_connections = max_connections

    return uvicorn.Config(
        app,
        http=Protocol,
        # As many are taken at once; five times as many are there before the first of them is told anything.
        backlog=max(Protocol.max_connections() // 16, 1),
        # Nothing here speaks it, and its protocol would take over the connection with its own bounds.
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
        lifespan="on",
    )


def _allow_files(wanted: int) -> None:
    """Let this process have as many files open as it wants and may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address.

    Raises:
        ConfigurationError: The address is in use or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY on connections whose socket names its protocol; without it each answer takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            remedy="stop what uses the port, or choose another in the settings",
            code="address_in_use",
        ) from None
    return listener
