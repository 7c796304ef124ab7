"""The small Kafka-compatible broker of the noida-db wheel: for a look and a demo, not for data that matter."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from primespark.core.extras import how_to_add
from primespark.core.paths import private_directory
from primespark.embedded.probes import tcp_accepts
from primespark.embedded.supervisor import Service
from primespark.errors import MissingDependencyError


def broker_service(folder: Path, port: int) -> Service:
    """The broker as the supervisor runs it."""
    package = find_spec("noida_db")
    if package is None or package.origin is None:
        raise MissingDependencyError(
            "the embedded broker is not installed",
            remedy=f"{how_to_add('embedded')}; or set PRIMESPARK_CLOUD__KAFKA__BOOTSTRAP_SERVERS",
        )

    program = Path(package.origin).parent / "noida-db"
    if not os.access(program, os.X_OK):
        program.chmod(0o755)  # installers may drop the bit from package data

    async def is_ready() -> bool:
        return await tcp_accepts(port)

    return Service(
        name="broker",
        command=(
            str(program), "start", "--data-dir", str(private_directory(folder)),
            "--host", "127.0.0.1", "--only", "kafka", "--kafka-port", str(port),
        ),
        is_ready=is_ready,
    )  # fmt: skip
