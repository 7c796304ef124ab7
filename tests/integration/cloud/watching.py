"""A client of an endless answer, since the test client's transport gives one only when it is over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Message


class Watching:
    """An answer under way."""

    def __init__(self) -> None:
        self.status = 0
        self.messages: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()

    async def next(self) -> tuple[str, Any] | None:
        """Name and value of the next event; None at the end."""
        async with asyncio.timeout(10):
            return await self.messages.get()

    async def until_ready(self) -> dict[str, Any]:
        """What there is, by key."""
        found: dict[str, Any] = {}
        while True:
            message = await self.next()
            assert message is not None
            if message[0] == "ready":
                return found
            found[message[1]["key"]] = message[1]["value"]

    async def take(self, message: Message) -> None:
        """As ASGI's send."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        for block in message.get("body", b"").decode().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "event" in lines:
                self.messages.put_nowait((lines["event"], json.loads(lines["data"])))
        if not message.get("more_body", False):
            self.messages.put_nowait(None)


@asynccontextmanager
async def watching(app: ASGIApp, path: str, headers: Mapping[str, str]) -> AsyncIterator[Watching]:
    """Ask for `path?watch=1`; the client is gone at the end."""
    watched, gone, is_asked = Watching(), asyncio.Event(), False

    async def receive() -> Message:
        nonlocal is_asked
        if is_asked:
            await gone.wait()
            return {"type": "http.disconnect"}
        is_asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"watch=1", "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    answering: asyncio.Task[None] = asyncio.create_task(app(scope, receive, watched.take))  # type: ignore[arg-type]
    try:
        yield watched
    finally:
        gone.set()
        async with asyncio.timeout(10):
            await answering
