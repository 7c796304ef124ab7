"""The cloud's real process, which kills itself at a point of taking a batch."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from primespark.cloud import main as cloud_main
from primespark.cloud.lanes import Lane
from primespark.cloud.state import Cloud
from primespark.store import gate as store_gate
from tests.integration.crash.doom import Doom


class CloudPoint(StrEnum):
    """Where it dies."""

    BEGUN = "the transaction is begun, nothing is written"
    WRITTEN = "the batch is written, not committed"
    COMMITTED = "the batch is committed, not answered"
    HALF_ANSWERED = "half of the answer is sent"


def surround(point: CloudPoint, times: int, notes: Path) -> None:
    """Put the points around the program's functions."""
    doom = Doom(point, times, notes)
    apply_batch, transact, build_app = store_gate.apply_batch, Cloud.transact, cloud_main.build_app

    def applied(*args: Any) -> Any:
        doom.pass_by(CloudPoint.BEGUN)
        answer = apply_batch(*args)
        doom.pass_by(CloudPoint.WRITTEN)
        return answer

    async def transacted(self: Cloud, work: Any, deadline_s: float | None = None, lane: Lane | None = None) -> Any:
        answer = await transact(self, work, deadline_s, lane)
        if lane is Lane.PUSHES:
            doom.pass_by(CloudPoint.COMMITTED)
        return answer

    def built(cloud: Cloud) -> FastAPI:
        app = build_app(cloud)
        app.add_middleware(InHalves, doom=doom)
        return app

    store_gate.apply_batch = applied  # type: ignore[assignment]
    Cloud.transact = transacted  # type: ignore[method-assign]
    cloud_main.build_app = built


class InHalves:
    """Sends answers to pushes in halves, and may die between them."""

    def __init__(self, app: ASGIApp, doom: Doom) -> None:
        self._app, self._doom = app, doom

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""

        async def in_halves(message: Message) -> None:
            body = message.get("body", b"")
            if message["type"] != "http.response.body" or not body:
                await send(message)
                return
            middle = len(body) // 2
            await send({**message, "body": body[:middle], "more_body": True})
            self._doom.pass_by(CloudPoint.HALF_ANSWERED)
            await send({**message, "body": body[middle:]})

        await self._app(scope, receive, in_halves if scope.get("path") == "/sync/v1/push" else send)
