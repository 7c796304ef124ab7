"""The API of two devices on a small disk that fills up, in a mount namespace of its own: FOLDER.

One keeps some of the disk free, the other nothing. Run under `unshare --map-root-user --mount`. Prints what was seen,
as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx2

from primespark.inference.models import ServedModel
from primespark.inference.samples import sample_images
from tests.integration.crash.small_disk import RESERVE_BYTES, SmallDisk
from tests.integration.edge_agent.test_api import asked

UPLOAD_BYTES = 300_000
_RECORDS = "/api/v1/records/configurations"
# A record of this size is at most some pages of the file's log.
_NOTE = "n" * 20_000


class Client:
    """Somebody at the device, who remembers what he was answered for."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client
        self.written: dict[str, int] = {}
        self.uploaded: list[str] = []

    async def put(self, key: str, number: int) -> list[Any]:
        """Write a document; status and code."""
        answer = await self._client.put(f"{_RECORDS}/{key}", json={"number": number, "note": _NOTE})
        if answer.is_success:
            self.written[key] = number
        return _told(answer)

    async def upload(self, *, tells_size: bool = True) -> list[Any]:
        """Hand a file over; status and code."""
        data = os.urandom(UPLOAD_BYTES)

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(data), 10_000):
                yield data[start : start + 10_000]

        answer = await self._client.post("/api/v1/uploads", content=data if tells_size else pieces())
        if answer.is_success:
            self.uploaded.append(answer.json()["id"])
        return _told(answer)

    async def infer(self) -> list[Any]:
        """Ask for predictions; status and code."""
        image = dict(sample_images())["coffee.png"]
        return _told(await self._client.post("/api/v1/inference", content=image, headers={"Content-Type": "image/png"}))

    async def keeps_its_word(self, folder: Path) -> bool:
        """Whether what is shown, and what lies there, is what was answered for and nothing else."""
        items = (await self._client.get(_RECORDS)).json()["items"]
        shown = {item["key"]: item["value"]["number"] for item in items if "number" in item["value"]}
        uploads = (await self._client.get("/api/v1/uploads")).json()["items"]
        files = sorted(file.name for file in (folder / "uploads").iterdir())
        return shown == self.written and sorted(item["id"] for item in uploads) == files == sorted(self.uploaded)


def _told(answer: httpx2.Response) -> list[Any]:
    return [answer.status_code, "" if answer.is_success else answer.json()["code"]]


async def seen(disk: SmallDisk, reserve_bytes: int) -> dict[str, Any]:
    """Before, when the disk is full, and when there is room again."""
    os.environ["PRIMESPARK_EDGE__OFFLINE__MINIMUM_FREE_DISK_BYTES"] = str(reserve_bytes)
    folder, none = disk.folder / f"reserve-{reserve_bytes}", Future[ServedModel | None]()
    none.set_result(None)
    async with asked(folder, none, capture=False) as http:
        client = Client(http)
        found: dict[str, Any] = {"before": [await client.put("a", 1), await client.upload(), await client.infer()]}
        disk.fill(max(reserve_bytes // 2, UPLOAD_BYTES // 2))
        found["uploads"] = [await client.upload(), await client.upload(tells_size=False)]
        found["put"] = await client.put("a", 2)
        disk.fill()
        found["puts"] = [await client.put(f"b{number}", number) for number in range(20)]
        found["change"], found["inference"] = await client.put("a", 3), await client.infer()
        found["kept"] = await client.keeps_its_word(folder)
        disk.empty()
        found["again"] = [
            await client.put("a", 4),
            await client.put("c", 1),
            await client.upload(),
            await client.infer(),
        ]
        found["kept_again"] = await client.keeps_its_word(folder)
    connection = sqlite3.connect(folder / "queue.db")
    (found["verdict"],) = connection.execute("PRAGMA integrity_check").fetchone()
    return found


async def main(disk: SmallDisk) -> dict[str, Any]:
    """What each device's caller saw."""
    return {"with_reserve": await seen(disk, RESERVE_BYTES), "without": await seen(disk, 0)}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(SmallDisk(Path(sys.argv[1]))))))
