"""Ports to listen on."""

from __future__ import annotations

import socket

from primespark.errors import ConfigurationError

_LOOPBACK = "127.0.0.1"
_HIGHEST = 65535


def choose_port(preferred: int, taken: set[int], host: str = _LOOPBACK) -> int:
    """`preferred` if it is free on `host` and not in `taken`, else any free port; the choice is added to `taken`."""
    is_good = 0 < preferred <= _HIGHEST and preferred not in taken and _is_free(host, preferred)
    port = preferred if is_good else _any_free(host)
    while port in taken:
        port = _any_free(host)
    taken.add(port)
    return port


def url_on(host: str, port: int) -> str:
    """Where a service that binds `host` is reached from here."""
    reachable = {"0.0.0.0": _LOOPBACK, "::": "::1", "": _LOOPBACK}.get(host, host)  # noqa: S104 (read, not bound)
    return f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{port}"


def _is_free(host: str, port: int) -> bool:
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _any_free(host: str) -> int:
    with socket.socket(_family(host)) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {host}: {error.strerror}", remedy="use an address of this machine, or 127.0.0.1"
            ) from None
        port: int = probe.getsockname()[1]
        return port


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
