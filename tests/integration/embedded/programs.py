"""Small real programs for a supervisor to run, and looking at processes."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from primespark.embedded.probes import tcp_accepts
from primespark.embedded.supervisor import Service

# Listens once nobody holds the lock of `gate`; at SIGTERM writes its name to `journal`, or ignores it; may leave a
# grandchild.
_PROGRAM = """
import fcntl, os, signal, socket, subprocess, sys
name, port, gate, journal, ignores, grandchild = sys.argv[1:]
if grandchild:
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    open(grandchild, "w").write(str(child.pid))
def end(*_):
    with open(journal, "a") as file:
        file.write(name + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if ignores else end)
waiting = os.open(gate, os.O_RDONLY)
fcntl.flock(waiting, fcntl.LOCK_SH)
os.close(waiting)
server = socket.create_server(("127.0.0.1", int(port)))
while True:
    server.accept()[0].close()
"""


class Gate:
    """Holds programs back before they listen, while it is closed; open at first.

    Args:
        path: A file of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._file = path.open()

    def close(self) -> None:
        """Let nobody pass."""
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def open(self) -> None:
        """Let all pass."""
        fcntl.flock(self._file, fcntl.LOCK_UN)


def listener(
    folder: Path,
    name: str,
    port: int,
    *,
    needs: tuple[str, ...] = (),
    gate: Gate | None = None,
    ignores_sigterm: bool = False,
    grandchild: Path | None = None,
    start_timeout_s: float = 20,
) -> Service:
    """A program that listens on `port`."""

    async def is_ready() -> bool:
        return await tcp_accepts(port)

    arguments = (
        name, str(port), str(gate.path if gate else folder), str(folder / "journal"), "yes" if ignores_sigterm else "",
        str(grandchild or ""),
    )  # fmt: skip
    command = (sys.executable, "-S", "-c", _PROGRAM, *arguments)
    return Service(name=name, command=command, is_ready=is_ready, needs=needs, start_timeout_s=start_timeout_s)


def are_gone(process_ids: Iterable[int]) -> bool:
    """None of them runs; one that nobody has buried yet does not count."""
    for process_id in process_ids:
        try:
            if psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            continue
    return True
