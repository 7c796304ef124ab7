"""The agent of this machine's device, for a program beside it."""

from __future__ import annotations

from pathlib import Path

import httpx2

from primespark.core.settings import EdgeSettings

_TIMEOUT_S = 5.0


async def ask_to_synchronise(edge: EdgeSettings, folder: Path) -> bool:
    """Have the agent look into its queue and exchange now; whether it runs and has a cloud.

    Args:
        edge: Where it listens.
        folder: Its state.
    """
    host = f"[{edge.host}]" if ":" in edge.host else edge.host
    try:
        key = (folder / "local.key").read_text()
        async with httpx2.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
            url = f"http://{host}:{edge.port}/api/v1/sync/run"
            return (await client.post(url, headers={"Authorization": f"Bearer {key}"})).is_success
    except (OSError, httpx2.HTTPError):
        return False
