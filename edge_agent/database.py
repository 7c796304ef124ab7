"""One SQLite file behind one thread: what waits together is committed together, and acknowledged once on disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from edge_agent.schema import VERSION, upgrade
from primespark.core.logging import get_logger
from primespark.core.paths import private_directory
from primespark.errors import ConfigurationError, IntegrityError, OverloadedError, PrimeSparkError, UnavailableError

Result = TypeVar("Result")
Job = Callable[[sqlite3.Connection], Result]

MAX_GROUP = 256
MAX_WAITING_JOBS = 8192
KEPT_CORRUPT_FILES = 2
# Reading a whole file of this size costs a start some hundredths of a second; a larger one is trusted until it errs.
_CHECKED_BYTES = 16 * 1024 * 1024
_CLOSE_TIMEOUT_S = 5.0
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

log = get_logger(__name__)


class Database:
    """The device's state.

    Args:
        path: The file, made when missing; one that is damaged is set aside and a new one begun.

    Raises:
        ConfigurationError: The file cannot be made or opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failure: str | None = None
        self._inbox: SimpleQueue[tuple[Job[Any], Future[Any]] | None] = SimpleQueue()
        self._watchers: list[Callable[[sqlite3.Connection], None]] = []
        # Who waits for what is done; told together, since waking an event loop is a system call each time.
        self._told: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[Any], Future[Any]]] = []
        self._is_closing = False
        self._connection = self._open_or_replace()
        self._thread = threading.Thread(target=self._work, name="database", daemon=True)
        self._thread.start()

    def submit(self, job: Job[Result]) -> Future[Result]:
        """Run `job` in a transaction; the future has its answer once that is on disk, or its error and no effect.

        Raises:
            OverloadedError: Too many jobs wait.
            UnavailableError: Closed.
        """
        if self._is_closing:
            raise UnavailableError("the device is stopping", remedy="try again when it is up", code="stopping")
        if self._inbox.qsize() >= MAX_WAITING_JOBS:
            raise OverloadedError("the disk does not keep up", remedy="send less at once", code="queue_full")
        future: Future[Result] = Future()
        self._inbox.put((job, future))
        return future

    async def run(self, job: Job[Result]) -> Result:
        """`submit`, awaited; who leaves before the job has begun takes it along."""
        return await self.wait_for(self.submit(job))

    async def wait_for(self, future: Future[Result]) -> Result:
        """What a future gives that this thread settles."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Result] = loop.create_future()

        def tell(done: Future[Result]) -> None:
            if done.cancelled():
                return
            if threading.current_thread() is self._thread:
                self._told.append((loop, waiter, done))
            else:  # it was done before anybody waited
                loop.call_soon_threadsafe(_settle, [(waiter, done)])

        waiter.add_done_callback(lambda left: future.cancel() if left.cancelled() else None)
        future.add_done_callback(tell)
        return await waiter

    async def answers(self) -> None:
        """Come back once the thread of the file has done what was asked before.

        Raises:
            PrimeSparkError: As any job's.
        """
        await self.run(lambda _: None)

    def watch(self, watcher: Callable[[sqlite3.Connection], None]) -> None:
        """Call `watcher` on the database's thread: now, and after each commit."""

        def add(connection: sqlite3.Connection) -> None:
            self._watchers.append(watcher)
            watcher(connection)

        self.submit(add).result()

    def close(self) -> None:
        """Finish what waits, then close the file."""
        if not self._is_closing:
            self._is_closing = True
            self._inbox.put(None)
            self._thread.join(_CLOSE_TIMEOUT_S)

    def _work(self) -> None:
        is_open = True
        while is_open:
            group = [self._inbox.get()]
            with contextlib.suppress(Empty):
                while len(group) < MAX_GROUP:
                    group.append(self._inbox.get_nowait())
            is_open = None not in group
            self._commit([entry for entry in group if entry is not None and entry[1].set_running_or_notify_cancel()])
            self._wake()
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()

    def _commit(self, group: list[tuple[Job[Any], Future[Any]]]) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._attempt(job) for job, _ in group]
            self._connection.execute("COMMIT")
            for watcher in self._watchers:
                watcher(self._connection)
        except sqlite3.Error as error:
            failure = self._recover(error)
            self.failure = failure.message
            for _, future in group:
                future.set_exception(failure)
            return
        self.failure = None
        for (_, future), (answer, fault) in zip(group, outcomes, strict=True):
            if fault is None:
                future.set_result(answer)
            else:
                future.set_exception(fault)

    def _wake(self) -> None:
        told, self._told = self._told, []
        loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Future[Any]]]] = {}
        for loop, waiter, done in told:
            loops.setdefault(loop, []).append((waiter, done))
        for loop, waiters in loops.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_settle, waiters)

    def _attempt(self, job: Job[Any]) -> tuple[Any, Exception | None]:
        """The job's answer, or its fault with its effects undone; a fault of the file itself ends the whole group."""
        self._connection.execute("SAVEPOINT job")
        try:
            answer = job(self._connection)
        # Whatever a job raises belongs to its caller.
        except Exception as error:
            if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
                raise
            self._connection.execute("ROLLBACK TO job")
            self._connection.execute("RELEASE job")
            return None, error
        self._connection.execute("RELEASE job")
        return answer, None

    def _recover(self, error: sqlite3.Error) -> PrimeSparkError:
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        code = _primary_code(error)
        log.error("database_failed", cause=str(error), sqlite_code=code)
        if code == sqlite3.SQLITE_FULL:
            return OverloadedError("no space for the queue", remedy="free disk space", code="queue_full")
        if code not in _CORRUPT:
            return UnavailableError(f"the queue cannot be written: {error}", remedy="check the disk", code="disk_error")
        self._connection.close()
        _set_aside(self.path, str(error))
        self._connection = self._open_or_replace()
        return IntegrityError("the queue's file was damaged; a new one is begun", code="queue_corrupt")

    def _open_or_replace(self) -> sqlite3.Connection:
        private_directory(self.path.parent)
        if _has_only_its_log(self.path):
            # SQLite would drop the log without a word, and with it all that was acknowledged.
            _set_aside(self.path, "the file is empty or gone, its log is not")
        try:
            return _open(self.path)
        except sqlite3.DatabaseError as error:
            if _primary_code(error) not in _CORRUPT:
                raise ConfigurationError(
                    f"cannot open {self.path}: {error}", remedy="check owner, mode and free space of its folder"
                ) from None
            _set_aside(self.path, str(error))
        return _open(self.path)


