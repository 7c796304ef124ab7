"""Blocking work beside the event loop that must not be left half done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

Answer = TypeVar("Answer")


async def in_thread(work: Callable[..., Answer], *arguments: Any) -> Answer:
    """What `work` returns or raises; a caller who is cancelled leaves only when it has ended."""
    working = asyncio.get_running_loop().run_in_executor(None, partial(work, *arguments))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        raise
