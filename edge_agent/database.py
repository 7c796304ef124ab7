"""One SQLite file behind one thread: what waits together is committed together, and acknowledged once on disk."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import groupby
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from edge_agent.database_file import is_damage, open_or_replace, primary_code, set_aside
from edge_agent.database_replies import Awaited, Outcome, Request, tell
from primespark.core.logging import get_logger
from primespark.errors import IntegrityError, OverloadedError, PrimeSparkError, UnavailableError

Result = TypeVar("Result")
Item = TypeVar("Item")
Job = Callable[[sqlite3.Connection], Result]
JointJob = Callable[[sqlite3.Connection, list[Item]], list[Result]]

MAX_GROUP = 256
MAX_WAITING_JOBS = 8192
_CLOSE_TIMEOUT_S = 5.0

log = get_logger(__name__)


class Database:
    """The device's state.

    Args:
        path: The file, made when missing; one that is damaged is set aside and a new one begun.
        log_bytes: Space on disk the log has from the start.

    Raises:
        ConfigurationError: The file cannot be made or opened.
    """

    def __init__(self, path: Path, log_bytes: int = 0) -> None:
        self.path = path
        self.failure: str | None = None
        self._log_bytes = log_bytes
        self._inbox: SimpleQueue[Request | None] = SimpleQueue()
        self._watchers: list[Callable[[sqlite3.Connection], None]] = []
        self._loop_watchers: list[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = []
        self._is_closing = False
        self._connection = open_or_replace(path, log_bytes)
        self._seen_changes = 0
        self._thread = threading.Thread(target=self._work, name="database", daemon=True)
        self._thread.start()

    def submit(self, job: Job[Result]) -> Future[Result]:
        """Run `job` in a transaction; the future has its answer once that is on disk, or its error and no effect.

        Raises:
            OverloadedError: Too many jobs wait.
            UnavailableError: Closed.
        """
        return self._submit(None, job)

    def submit_joint(self, job: JointJob[Item, Result], item: Item) -> Future[Result]:
        """`submit` for a job that takes the items of all who wait for it at once, and answers each in order.

        Where it raises, each item has a run of its own, for it to have its own fault, where it has one.
        """
        return self._submit(job, item)

    async def run(self, job: Job[Result]) -> Result:
        """`submit`, awaited; who leaves before the job has begun takes it along."""
        answer: Result = await self._run(None, job)
        return answer

    async def run_joint(self, job: JointJob[Item, Result], item: Item) -> Result:
        """`submit_joint`, awaited; who leaves before the job has begun takes his item along."""
        answer: Result = await self._run(job, item)
        return answer

    async def answers(self) -> None:
        """Come back once the thread of the file has done what was asked before.

        Raises:
            PrimeSparkError: As any job's.
        """
        await self.run(lambda _: None)

    def watch(self, watcher: Callable[[sqlite3.Connection], None]) -> None:
        """Call `watcher` on the database's thread: now, and after each commit that wrote, before who waits is told."""

        def add(connection: sqlite3.Connection) -> None:
            self._watchers.append(watcher)
            watcher(connection)

        self.submit(add).result()

    def watch_from_loop(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` in the running event loop after each commit that wrote."""
        self._loop_watchers.append((asyncio.get_running_loop(), watcher))

    def close(self) -> None:
        """Finish what waits, then close the file."""
        if not self._is_closing:
            self._is_closing = True
            self._inbox.put(None)
            self._thread.join(_CLOSE_TIMEOUT_S)

    def _submit(self, joint: JointJob[Any, Any] | None, item: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._put(Request(joint, item, future))
        return future

    async def _run(self, joint: JointJob[Any, Any] | None, item: Any) -> Any:
        loop = asyncio.get_running_loop()
        reply = Awaited(loop, loop.create_future())
        self._put(Request(joint, item, reply))
        return await reply.waiter

    def _put(self, request: Request) -> None:
        if self._is_closing:
            raise UnavailableError("the device is stopping", remedy="try again when it is up", code="stopping")
        if self._inbox.qsize() >= MAX_WAITING_JOBS:
            raise OverloadedError("the disk does not keep up", remedy="send less at once", code="queue_full")
        self._inbox.put(request)

    def _work(self) -> None:
        is_open = True
        while is_open:
            group = [self._inbox.get()]
            with contextlib.suppress(Empty):
                while len(group) < MAX_GROUP:
                    group.append(self._inbox.get_nowait())
            is_open = None not in group
            self._commit([request for request in group if request is not None and request.begin()])
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()

    def _commit(self, group: list[Request]) -> None:
        has_written = False
        try:
            outcomes = list(self._outcomes(group))
            has_written = self._connection.total_changes != self._seen_changes
            if has_written:
                self._seen_changes = self._connection.total_changes
                for watcher in self._watchers:
                    watcher(self._connection)
            self.failure = None
        except sqlite3.Error as error:
            failure = self._recover(error)
            self.failure = failure.message
            outcomes = [(None, failure)] * len(group)
        tell(group, outcomes, self._loop_watchers if has_written else [])

    def _outcomes(self, group: list[Request]) -> Iterator[Outcome]:
        """What each request came to, once that is on disk; a fault of the file itself ends the whole group."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        for joint, requests in groupby(group, key=lambda request: request.joint):
            if joint is None:
                yield from (self._attempt(request.item, is_alone=len(group) == 1) for request in requests)
            else:
                yield from self._attempt_joint(joint, [request.item for request in requests], len(group) == 1)
        connection.execute("COMMIT")

    def _attempt_joint(self, joint: JointJob[Any, Any], items: list[Any], is_alone: bool) -> Iterator[Outcome]:
        answers, fault = self._attempt(lambda connection: joint(connection, items), is_alone=is_alone)
        if fault is None:
            yield from ((answer, None) for answer in answers)
        elif len(items) == 1:
            yield None, fault
        else:
            for item in items:
                yield from self._attempt_joint(joint, [item], is_alone=False)

    def _attempt(self, job: Job[Any], is_alone: bool) -> Outcome:
        """The job's answer, or its fault with its effects undone."""
        connection = self._connection
        if not is_alone:
            connection.execute("SAVEPOINT job")
        try:
            answer = job(connection)
        # Whatever a job raises belongs to its caller.
        except Exception as error:
            if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
                raise
            if is_alone:
                connection.execute("ROLLBACK")
                connection.execute("BEGIN IMMEDIATE")
            else:
                connection.execute("ROLLBACK TO job")
                connection.execute("RELEASE job")
            return None, error
        if not is_alone:
            connection.execute("RELEASE job")
        return answer, None

    def _recover(self, error: sqlite3.Error) -> PrimeSparkError:
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        code = primary_code(error)
        log.error("database_failed", cause=str(error), sqlite_code=code)
        if code == sqlite3.SQLITE_FULL:
            return OverloadedError("no space for the queue", remedy="free disk space", code="queue_full")
        if not is_damage(error):
            return UnavailableError(f"the queue cannot be written: {error}", remedy="check the disk", code="disk_error")
        self._connection.close()
        set_aside(self.path, str(error))
        self._connection = open_or_replace(self.path, self._log_bytes)
        return IntegrityError("the queue's file was damaged; a new one is begun", code="queue_corrupt")
