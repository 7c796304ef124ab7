"""The policies where entries are rows: `(rank_major, rank_minor)` orders them, the lowest is let go first.

The same four as in `policies`, so a choice is one step along an index, and a hit is a note that is written later.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import NamedTuple, Protocol
from zlib import crc32

from primespark.core.cache_settings import CachePolicy

_NEVER = 9e18
_SMALL_SHARE = 10
_MAX_USES = 3
_USES_TO_STAY = 1

SCHEMA = """
CREATE TABLE entry (
  id INTEGER PRIMARY KEY,
  key TEXT NOT NULL UNIQUE,
  is_json INTEGER NOT NULL,
  checksum INTEGER NOT NULL,
  size INTEGER NOT NULL,
  written_at REAL NOT NULL,
  expires_at REAL,
  uses INTEGER NOT NULL,
  rank_major REAL NOT NULL,
  rank_minor INTEGER NOT NULL,
  file TEXT,
  data BLOB
);
CREATE INDEX by_rank ON entry (rank_major, rank_minor, size);
CREATE INDEX by_expiry ON entry (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX by_file ON entry (file) WHERE file IS NOT NULL;
CREATE TABLE ghost (key_checksum INTEGER PRIMARY KEY, placed INTEGER NOT NULL);
CREATE INDEX ghost_by_place ON ghost (placed);
"""


class Place(NamedTuple):
    """Where an entry stands."""

    major: float
    minor: int
    uses: int


class Victim(NamedTuple):
    """An entry to let go."""

    id: int
    size: int
    file: str | None


class Ranking(Protocol):
    """A policy; its methods run in the caller's transaction."""

    def place(self, connection: sqlite3.Connection, key: str, expires_at: float | None) -> Place:
        """Where a new entry stands."""

    def touch(self, connection: sqlite3.Connection, uses: Iterable[tuple[int, int]]) -> None:
        """Note hits, `(id, count)`, the latest last."""

    def choose(self, connection: sqlite3.Connection, count: int, held_bytes: int, entries: int) -> list[Victim]:
        """At most `count` entries to let go, the first first; an empty answer only when there are none."""


class _Counted:
    """What all share: a number that grows with every placing."""

    def __init__(self, last_minor: int) -> None:
        self._last = last_minor

    def _next(self) -> int:
        self._last += 1
        return self._last

    def touch(self, connection: sqlite3.Connection, uses: Iterable[tuple[int, int]]) -> None:
        """Nothing, where hits change no order."""

    def choose(self, connection: sqlite3.Connection, count: int, held_bytes: int, entries: int) -> list[Victim]:
        """See `Ranking`."""
        return [Victim(*row) for row in connection.execute(_LOWEST, (count,))]


_LOWEST = "SELECT id, size, file FROM entry ORDER BY rank_major, rank_minor LIMIT ?"


class LruRanking(_Counted):
    """By last use."""

    def place(self, connection: sqlite3.Connection, key: str, expires_at: float | None) -> Place:
        """See `Ranking`."""
        return Place(0, self._next(), 1)

    def touch(self, connection: sqlite3.Connection, uses: Iterable[tuple[int, int]]) -> None:
        """See `Ranking`."""
        connection.executemany(
            "UPDATE entry SET rank_minor = ? WHERE id = ?", [(self._next(), entry_id) for entry_id, _ in uses]
        )


class LfuRanking(_Counted):
    """By uses plus age, see `policies.LfuMap`."""

    def __init__(self, last_minor: int, lowest_major: float) -> None:
        super().__init__(last_minor)
        self._age = lowest_major

    def place(self, connection: sqlite3.Connection, key: str, expires_at: float | None) -> Place:
        """See `Ranking`."""
        return Place(self._age + 1, self._next(), 1)

    def touch(self, connection: sqlite3.Connection, uses: Iterable[tuple[int, int]]) -> None:
        """See `Ranking`."""
        connection.executemany(
            "UPDATE entry SET uses = uses + ?1, rank_major = ?2 + uses + ?1, rank_minor = ?3 WHERE id = ?4",
            [(count, self._age, self._next(), entry_id) for entry_id, count in uses],
        )

    def choose(self, connection: sqlite3.Connection, count: int, held_bytes: int, entries: int) -> list[Victim]:
        """See `Ranking`."""
        rows = connection.execute(
            "SELECT id, size, file, rank_major FROM entry ORDER BY rank_major, rank_minor LIMIT ?", (count,)
        ).fetchall()
        if rows:
            self._age = max(self._age, rows[0][3])
        return [Victim(*row[:3]) for row in rows]


class TtlRanking(_Counted):
    """By expiry."""

    def place(self, connection: sqlite3.Connection, key: str, expires_at: float | None) -> Place:
        """See `Ranking`."""
        return Place(_NEVER if expires_at is None else expires_at, self._next(), 1)


class S3FifoRanking(_Counted):
    """Major 0 is the small queue and 1 the main one, see `policies.S3FifoMap`; ghosts are checksums of keys."""

    def __init__(self, last_minor: int) -> None:
        super().__init__(last_minor)
        # Assumed too many at first, so the first look counts them.
        self._ghosts = 1 << 62

    def place(self, connection: sqlite3.Connection, key: str, expires_at: float | None) -> Place:
        """See `Ranking`."""
        ghost = connection.execute("DELETE FROM ghost WHERE key_checksum = ? RETURNING 1", (_checksum(key),)).fetchone()
        return Place(0 if ghost is None else 1, self._next(), 0)

    def touch(self, connection: sqlite3.Connection, uses: Iterable[tuple[int, int]]) -> None:
        """See `Ranking`."""
        connection.executemany(
            "UPDATE entry SET uses = min(uses + ?, ?) WHERE id = ?",
            [(count, _MAX_USES, entry_id) for entry_id, count in uses],
        )

    def choose(self, connection: sqlite3.Connection, count: int, held_bytes: int, entries: int) -> list[Victim]:
        """See `Ranking`."""
        victims: list[Victim] = []
        (small,) = connection.execute("SELECT coalesce(sum(size), 0) FROM entry WHERE rank_major = 0").fetchone()
        has_main = connection.execute("SELECT 1 FROM entry WHERE rank_major = 1 LIMIT 1").fetchone() is not None
        is_small = small > 0 and (small * _SMALL_SHARE >= held_bytes or not has_main)
        while not victims:
            rows = connection.execute(_OF_QUEUE, (int(not is_small), count)).fetchall()
            if not rows and is_small:
                is_small = False
                continue
            if not rows:
                break
            self._keep(connection, [row for row in rows if row[3] >= _USES_TO_STAY], is_small)
            leaving = [row for row in rows if row[3] < _USES_TO_STAY]
            if is_small:
                self._remember(connection, [row[4] for row in leaving], entries)
            victims = [Victim(*row[:3]) for row in leaving]
        return victims

    def _keep(
        self, connection: sqlite3.Connection, rows: list[tuple[int, int, str | None, int, str]], is_small: bool
    ) -> None:
        connection.executemany(
            "UPDATE entry SET rank_major = 1, rank_minor = ?, uses = ? WHERE id = ?",
            [(self._next(), 0 if is_small else row[3] - 1, row[0]) for row in rows],
        )

    def _remember(self, connection: sqlite3.Connection, keys: list[str], most: int) -> None:
        connection.executemany(
            "INSERT OR REPLACE INTO ghost VALUES (?, ?)", [(_checksum(key), self._next()) for key in keys]
        )
        self._ghosts += len(keys)
        if self._ghosts > most:
            (ghosts,) = connection.execute("SELECT count(*) FROM ghost").fetchone()
            # To below the bound, so that counting is rare.
            too_many = max(0, ghosts - most * 7 // 8)
            connection.execute(
                "DELETE FROM ghost WHERE key_checksum IN (SELECT key_checksum FROM ghost ORDER BY placed LIMIT ?)",
                (too_many,),
            )
            self._ghosts = ghosts - too_many


_OF_QUEUE = "SELECT id, size, file, uses, key FROM entry WHERE rank_major = ? ORDER BY rank_minor LIMIT ?"


def _checksum(key: str) -> int:
    return crc32(key.encode())


def make_ranking(policy: CachePolicy, last_minor: int, lowest_major: float) -> Ranking:
    """A policy over rows that may have been placed by an earlier process.

    Args:
        policy: Which.
        last_minor: The highest in the table.
        lowest_major: The lowest in the table.
    """
    match policy:
        case CachePolicy.LRU:
            return LruRanking(last_minor)
        case CachePolicy.LFU:
            return LfuRanking(last_minor, lowest_major)
        case CachePolicy.TTL:
            return TtlRanking(last_minor)
        case CachePolicy.S3FIFO:
            return S3FifoRanking(last_minor)
