"""Word to the service manager that started this process (sd_notify): ready, alive, stopping; silence without one."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

from primespark.core.logging import get_logger
from primespark.errors import PrimeSparkError

log = get_logger(__name__)


def tell(state: str) -> None:
    """Send `state`, such as `READY=1`, to the socket that `NOTIFY_SOCKET` names."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # A name in the abstract namespace is written with @ for its leading zero byte.
    name = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            sender.sendto(state.encode(), name)
    except OSError as error:
        log.warning("service_manager_not_told", state=state, cause=str(error))


def is_supervised() -> bool:
    """Whether something starts this process again when it ends: systemd by our unit, or `primespark up`."""
    return bool(os.environ.get("NOTIFY_SOCKET")) or os.environ.get("PRIMESPARK_SUPERVISED") == "1"


async def keep_alive(check: Callable[[], Awaitable[object]]) -> None:
    """Tell that all is well, at half the interval the manager asks for, for as long as `check` comes back.

    A check that hangs, as an event loop that does, ends the telling, and the manager starts the process again. One that
    raises an error of ours came back. Returns at once where no watchdog is asked for.
    """
    interval_s = _interval_s()
    if interval_s is None:
        return
    while True:
        try:
            await check()
        except PrimeSparkError as error:
            log.warning("watchdog_check_failed", code=error.code, cause=error.message)
        tell("WATCHDOG=1")
        await asyncio.sleep(interval_s)


def _interval_s() -> float | None:
    """Half of the seconds within which the manager wants to hear."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdigit() and int(microseconds) > 0 else None
