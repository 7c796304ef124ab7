"""Ports on loopback."""

from __future__ import annotations

import socket

_HOST = "127.0.0.1"


def choose_port(preferred: int, taken: set[int]) -> int:
    """`preferred` if it is free and not in `taken`, else any free port; the choice is added to `taken`."""
    port = preferred if preferred and preferred not in taken and _is_free(preferred) else _any_free()
    while port in taken:
        port = _any_free()
    taken.add(port)
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _any_free() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
