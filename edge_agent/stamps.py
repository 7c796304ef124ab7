"""Timestamps of this device's writes to documents, true also where its clock was wrong when it wrote.

Until the cloud has told the time, a timestamp is a guess: it is noted with the boot and the monotonic clock, and made
true before the write is sent, never after. Their order stays, and what the device had seen stays before what it wrote.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping

from edge_agent.device_clock import DeviceClock
from edge_agent.schema import read_meta, write_meta
from primespark.core.clock import HybridLogicalClock, Timestamp, wall_clock_ms

MAX_EARLY = 10_000
# Of an earlier version of this program, or of a clock that was wrong: the cloud takes no write from so far ahead.
_MAX_AHEAD_MS = 60_000
# Thirteen digits are up to the year 2286.
_LATEST_MS = 9 * 10**12
_LAST, _SEEN = "hlc", "hlc_seen"


class Stamps:
    """Gives timestamps, each above every one given or seen before; within the caller's transactions.

    Args:
        device_id: Whose.
        clock: Knows the true time, once the cloud has told it.
        now_ms: The present without that.
    """

    def __init__(
        self, device_id: str, clock: DeviceClock | None = None, now_ms: Callable[[], int] = wall_clock_ms
    ) -> None:
        self._device_id = device_id
        self._clock = clock
        self._now_ms = now_ms

    def stamp(self, connection: sqlite3.Connection, *, is_of_write: bool = True) -> str:
        """A timestamp of now; one that is not of a write need not become true."""
        last = _parsed(read_meta(connection, _LAST))
        clock = self._clock
        if clock is None:
            return self._next(connection, self._now_ms(), last)
        now_ms = clock.true_ms(connection)
        if now_ms is not None and not _has_early(connection):
            return self._next(connection, now_ms, self._credible(connection, last, now_ms))
        given = self._next(connection, clock.wall_ms() if now_ms is None else now_ms, last)
        if is_of_write:
            _note(connection, clock, given, last)
        return given

    def observe(self, connection: sqlite3.Connection, seen: str) -> None:
        """Make every later timestamp greater than `seen`, which is the cloud's."""
        for name in (_LAST, _SEEN):
            kept = read_meta(connection, name)
            if kept is None or Timestamp.parse(seen) > Timestamp.parse(kept):
                write_meta(connection, name, seen)
        if _has_early(connection):
            connection.execute("INSERT INTO early_stamp (seen) VALUES (?)", (seen,))
            _bound(connection)

    def settle(self, connection: sqlite3.Connection) -> None:
        """Make timestamps of writes that were not sent yet true, if the time is known by now.

        To be called where no batch is under way, in the transaction that fixes the next.
        """
        clock = self._clock
        if clock is None or (now_ms := clock.true_ms(connection)) is None or not _has_early(connection):
            return
        true, last = self._true_stamps(connection, clock, now_ms)
        for scope, key, leaf_hlc, written_hlc in connection.execute(
            "SELECT scope, key, leaf_hlc, written_hlc FROM document WHERE dirty"
        ).fetchall():
            stamps = {pointer: true.get(stamp, stamp) for pointer, stamp in json.loads(leaf_hlc).items()}
            connection.execute(
                "UPDATE document SET leaf_hlc = ?, written_hlc = ? WHERE scope = ? AND key = ?",
                (json.dumps(stamps), true.get(written_hlc, written_hlc), scope, key),
            )
        connection.execute("DELETE FROM early_stamp")
        write_meta(connection, _LAST, str(last))

    def _next(self, connection: sqlite3.Connection, now_ms: int, last: Timestamp | None) -> str:
        now_ms = min(max(now_ms, 0), _LATEST_MS)
        given = str(HybridLogicalClock(self._device_id, lambda: now_ms, last).stamp())
        write_meta(connection, _LAST, given)
        return given

    def _credible(self, connection: sqlite3.Connection, last: Timestamp | None, now_ms: int) -> Timestamp | None:
        """`last`, unless it is of a time that is yet to come and the cloud never told: then what the cloud told."""
        seen = _parsed(read_meta(connection, _SEEN))
        latest_ms = max(now_ms + _MAX_AHEAD_MS, seen.unix_ms if seen else 0)
        return last if last is None or last.unix_ms <= latest_ms else seen

    def _true_stamps(
        self, connection: sqlite3.Connection, device: DeviceClock, now_ms: int
    ) -> tuple[Mapping[str, str], Timestamp]:
        """True timestamps by those given early, and the last of them."""
        rows = connection.execute("SELECT hlc, seen, boot_id, monotonic_ns FROM early_stamp ORDER BY id").fetchall()
        boots = device.boots(connection)
        # What is of a boot without contact was written before the next one of which the beginning is known.
        began_ms, bounds = device.began_ms(connection), []
        for _, _, boot, _ in reversed(rows):
            known = boots.get(boot)
            began_ms = known[0] // 1_000_000 if known else began_ms
            bounds.append(began_ms)
        true: dict[str, str] = {}
        moment_ms, last = 0, Timestamp(0, 0, self._device_id)
        clock = HybridLogicalClock(self._device_id, lambda: moment_ms)
        for (hlc, seen, boot, monotonic_ns), before_ms in zip(rows, reversed(bounds), strict=True):
            if hlc is None:
                last = self._credible(connection, Timestamp.parse(seen), now_ms) or last
                clock.observe(last)
                continue
            told_ms, known = Timestamp.parse(hlc).unix_ms, boots.get(boot)
            if known is not None:
                moment_ms = device.repaired_ms(known, told_ms, monotonic_ns)
            else:
                moment_ms = told_ms if last.unix_ms < told_ms <= before_ms else before_ms
            last = clock.stamp()
            true[hlc] = str(last)
        return true, last


def _has_early(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM early_stamp LIMIT 1").fetchone() is not None


def _note(connection: sqlite3.Connection, clock: DeviceClock, given: str, last: Timestamp | None) -> None:
    if last is not None and not _has_early(connection):
        connection.execute("INSERT INTO early_stamp (seen) VALUES (?)", (str(last),))
    connection.execute(
        "INSERT INTO early_stamp (hlc, boot_id, monotonic_ns) VALUES (?, ?, ?)",
        (given, clock.boot, clock.monotonic_ns()),
    )
    _bound(connection)


def _bound(connection: sqlite3.Connection) -> None:
    """Forget the oldest: their writes keep the timestamps they have."""
    connection.execute(
        "DELETE FROM early_stamp WHERE id <= (SELECT max(id) FROM early_stamp) - ?"
        " AND id > (SELECT min(id) FROM early_stamp)",
        (MAX_EARLY,),
    )


def _parsed(text: str | None) -> Timestamp | None:
    return Timestamp.parse(text) if text else None
