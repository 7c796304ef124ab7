"""The SQLite file of an `EntryStore`: one process has it, one connection writes, each thread reads through its own."""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
import threading
from pathlib import Path
from typing import TextIO

from edge_agent.cache.ranking import SCHEMA
from primespark.core.logging import get_logger
from primespark.core.paths import private_directory
from primespark.errors import UnavailableError

_VERSION = 1
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

log = get_logger(__name__)


class Index:
    """Connections to one file, which is thrown away where it is damaged or of another version.

    Args:
        path: The file; `.lock` beside it says which process has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_damaged = False
        self.lock = threading.RLock()
        self._writer: sqlite3.Connection | None = None
        self._readers: list[sqlite3.Connection] = []
        self._mine = threading.local()
        self._life = 0
        self._claim: TextIO | None = None

    @property
    def is_usable(self) -> bool:
        """Open, and not known to be damaged."""
        return self._writer is not None and not self.is_damaged

    def open(self) -> None:
        """Open the file, begin one where there is none or none of use.

        Raises:
            UnavailableError: Code `cache_in_use`: another process has it.
            OSError, sqlite3.Error: The disk refuses.
        """
        private_directory(self.path.parent)
        self._claim_file()
        try:
            if self.is_damaged:
                self._discard("an error told of damage")
            try:
                self._connect()
            except sqlite3.DatabaseError as error:
                if not self.note(error):
                    raise
                self._discard(str(error))
                self._connect()
        except BaseException:
            # Whatever it was goes on to the caller; the claim on the file must not stay.
            self.close()
            raise

    def close(self) -> None:
        """Close the file and let another process have it."""
        connections = [*self._readers, *([self._writer] if self._writer else [])]
        self._forget()
        for connection in connections:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def note(self, error: BaseException) -> bool:
        """Whether an error tells of a damaged file; the next `open` begins anew then."""
        if isinstance(error, sqlite3.DatabaseError) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _CORRUPT:
            self.is_damaged = True
            return True
        return False

    def transaction(self) -> _Transaction:
        """The writing connection, for who holds the lock; what raises in it has no effect."""
        return _Transaction(self.writer())

    def writer(self) -> sqlite3.Connection:
        """The writing connection, for who holds the lock.

        Raises:
            UnavailableError: Code `cache_closed`.
        """
        if self._writer is None:
            raise UnavailableError("the cache is not open", code="cache_closed")
        return self._writer

    def reader(self) -> sqlite3.Cursor:
        """This thread's cursor, whose connection waits for no writer; what it is asked must be fetched whole."""
        if getattr(self._mine, "life", None) != self._life:
            with self.lock:
                self.writer()
                connection = _open(self.path)
                self._mine.cursor = connection.cursor()
                self._mine.life = self._life
                self._readers.append(connection)
        found: sqlite3.Cursor = self._mine.cursor
        return found

    def _connect(self) -> None:
        connection = _open(self.path)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            connection.close()
            self._discard(f"of version {version}")
            connection, version = _open(self.path), 0
        if version == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA}; PRAGMA user_version = {_VERSION}; COMMIT")
        self._writer = connection

    def _claim_file(self) -> None:
        if self._claim is not None:
            return
        claim = self.path.with_suffix(".lock").open("w")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            claim.close()
            raise UnavailableError(
                f"another process uses the cache in {self.path.parent}", remedy="stop it", code="cache_in_use"
            ) from None
        self._claim = claim

    def _discard(self, cause: str) -> None:
        log.warning("cache_discarded", file=str(self.path), cause=cause)
        # Other threads' connections are left to them: each takes a new one when it sees that this life has ended.
        self._forget()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.is_damaged = False

    def _forget(self) -> None:
        self._life += 1
        self._writer = None
        self._readers = []


class _Transaction:
    """A context manager as a class: one made of a generator costs a set 3 % more."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")


def _open(path: Path) -> sqlite3.Connection:
    is_new = not path.exists()
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
    try:
        if is_new:
            path.chmod(0o600)
        connection.execute("PRAGMA journal_mode = WAL")
        # Nothing here is promised to anybody: not worth a wait for the disk.
        connection.execute("PRAGMA synchronous = NORMAL")
        # A checkpoint is what does wait: every 16 MiB.
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute("PRAGMA journal_size_limit = 33554432")
    except BaseException:
        # Whatever it was goes on to the caller; the connection must not stay.
        connection.close()
        raise
    return connection
