"""What is asked of the file's thread, and how those who wait are told: an event loop once for all of its waiters.

Waking a loop is a system call, and costs more than what most jobs do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

# An answer, or a fault.
Outcome = tuple[Any, Exception | None]


@dataclass(frozen=True, slots=True)
class Awaited:
    """Somebody who waits in an event loop."""

    loop: asyncio.AbstractEventLoop
    waiter: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class Request:
    """A job, or an item for a job that takes those of others too."""

    joint: Callable[..., list[Any]] | None
    item: Any
    reply: Future[Any] | Awaited

    def begin(self) -> bool:
        """Whether anybody still waits for it."""
        if isinstance(self.reply, Awaited):
            return not self.reply.waiter.cancelled()
        return self.reply.set_running_or_notify_cancel()


def tell(
    requests: Sequence[Request],
    outcomes: Sequence[Outcome],
    watchers: Sequence[tuple[asyncio.AbstractEventLoop, Callable[[], None]]],
) -> None:
    """Give each request its outcome, and call the watchers in their loops."""
    waiters: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Outcome]]] = {}
    callbacks: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
    for loop, watcher in watchers:
        waiters.setdefault(loop, [])
        callbacks.setdefault(loop, []).append(watcher)
    for request, outcome in zip(requests, outcomes, strict=True):
        if isinstance(request.reply, Awaited):
            waiters.setdefault(request.reply.loop, []).append((request.reply.waiter, outcome))
        elif outcome[1] is None:
            request.reply.set_result(outcome[0])
        else:
            request.reply.set_exception(outcome[1])
    for loop, told in waiters.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(_tell_in_loop, told, callbacks.get(loop, []))


def _tell_in_loop(told: list[tuple[asyncio.Future[Any], Outcome]], callbacks: list[Callable[[], None]]) -> None:
    for waiter, (answer, fault) in told:
        if waiter.done():
            continue
        if fault is None:
            waiter.set_result(answer)
        else:
            waiter.set_exception(fault)
    for callback in callbacks:
        callback()
