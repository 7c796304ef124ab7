"""Work for a few threads: by priority, each with a deadline, bounded; what is late or unwanted costs nothing."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from edge_agent.priority import RANKS, Priority
from primespark.errors import DeadlineExceededError, OverloadedError, UnavailableError

Answer = TypeVar("Answer")


@dataclass(order=True, slots=True)
class _Entry:
    rank: int
    number: int
    job: Callable[[], Any] = field(compare=False)
    future: asyncio.Future[Any] = field(compare=False)
    loop: asyncio.AbstractEventLoop = field(compare=False)
    is_wanted: bool = field(default=True, compare=False)


class WorkQueue:
    """Runs jobs on threads of its own.

    Args:
        name: Of the threads.
        workers: How many.
        max_waiting: Most jobs that wait or run.
    """

    def __init__(self, name: str, workers: int, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._numbers = itertools.count()
        self._heap: list[_Entry] = []
        self._lock = threading.Lock()
        # The thread that ran last is woken first: its stack and memory are still in a core's cache.
        self._idle: list[threading.Condition] = []
        self._is_open = True
        self._unfinished = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Jobs that wait or run."""
        return self._unfinished

    @property
    def waiting(self) -> int:
        """Jobs that do not run yet."""
        return len(self._heap)

    async def run(
        self, job: Callable[[], Answer], priority: Priority = Priority.NORMAL, deadline: float | None = None
    ) -> Answer:
        """What `job` returns or raises.

        A caller who is cancelled, or whose deadline passes, leaves; a job that does not run yet then never does.

        Args:
            job: Called on a thread.
            priority: Against other jobs that wait.
            deadline: In `time.monotonic()` seconds.

        Raises:
            DeadlineExceededError: No answer by then.
            OverloadedError: Code `inference_busy`: too many wait.
            UnavailableError: Code `stopping`.
        """
        loop = asyncio.get_running_loop()
        entry = _Entry(RANKS[priority], next(self._numbers), job, loop.create_future(), loop)
        if deadline is not None and deadline <= time.monotonic():
            raise _late()
        with self._lock:
            if not self._is_open:
                raise UnavailableError("the device is stopping", remedy="ask again when it is up", code="stopping")
            if self._unfinished >= self._max_waiting:
                raise OverloadedError("too many inferences wait", remedy="ask again later", code="inference_busy")
            self._unfinished += 1
            heapq.heappush(self._heap, entry)
            if self._idle:
                self._idle.pop().notify()
        try:
            answer: Answer = await by_deadline(entry.future, deadline)
            return answer
        finally:
            self._forget(entry)

    def close(self) -> None:
        """Let what runs finish, tell what waits that it will not."""
        with self._lock:
            self._is_open = False
            waiting, self._heap = self._heap, []
            self._unfinished -= len(waiting)
            while self._idle:
                self._idle.pop().notify()
        for entry in waiting:
            _settle(entry, None, UnavailableError("the device is stopping", code="stopping"))
        for thread in self._threads:
            thread.join()

    def _forget(self, entry: _Entry) -> None:
        """Take what nobody waits for any more out of the queue."""
        entry.is_wanted = False
        if entry.future.done() and not entry.future.cancelled():
            return
        with self._lock:
            kept = [other for other in self._heap if other is not entry]
            self._unfinished -= len(self._heap) - len(kept)
            heapq.heapify(kept)
            self._heap = kept

    def _work(self) -> None:
        work_came = threading.Condition(self._lock)
        while True:
            with self._lock:
                while self._is_open and not self._heap:
                    self._idle.append(work_came)
                    work_came.wait()
                if not self._heap:
                    return
                entry = heapq.heappop(self._heap)
            answer, fault = None, None
            try:
                if entry.is_wanted:
                    answer = entry.job()
            # Whatever a job raises belongs to its caller.
            except Exception as error:  # noqa: BLE001
                fault = error
            with self._lock:
                self._unfinished -= 1
            _settle(entry, answer, fault)


async def by_deadline(work: Awaitable[Answer], deadline: float | None) -> Answer:
    """What `work` returns or raises.

    Args:
        work: Cancelled at the deadline.
        deadline: In `time.monotonic()` seconds.

    Raises:
        DeadlineExceededError: No answer by then.
    """
    if deadline is None:
        return await work
    scope = asyncio.timeout(deadline - time.monotonic())
    try:
        async with scope:
            return await work
    except TimeoutError:
        if not scope.expired():
            raise  # the work's own
        raise _late() from None


def _settle(entry: _Entry, answer: Any, fault: BaseException | None) -> None:
    def settle() -> None:
        if entry.future.done():
            return
        if fault is not None:
            entry.future.set_exception(fault)
        else:
            entry.future.set_result(answer)

    with contextlib.suppress(RuntimeError):  # the loop is closed
        entry.loop.call_soon_threadsafe(settle)


def _late() -> DeadlineExceededError:
    return DeadlineExceededError("no answer by the deadline", remedy="allow more time, or ask for less")
