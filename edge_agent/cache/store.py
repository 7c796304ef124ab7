"""Entries on disk: an index in SQLite, small values in it, large ones in files; whole or absent whatever is killed.

A row is the entry. A file is written whole under a name that was never used before, then its row is committed; a row is
deleted and committed, then its file removed. What dies in between leaves a file without a row, which `sweep` removes.
Nothing waits for the disk (`synchronous = NORMAL`, no fsync): a power cut may lose the latest entries, and what it left
of a file does not match the checksum in its row. A checksum covers key and value, so a damaged index misses too.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zlib import crc32

from edge_agent.cache.index import Index
from edge_agent.cache.ranking import Ranking, Victim, make_ranking
from edge_agent.cache.tiers import TierFigures
from edge_agent.cache.value_files import ValueFiles
from edge_agent.cache.values import ENTRY_BYTES, MAX_VALUE_BYTES, Stored
from primespark.core.cache_settings import CachePolicy
from primespark.core.logging import get_logger
from primespark.core.paths import private_directory
from primespark.errors import DeadlineExceededError

INLINE_BYTES = 64 * 1024
BATCH = 256
# A full store is emptied to this share of its limit, so that not every set has to make room.
_LOW_WATER = 31 / 32
_LARGEST_SHARE = 8
_SETS_BETWEEN_LOOKS_AT_FREE_SPACE = 64
_PURGE_EVERY_S = 60.0
# Hits that wait to be noted in the index; of more, the older half is forgotten: they only order.
_MAX_TOUCHED = 8192
# A clock that was set back by more than this makes an entry's age unknown.
_CLOCK_SLACK_S = 5.0

_FIND = "SELECT id, is_json, checksum, written_at, expires_at, file, data FROM entry WHERE key = ?"
_INSERT = (
    "INSERT INTO entry (key, is_json, checksum, size, written_at, expires_at, uses, rank_major, rank_minor, file, data)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_REMOVE = "DELETE FROM entry WHERE key = ? RETURNING id, size, file"
# The index on the rank holds all that is asked, so no value is read.
_TOTALS = (
    "SELECT count(*), coalesce(sum(size), 0), coalesce(max(rank_minor), 0), coalesce(min(rank_major), 0)"
    " FROM entry INDEXED BY by_rank"
)

log = get_logger(__name__)


@dataclass(slots=True)
class Attempt:
    """One write; over when nobody waits for it, and then it must have no effect."""

    is_over: bool = False


class EntryStore:
    """Entries of one folder; for any number of threads of one process.

    Args:
        index: The SQLite file, on a local disk.
        files: Folder of the large values, its own alone.
        limit_bytes: Most bytes of keys, values and bookkeeping; less where the disk has not twice that to give.
        policy: What to let go first.
        inline_bytes: Values of so many bytes or more are files.
        free_bytes: Free space where the files are; a parameter so that a test can fill it.
        clock: Unix time; a parameter so that a test can set it.
        make_folder: Makes the folder of the files, or says why not.
    """

    def __init__(
        self,
        index: Path,
        files: Path,
        limit_bytes: int,
        policy: CachePolicy,
        *,
        inline_bytes: int = INLINE_BYTES,
        free_bytes: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.time,
        make_folder: Callable[[Path], object] = private_directory,
    ) -> None:
        self._make_folder = partial(make_folder, files)
        self.index = Index(index)
        self.files = ValueFiles(files)
        self._policy = policy
        self._configured_limit = self.limit_bytes = limit_bytes
        self._inline_bytes = inline_bytes
        self._free_bytes = free_bytes or (lambda: shutil.disk_usage(files).free)
        self._clock = clock
        self._touched: dict[int, int] = {}
        self._notes_uses = policy is not CachePolicy.TTL
        self._ranking: Ranking = make_ranking(policy, 0, 0)
        self._sets = 0
        self._purged_at = 0.0
        self.entries = self.bytes = self.evictions = 0

    def open(self) -> None:
        """Open, or begin anew where there is nothing or what is there is damaged; nothing to do when it is open.

        Raises:
            UnavailableError: Code `cache_in_use`: another process has it.
            OSError, sqlite3.Error: The disk refuses.
        """
        with self.index.lock:
            if self.index.is_usable and self.files.folder.is_dir():
                return
            self._make_folder()
            self.index.open()
            try:
                totals = self.index.writer().execute(_TOTALS).fetchone()
            except sqlite3.DatabaseError as error:
                if not self.index.note(error):
                    raise
                self.index.open()
                totals = self.index.writer().execute(_TOTALS).fetchone()
            self.entries, self.bytes, last_minor, lowest_major = totals
            self._ranking = make_ranking(self._policy, last_minor, lowest_major)
            self._touched = {}
            self._update_limit()

    def close(self) -> None:
        """Note the last hits and close; open again with `open`."""
        with self.index.lock:
            if self.index.is_usable:
                with contextlib.suppress(sqlite3.Error), self.index.transaction() as connection:
                    self._note_touches(connection)
            self.index.close()

    def get(self, key: str) -> Stored | None:
        """The value with the time it may yet be served, or a miss."""
        rows = self.index.reader().execute(_FIND, (key,)).fetchall()
        if not rows:
            return None
        entry_id, is_json, checksum, written_at, expires_at, file, data = rows[0]
        ttl_s = None
        if expires_at is not None:
            now = self._clock()
            ttl_s = expires_at - now
            if ttl_s <= 0 or now < written_at - _CLOCK_SLACK_S:
                return None
        if file is not None:
            data = self.files.read(file, MAX_VALUE_BYTES)
        if data is not None and crc32(data, crc32(key.encode())) == checksum:
            if self._notes_uses:
                self._touch(entry_id)
            return Stored(data, is_json == 1, ttl_s)
        # Its file may have been replaced between the look at the row and the look at itself: then the row is another's.
        if not self.index.reader().execute("SELECT 1 FROM entry WHERE id = ? AND key = ?", (entry_id, key)).fetchall():
            return self.get(key)
        log.warning("cache_entry_damaged", index=str(self.index.path))
        self.delete(key)
        return None

    def set(self, key: str, stored: Stored, attempt: Attempt | None = None) -> bool:
        """Hold a value instead of any under this key; False where it does not fit, and then nothing is held.

        Args:
            key: Its name.
            stored: What to hold.
            attempt: Says when the write must have no effect any more.

        Raises:
            DeadlineExceededError: Code `cache_timeout`: nothing has changed.
        """
        size = len(stored.data) + len(key) + ENTRY_BYTES
        if self._sets % _SETS_BETWEEN_LOOKS_AT_FREE_SPACE == 0:
            self._update_limit()
        self._sets += 1
        if size * _LARGEST_SHARE > self.limit_bytes:
            self.delete(key)
            return False
        file = self.files.write(stored.data) if len(stored.data) >= self._inline_bytes else None
        try:
            leaving = self._commit(key, stored, size, file, attempt)
        except BaseException:
            # Whatever it was goes on to the caller; a file without an entry must not stay.
            self.files.remove([file])
            raise
        self.files.remove(leaving)
        return True

    def delete(self, key: str) -> None:
        """Hold nothing under this key."""
        # Most are not there, and to look costs no write.
        if not self.index.reader().execute("SELECT 1 FROM entry WHERE key = ?", (key,)).fetchall():
            return
        with self.index.lock:
            with self.index.transaction() as connection:
                row = connection.execute(_REMOVE, (key,)).fetchone()
            if row is not None:
                self.entries -= 1
                self.bytes -= row[1]
        if row is not None:
            self.files.remove([row[2]])

    def clear(self) -> int:
        """Hold nothing; how many there were."""
        with self.index.lock:
            count = self.entries
            with self.index.transaction() as connection:
                connection.execute("DELETE FROM entry")
                connection.execute("DELETE FROM ghost")
            self.entries = self.bytes = 0
            # Gives the space back to the disk, not only to later entries.
            self.index.writer().execute("VACUUM")
            self.index.writer().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self.sweep(own=True)
        return count

    def figures(self) -> TierFigures:
        """What it holds."""
        return TierFigures(self.entries, self.bytes, self.limit_bytes, self._policy, self.evictions)

    def sweep(self, own: bool = False) -> int:
        """Remove files without an entry, see `ValueFiles.sweep`; how many."""
        find = "SELECT 1 FROM entry WHERE file = ?"
        return self.files.sweep(lambda name: self.index.reader().execute(find, (name,)).fetchall() != [], own)

    def _commit(
        self, key: str, stored: Stored, size: int, file: str | None, attempt: Attempt | None
    ) -> list[str | None]:
        """Exchange rows; the files of those that went."""
        now = self._clock()
        expires_at = None if stored.ttl_s is None else now + stored.ttl_s
        checksum = crc32(stored.data, crc32(key.encode()))
        with self.index.lock:
            with self.index.transaction() as connection:
                # In the lock: who gave up and then deletes the key comes after this, or this comes to nothing.
                if attempt is not None and attempt.is_over:
                    raise DeadlineExceededError("the disk did not keep up", code="cache_timeout")
                leaving = [Victim(*row) for row in connection.execute(_REMOVE, (key,))]
                growth = size - _bytes(leaving)
                if self.bytes + growth > self.limit_bytes or not 0 <= now - self._purged_at <= _PURGE_EVERY_S:
                    expired = self._expire(connection, now)
                    growth -= _bytes(expired)
                    leaving += expired
                evicted = self._make_room(connection, growth) if self.bytes + growth > self.limit_bytes else []
                place = self._ranking.place(connection, key, expires_at)
                row = (
                    key, stored.is_json, checksum, size, now, expires_at, place.uses, place.major, place.minor, file,
                    None if file else stored.data,
                )  # fmt: skip
                connection.execute(_INSERT, row)
            self.evictions += len(evicted)
            self.entries += 1 - len(leaving) - len(evicted)
            self.bytes += growth - _bytes(evicted)
            leaving += evicted
        return [victim.file for victim in leaving]

    def _expire(self, connection: sqlite3.Connection, now: float) -> list[Victim]:
        """Let go of a batch of what has expired."""
        self._purged_at = now
        rows = connection.execute(
            "SELECT id, size, file FROM entry WHERE expires_at <= ? LIMIT ?", (now, BATCH)
        ).fetchall()
        return _let_go(connection, (Victim(*row) for row in rows))

    def _make_room(self, connection: sqlite3.Connection, growth: int) -> list[Victim]:
        """Let go of entries until `growth` more bytes find room."""
        self._note_touches(connection)
        gone: list[Victim] = []
        while (too_much := self.bytes + growth - _bytes(gone) - int(self.limit_bytes * _LOW_WATER)) > 0:
            victims = self._ranking.choose(connection, BATCH, self.bytes - _bytes(gone), self.entries - len(gone))
            if not victims:
                break
            gone += _let_go(connection, victims, too_much)
        return gone

    def _touch(self, entry_id: int) -> None:
        # Without a lock: threads that meet here lose a note at worst.
        touched = self._touched
        touched[entry_id] = touched.pop(entry_id, 0) + 1
        if len(touched) > _MAX_TOUCHED:
            self._touched = dict(list(touched.items())[_MAX_TOUCHED // 2 :])

    def _note_touches(self, connection: sqlite3.Connection) -> None:
        touched, self._touched = self._touched, {}
        if touched:
            # A list, taken in one go: a thread that still holds the dict may add to it.
            self._ranking.touch(connection, list(touched.items()))

    def _update_limit(self) -> None:
        self.limit_bytes = min(self._configured_limit, (self._free_bytes() + self.bytes) // 2)


def _bytes(victims: Iterable[Victim]) -> int:
    return sum(victim.size for victim in victims)


def _let_go(
    connection: sqlite3.Connection, victims: Iterable[Victim], at_least_bytes: float = float("inf")
) -> list[Victim]:
    """Delete the first of these rows, as many as free so many bytes."""
    gone: list[Victim] = []
    for victim in victims:
        if at_least_bytes <= 0:
            break
        at_least_bytes -= victim.size
        gone.append(victim)
    connection.executemany("DELETE FROM entry WHERE id = ?", [(victim.id,) for victim in gone])
    return gone
