"""The end of a child process that may hang in a driver."""

from __future__ import annotations

import asyncio
import contextlib

_STOP_TIMEOUT_S = 2.0


async def kill_and_wait(process: asyncio.subprocess.Process) -> None:
    """Kill it and wait until it is gone; a device that stops does not wait long for what the kernel cannot end."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    current = asyncio.current_task()
    is_stopping = current is not None and current.cancelling() > 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_STOP_TIMEOUT_S if is_stopping else None):
            # Not `wait`: what is left in a full pipe would keep it open.
            await process.communicate()
