"""The demo's two kinds of callers: of a device, with its local key, and of the cloud, with the admin key."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx2

from primespark.embedded.probes import PLAIN_HTTP
from primespark.errors import UnavailableError

_PARALLEL_REQUESTS = 4


class DeviceClient:
    """A person at one device.

    Args:
        device_id: Of the device.
        url: Of its API.
        key_file: Its local key.
    """

    def __init__(self, device_id: str, url: str, key_file: Path) -> None:
        self.device_id = device_id
        self._url = url
        self._key_file = key_file
        self._client: httpx2.AsyncClient | None = None

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def get(self, path: str) -> dict[str, Any]:
        """The JSON answer of a GET."""
        answer = await self._connected().get(path)
        answer.raise_for_status()
        body: dict[str, Any] = answer.json()
        return body

    async def read_digits(self, frames: list[bytes]) -> list[tuple[str, int]]:
        """Label and model version for each PNG frame, in order."""
        gate = asyncio.Semaphore(_PARALLEL_REQUESTS)

        async def read(frame: bytes) -> tuple[str, int]:
            async with gate:
                answer = await self._connected().post(
                    "/api/v1/inference",
                    params={"model": "digits"},
                    content=frame,
                    headers={"Content-Type": "image/png"},
                )
            answer.raise_for_status()
            body = answer.json()
            return str(body["predictions"][0]["label"]), int(body["model_version"])

        return list(await asyncio.gather(*(read(frame) for frame in frames)))

    async def digits_version(self) -> int:
        """Version of the digit reader in service; 0 without one."""
        answer = await self._connected().get("/api/v1/inference/stats")
        answer.raise_for_status()
        model = answer.json()["models"].get("digits")
        return int(model["version"]) if model else 0

    def _connected(self) -> httpx2.AsyncClient:
        if self._client is None:
            key = self._key_file.read_text(encoding="utf-8").strip()
            self._client = httpx2.AsyncClient(
                base_url=self._url, timeout=30, verify=PLAIN_HTTP, headers={"Authorization": f"Bearer {key}"}
            )
        return self._client


async def until(what: str, condition: Any, timeout_s: float, interval_s: float = 0.1) -> float:
    """Wait until the awaitable `condition()` answers true; seconds it took.

    Raises:
        UnavailableError: Not within `timeout_s`.
    """
    started = time.monotonic()
    last_fault = ""
    while time.monotonic() - started < timeout_s:
        try:
            if await condition():
                return time.monotonic() - started
        except (httpx2.HTTPError, OSError, KeyError) as error:
            last_fault = f" ({type(error).__name__}: {error})"
        await asyncio.sleep(interval_s)
    raise UnavailableError(
        f"{what}: not within {timeout_s:.0f} s{last_fault}", remedy="read the logs named above, then run it again"
    )
