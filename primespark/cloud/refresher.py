"""Keeps the rollups of the newest hours up to date, so that a question about today reads few samples."""

from __future__ import annotations

import asyncio

from primespark.cloud.state import Cloud
from primespark.core.clock import utc_now
from primespark.core.logging import get_logger
from primespark.errors import TransientError
from primespark.store import rollups

_INTERVAL_S = 30.0

log = get_logger(__name__)


async def refresh_newest(cloud: Cloud, interval_s: float = _INTERVAL_S) -> None:
    """Refresh, again and again; several services may do so at once."""
    while True:
        try:
            await cloud.transact(lambda connection: rollups.refresh_newest(connection, utc_now()))
        except TransientError as error:
            log.warning("refresh_failed", cause=error.message)
        await asyncio.sleep(interval_s)
