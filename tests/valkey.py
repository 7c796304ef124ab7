"""A real Valkey for tests: the wheel's server on a unix socket."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.exceptions import ConnectionError as NotThere

from primespark.embedded.valkey import valkey_service
from tests.helpers import wait_until


@dataclass(slots=True)
class Valkey:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def running_valkey(socket: Path | None = None) -> Iterator[Valkey]:
    """A server, empty, bounded to 64 MiB; at this socket if one is given."""
    with tempfile.TemporaryDirectory(prefix="ps-") as folder:
        path = socket or Path(folder) / "valkey.sock"
        command = valkey_service(Path(folder) / "state", path).command
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: _answers(path))
            yield Valkey(f"unix://{path}", process)
        finally:
            process.kill()
            process.wait()


def _answers(path: Path) -> bool:
    try:
        with Redis(unix_socket_path=str(path)) as client:
            return bool(client.ping())
    except NotThere:
        return False
