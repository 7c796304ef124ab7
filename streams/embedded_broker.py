"""What the small embedded broker needs and a real Kafka does not: pauses between empty fetches.

It answers a fetch at once whatever `max_wait` says, so an idle consumer would send thousands of requests a second.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiokafka.consumer.fetcher import Fetcher

_FAST_ANSWER_S = 0.05
_PAUSE_S = 0.05


def pace_fetches() -> None:
    """Let every aiokafka consumer of this process pause after a fetch that brought nothing; idempotent."""
    original = Fetcher._proc_fetch_request
    if getattr(original, "paced", False):
        return

    async def paced(self: Fetcher, assignment: Any, node_id: int, request: Any) -> bool:
        started = time.monotonic()
        has_data = bool(await original(self, assignment, node_id, request))
        if not has_data and time.monotonic() - started < _FAST_ANSWER_S:
            try:
                await asyncio.sleep(_PAUSE_S)
            except asyncio.CancelledError:
                # aiokafka ends a cancelled fetch this way too; an escaping cancellation would end its whole consumer.
                return False
        return has_data

    paced.paced = True  # type: ignore[attr-defined]
    Fetcher._proc_fetch_request = paced
