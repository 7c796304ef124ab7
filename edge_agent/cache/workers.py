"""Threads for calls that may hang for ever: bounded in number and in waiting work, and never in the way of an exit."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from primespark.errors import OverloadedError, UnavailableError

Answer = TypeVar("Answer")

MAX_WAITING = 256


class Workers:
    """A few daemon threads; an executor's threads would be joined at exit, and one hung on a dead mount never returns.

    Args:
        name: Of the threads.
        count: Their number; started with the first call.
    """

    def __init__(self, name: str, count: int) -> None:
        self._name = name
        self._count = count
        self._inbox: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    async def run(self, call: Callable[[], Answer]) -> Answer:
        """What `call` answers or raises; one that has not begun when the caller gives up never does.

        Raises:
            OverloadedError: Code `cache_busy`: too many wait.
            UnavailableError: Closed.
        """
        if self._is_closed:
            raise UnavailableError(f"{self._name} is closed", remedy="open it", code="cache_closed")
        if self._inbox.qsize() >= MAX_WAITING:
            raise OverloadedError(f"too much waits for {self._name}", code="cache_busy")
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True)
                for number in range(self._count)
            ]
            for thread in self._threads:
                thread.start()
        future: Future[Answer] = Future()
        self._inbox.put((call, future))
        return await asyncio.wrap_future(future)

    async def close(self, timeout_s: float) -> bool:
        """Take nothing more; whether all threads ended in time."""
        self._is_closed = True
        for _ in self._threads:
            self._inbox.put(None)
        return await asyncio.to_thread(self._join, timeout_s)

    def _join(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (task := self._inbox.get()) is not None:
            call, future = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                answer = call()
            except BaseException as error:  # noqa: BLE001 (handed to whoever waits; a thread that ended here would leave all others waiting)
                future.set_exception(error)
            else:
                future.set_result(answer)
