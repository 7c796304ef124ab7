"""Which processes a run of ours has left, told by the state directory in their environment."""

from __future__ import annotations

from pathlib import Path


def processes_of(home: Path) -> list[str]:
    """Command lines of live processes whose state directory is `home` or below it."""
    mark = f"PRIMESPARK_HOME={home}".encode()
    return [
        _read(process / "cmdline").replace(b"\0", b" ").decode(errors="replace")
        for process in Path("/proc").iterdir()
        if process.name.isdigit() and mark in _read(process / "environ") and _is_alive(process)
    ]


def _is_alive(process: Path) -> bool:
    state = _read(process / "stat").rpartition(b")")[2].split()
    return bool(state) and state[0] != b"Z"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
