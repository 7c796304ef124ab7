"""Enqueues that come at once, as one: a statement for all of them costs little more than for one."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future

from edge_agent.database import MAX_WAITING_JOBS, Database
from primespark.errors import OverloadedError, PrimeSparkError

Facts = list[tuple[str, bytes]]
Entry = tuple[Facts, Future[list[int]]]


class Together:
    """Gathers enqueues while the file is busy, and takes them in one job.

    Args:
        database: Of the queue.
        take: Enqueues facts in the transaction it is given, all or none; their seqs.
    """

    def __init__(self, database: Database, take: Callable[[sqlite3.Connection, Facts], list[int]]) -> None:
        self._database = database
        self._take = take
        self._lock = threading.Lock()
        self._entries: list[Entry] = []

    def submit(self, facts: Facts) -> Future[list[int]]:
        """Enqueue all of `facts` or none, whatever becomes of others; the future has their seqs once they are on disk.

        Raises:
            OverloadedError: Too many wait.
            UnavailableError: The database is closed.
        """
        future: Future[list[int]] = Future()
        with self._lock:
            if len(self._entries) >= MAX_WAITING_JOBS:
                raise OverloadedError("the disk does not keep up", remedy="send less at once", code="queue_full")
            self._entries.append((facts, future))
            if len(self._entries) > 1:
                return future  # the job that will take it waits already
            taken: list[Entry] = []
            try:
                job = self._database.submit(lambda connection: self._run(connection, taken))
            except PrimeSparkError:
                self._entries.clear()
                raise
        job.add_done_callback(lambda done: _settle(taken, done))
        return future

    def _run(self, connection: sqlite3.Connection, taken: list[Entry]) -> list[list[int] | PrimeSparkError]:
        with self._lock:
            entries, self._entries = self._entries, []
        taken += [entry for entry in entries if entry[1].set_running_or_notify_cancel()]
        seqs = self._attempt(connection, [fact for facts, _ in taken for fact in facts])
        if isinstance(seqs, PrimeSparkError):
            # They do not fit together: each alone, for it to have its own fault, where it has one.
            return [self._attempt(connection, facts) for facts, _ in taken]
        each = iter(seqs)
        return [[next(each) for _ in facts] for facts, _ in taken]

    def _attempt(self, connection: sqlite3.Connection, facts: Facts) -> list[int] | PrimeSparkError:
        """The seqs, or the fault with its effects undone; a fault of the file ends the whole transaction."""
        connection.execute("SAVEPOINT enqueue")
        try:
            outcome: list[int] | PrimeSparkError = self._take(connection, facts)
        except PrimeSparkError as error:
            connection.execute("ROLLBACK TO enqueue")
            outcome = error
        connection.execute("RELEASE enqueue")
        return outcome


def _settle(taken: list[Entry], done: Future[list[list[int] | PrimeSparkError]]) -> None:
    """After the commit: to each its own."""
    fault = done.exception()
    for number, (_, future) in enumerate(taken):
        outcome = fault if fault is not None else done.result()[number]
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