def _settle(waiters: list[tuple[asyncio.Future[Any], Future[Any]]]) -> None:
    for waiter, done in waiters:
        if waiter.done():
            continue
        fault = done.exception()
        if fault is None:
            waiter.set_result(done.result())
        else:
            waiter.set_exception(fault)


def _has_only_its_log(path: Path) -> bool:
    file, log_file = (
        part.stat().st_size if part.exists() else 0 for part in (path, path.with_name(f"{path.name}-wal"))
    )
    return file == 0 < log_file


def _open(path: Path) -> sqlite3.Connection:
    is_new = not path.exists()
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
    try:
        if is_new:
            path.chmod(0o600)
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # A checkpoint writes each page a second time: every 16 MiB instead of 4 makes batches 4 % faster.
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        if path.stat().st_size <= _CHECKED_BYTES:
            _check(connection)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version < VERSION:
            upgrade(connection)
            _sync_directory(path.parent)
        elif version > VERSION:
            raise ConfigurationError(
                f"{path} is of version {version}, this program knows {VERSION}",
                remedy="install the newer version again",
            )
    except BaseException:
        # Whatever it was goes on to the caller; the connection must not stay.
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        damaged = sqlite3.DatabaseError(verdict)
        damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damaged


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _set_aside(path: Path, cause: str) -> None:
    name = f"{path.name}.corrupt-{time.time_ns() // 1_000_000}"
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(path.with_name(name + suffix))
    _sync_directory(path.parent)
    log.error("database_set_aside", cause=cause, file=name, remedy="what it held and had not sent is in that file")
    older = sorted(
        file for file in path.parent.glob(f"{path.name}.corrupt-*") if file.suffix[-4:] not in ("-wal", "-shm")
    )
    for file in older[:-KEPT_CORRUPT_FILES]:
        for suffix in ("", "-wal", "-shm"):
            file.with_name(file.name + suffix).unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
