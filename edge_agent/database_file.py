"""The device's SQLite file: how it is opened, given space for its log, and set aside when it is damaged."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from pathlib import Path

from edge_agent.schema import VERSION, upgrade
from primespark.core.logging import get_logger
from primespark.core.paths import private_directory
from primespark.errors import ConfigurationError

KEPT_CORRUPT_FILES = 2
# Reading a whole file of this size costs a start some hundredths of a second; a larger one is trusted until it errs.
_CHECKED_BYTES = 16 * 1024 * 1024
# The log's space is taken at the start: each commit that lets a file grow has the disk write its size too, which more
# than doubles what one fact costs, and a full disk must still take the deletes that empty it. A checkpoint begins the
# log again before it outgrows this: it writes each page a second time, so every 16 MiB instead of 4 makes batches 4 %
# faster.
LOG_BYTES = 16 * 1024 * 1024
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

log = get_logger(__name__)


def open_or_replace(path: Path, log_bytes: int) -> sqlite3.Connection:
    """The file at `path`, made when missing; one that is damaged is set aside and a new one begun.

    Args:
        path: The file.
        log_bytes: Space on disk the log has from the start.

    Raises:
        ConfigurationError: The file cannot be made or opened.
    """
    private_directory(path.parent)
    if _has_only_its_log(path):
        # SQLite would drop the log without a word, and with it all that was acknowledged.
        set_aside(path, "the file is empty or gone, its log is not")
    try:
        connection = _open(path)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise ConfigurationError(
                f"cannot open {path}: {error}", remedy="check owner, mode and free space of its folder"
            ) from None
        set_aside(path, str(error))
        connection = _open(path)
    _extend(path.with_name(f"{path.name}-wal"), log_bytes)
    return connection


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's result code without its detail."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is damaged."""
    return primary_code(error) in _CORRUPT


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


def _extend(log_file: Path, size: int) -> None:
    """Fill the log up to `size` with zeros, which SQLite reads as its end, where the disk has plenty of space."""
    if not size or not log_file.exists():
        return
    with log_file.open("r+b", buffering=0) as file:
        present = file.seek(0, os.SEEK_END)
        if size > present and shutil.disk_usage(log_file.parent).free > 4 * size:
            file.write(bytes(size - present))
            os.fdatasync(file.fileno())


def _check(connection: sqlite3.Connection) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        damaged = sqlite3.DatabaseError(verdict)
        damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damaged


def set_aside(path: Path, cause: str) -> None:
    """Keep a damaged file under another name, and the newest of those kept before."""
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
