"""An event loop whose time passes only when nothing is left to be done: hours in moments, and no pause is cut short."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, TypeVarTuple, Unpack

from edge_agent.database import Database, Job, JointJob

Result = TypeVar("Result")
Item = TypeVar("Item")
Arguments = TypeVarTuple("Arguments")
# A thread that has not answered by then never will.
_LONGEST_JOB_S = 60.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """Leaps to the next moment for which something is planned; stands still while a thread works for it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.threads_at_work = 0
        super().__init__(_Leaping(self))

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self.now_s

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """While a thread works."""
        self.threads_at_work += 1
        try:
            yield
        finally:
            self.threads_at_work -= 1

    def run_in_executor(
        self, executor: Any, func: Callable[[Unpack[Arguments]], Result], *args: *Arguments
    ) -> asyncio.Future[Result]:
        """As any loop's, standing still."""
        self.threads_at_work += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._thread_is_done)
        return future

    def _thread_is_done(self, _: asyncio.Future[Any]) -> None:
        self.threads_at_work -= 1


class _Leaping(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        if self._loop.threads_at_work:
            events = super().select(_LONGEST_JOB_S)
            assert events, "a thread does not answer"
            return events
        events = super().select(0)
        if not events:
            assert timeout is not None, "all wait for what will never be"
            self._loop.now_s += timeout
        return events


class VirtualDatabase(Database):
    """The device's file, for which virtual time stands still."""

    async def run(self, job: Job[Result]) -> Result:
        with _standing_still():
            return await super().run(job)

    async def run_joint(self, job: JointJob[Item, Result], item: Item) -> Result:
        with _standing_still():
            return await super().run_joint(job, item)


def _standing_still() -> contextlib.AbstractContextManager[None]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop.standing_still()
