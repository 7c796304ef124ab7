"""The end of a child process that may hang in a driver."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

_STOP_TIMEOUT_S = 2.0


async def kill_and_wait(process: asyncio.subprocess.Process) -> None:
    """Kill it with all that it started and wait until it is gone.

    A device that stops does not wait long for what the kernel cannot end.

    Args:
        process: Started with `start_new_session`.
    """
    # Its children have its pipes and its device, also where it has ended before them.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    current = asyncio.current_task()
    is_stopping = current is not None and current.cancelling() > 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_STOP_TIMEOUT_S if is_stopping else None):
            # Not `wait`: what is left in a full pipe would keep it open.
            await process.communicate()
