"""The device's clock against the cloud's: what a wrong clock stamped gets its true time before its batch is fixed.

A device without a battery behind its clock starts with a wrong time. What does not err within a boot is the monotonic
clock: once the cloud has told the time, the difference of the two gives the time of everything stamped since the boot.
"""

from __future__ import annotations

import json
import re
import sqlite3
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from prometheus_client import Counter, Gauge

from primespark.core.clock import Clock, to_rfc3339
from primespark.core.identifiers import boot_id
from primespark.core.values import EARLIEST, LATEST
from primespark.sync.records import Quality

MAX_BOOTS = 10_000
MAX_STEPS = 10_000
# The kernel slews both clocks alike, so a wall clock that moved against the other was set.
_STEP_NS = 200_000_000
# How far two free clocks part; an old reading is worth less by so much (RFC 5905 takes 15e-6 for disciplined ones).
_DRIFT = 100e-6
_KEPT_AGAIN_NS = 100_000_000
_HELD = re.compile(r"total;dur=(\d{1,9}\.\d{1,6})")
_STAMPS = re.compile(rb'("data_class":"[a-z_]+",)"time":"([^"]+)","boot_id":("(?:[^"\\]|\\.)*"),"monotonic_ns":(\d+),')

OFFSET = Gauge("primespark_clock_offset_seconds", "The device's clock less the cloud's, at the last contact.")
CORRECTED = Counter("primespark_clock_corrected_total", "Facts whose time was repaired, or is not known.", ["quality"])
for _quality in Quality:
    CORRECTED.labels(_quality)


@dataclass(frozen=True, slots=True)
class Reading:
    """The cloud's time on this boot's monotonic clock.

    Attributes:
        offset_ns: To add to the monotonic clock to have the true time.
        error_ns: By how much that may be wrong.
        at_ns: When it was read, by the monotonic clock.
    """

    offset_ns: int
    error_ns: int
    at_ns: int


class DeviceClock:
    """What is known of this machine's clock, now and in boots before.

    Args:
        tolerance_s: A clock that is wrong by less is left as it is.
        clock: The machine's.
        boot: Identifier of this boot.
    """

    def __init__(self, tolerance_s: float, clock: Clock | None = None, boot: str | None = None) -> None:
        self._tolerance_ns = int(tolerance_s * 1e9)
        self._clock = clock or Clock()
        self._boot = boot or boot_id()
        self._reading: Reading | None = None
        self._noted_ns = self._clock.monotonic_ns()

    @property
    def reading(self) -> Reading | None:
        """The best of this boot; None before the first contact of this process."""
        return self._reading

    @property
    def offset_s(self) -> float | None:
        """The device's clock less the cloud's; None while that is not known."""
        reading = self._reading
        return None if reading is None else (self._offset_ns() - reading.offset_ns) / 1e9

    @property
    def boot(self) -> str:
        """Identifier of this boot."""
        return self._boot

    def wall_ms(self) -> int:
        """What the machine's clock shows."""
        return self._clock.wall_ns() // 1_000_000

    def true_ms(self, connection: sqlite3.Connection) -> int | None:
        """The present: what the machine's clock shows where it is right; None while the cloud has not told."""
        self._keep_reading(connection)
        known = self._known(connection)
        return None if known is None else self.repaired_ms(known, self.wall_ms(), self.monotonic_ns())

    def began_ms(self, connection: sqlite3.Connection) -> int:
        """When this boot began, as far as is known."""
        known = self._known(connection)
        return (known[0] if known is not None else self._offset_ns()) // 1_000_000

    def repaired_ms(self, known: tuple[int, int], told_ms: int, monotonic_ns: int) -> int:
        """The true time of what was stamped at `monotonic_ns` of a boot of which that much is known, see `boots`."""
        true_ns, error_ns = known
        true_ms = (true_ns + monotonic_ns) // 1_000_000
        return told_ms if abs(true_ms - told_ms) * 1_000_000 <= self._tolerance_ns + error_ns else true_ms

    def boots(self, connection: sqlite3.Connection) -> dict[str, tuple[int, int] | None]:
        """Of each boot its true time when its monotonic clock was 0, and the error; None for one without contact."""
        self._keep_reading(connection)
        return _boots(connection)

    def _known(self, connection: sqlite3.Connection) -> tuple[int, int] | None:
        if self._reading is not None:
            return self._reading.offset_ns, self._reading.error_ns
        # Of a process of this boot before.
        row = connection.execute("SELECT true_ns, error_ns FROM boot WHERE boot_id = ?", (self._boot,)).fetchone()
        return (row[0], row[1]) if row is not None and row[0] is not None else None

    def monotonic_ns(self) -> int:
        """The present by the clock that readings are of."""
        return self._clock.monotonic_ns()

    def learn_from(self, headers: Mapping[str, str], sent_ns: int) -> None:
        """Take the time from an answer that just came; one without `Server-Time` and `Server-Timing` tells nothing."""
        received_ns = self.monotonic_ns()
        held = _HELD.fullmatch(headers.get("server-timing", ""))
        try:
            told = datetime.fromisoformat(headers.get("server-time", ""))
        except ValueError:
            return
        if held is not None and told.tzinfo is not None and EARLIEST <= told < LATEST:
            self.learn(told, float(held[1]) / 1000, sent_ns, received_ns)

    def learn(self, told: datetime, held_s: float, sent_ns: int, received_ns: int) -> None:
        """Take the time from an answer of the cloud, if that is more exact than what is known.

        Args:
            told: The cloud's time when it answered.
            held_s: How long it had the request until then.
            sent_ns: When the request was sent, by the monotonic clock.
            received_ns: When the answer came.
        """
        travelled_ns = max(received_ns - sent_ns - int(held_s * 1e9), 0)
        told_ns = int(told.timestamp() * 1e6) * 1000
        reading = Reading(told_ns - received_ns + travelled_ns // 2, travelled_ns // 2 + 1000, received_ns)
        known = self._reading
        if known is None or reading.error_ns <= known.error_ns + int((received_ns - known.at_ns) * _DRIFT):
            self._reading = reading
        if (offset_s := self.offset_s) is not None:
            OFFSET.set(offset_s)

    def note(self, connection: sqlite3.Connection) -> None:
        """Remember how the wall clock stands, in the transaction of facts it stamped; most times nothing is new."""
        self._keep_reading(connection)
        offset_ns, looked_before_ns = self._offset_ns(), self._noted_ns
        self._noted_ns = self._clock.monotonic_ns()
        # From the file, not from memory: what was noted may have been rolled back, or set aside with the file.
        newest = connection.execute("SELECT boot_id, offset_ns FROM clock_step ORDER BY id DESC LIMIT 1").fetchone()
        if newest is not None and newest[0] == self._boot and abs(offset_ns - newest[1]) < _STEP_NS:
            return
        connection.execute("INSERT OR IGNORE INTO boot (boot_id) VALUES (?)", (self._boot,))
        # When it was set is not known; what was stamped since the last look most likely has the new time.
        connection.execute(
            "INSERT INTO clock_step (boot_id, from_ns, offset_ns) VALUES (?, ?, ?)",
            (self._boot, looked_before_ns, offset_ns),
        )
        connection.execute("DELETE FROM clock_step WHERE id <= (SELECT max(id) FROM clock_step) - ?", (MAX_STEPS,))
        connection.execute("DELETE FROM boot WHERE id <= (SELECT max(id) FROM boot) - ?", (MAX_BOOTS,))

    def corrections(self, connection: sqlite3.Connection) -> Corrections:
        """What is to be done to facts that are put into a batch now."""
        self._keep_reading(connection)
        return Corrections(connection, self._tolerance_ns)

    def _offset_ns(self) -> int:
        return self._clock.wall_ns() - self._clock.monotonic_ns()

    def _keep_reading(self, connection: sqlite3.Connection) -> None:
        reading = self._reading
        if reading is None:
            return
        kept = connection.execute("SELECT true_ns FROM boot WHERE boot_id = ?", (self._boot,)).fetchone()
        if kept is not None and kept[0] is not None and abs(reading.offset_ns - kept[0]) < _KEPT_AGAIN_NS:
            return
        connection.execute(
            "INSERT INTO boot (boot_id, true_ns, error_ns) VALUES (?, ?, ?) ON CONFLICT (boot_id)"
            " DO UPDATE SET true_ns = excluded.true_ns, error_ns = excluded.error_ns",
            (self._boot, reading.offset_ns, reading.error_ns),
        )


class Corrections:
    """Times of facts made true, each in the transaction that fixes its batch.

    Args:
        connection: Of the transaction.
        tolerance_ns: A clock that is wrong by less is left as it is.
    """

    def __init__(self, connection: sqlite3.Connection, tolerance_ns: int) -> None:
        self._connection = connection
        self._tolerance_ns = tolerance_ns
        self._boots = _boots(connection)
        self._steps: dict[str, list[tuple[int, int]]] = {}
        for name, from_ns, offset_ns in connection.execute("SELECT boot_id, from_ns, offset_ns FROM clock_step"):
            self._steps.setdefault(name, []).append((from_ns, offset_ns))
        self._is_needless = all(
            known is not None and all(self._is_right(known, offset_ns) for _, offset_ns in self._steps.get(name, ()))
            for name, known in self._boots.items()
        )

    def settled(self, operation: int, stream: str, tail: bytes) -> bytes:
        """The tail of a waiting operation as it is sent; if that is another, the queue has it from now on."""
        if self._is_needless or (changed := self._corrected(tail)) is None:
            return tail
        connection = self._connection
        connection.execute("UPDATE operation SET tail = ? WHERE id = ?", (changed, operation))
        connection.execute("UPDATE stream SET bytes = bytes + ? WHERE name = ?", (len(changed) - len(tail), stream))
        return changed

    def _corrected(self, tail: bytes) -> bytes | None:
        """The tail with its true time and a quality; None where it is good, or was corrected before."""
        stamps = _STAMPS.match(tail)
        if stamps is None or (boot := json.loads(stamps[3])) not in self._boots:
            return None
        known, time = self._boots[boot], datetime.fromisoformat(stamps[2].decode())
        offset_ns = self._stamped_with(boot, time, int(stamps[4]))
        if offset_ns is None or (known is not None and self._is_right(known, offset_ns)):
            return None
        quality = Quality.CLOCK_UNKNOWN
        if known is not None and (repaired := _moved(time, known[0] - offset_ns)) is not None:
            quality, time = Quality.CLOCK_REPAIRED, repaired
        CORRECTED.labels(quality).inc()
        # `quality` stands before the stamps, where `_STAMPS` does not match again: no fact is repaired twice.
        begin = f'"quality":"{quality}","time":"{to_rfc3339(time)}",'.encode()
        return stamps[1] + begin + tail[stamps.end(2) + 2 :]

    def _stamped_with(self, boot: str, time: datetime, monotonic_ns: int) -> int | None:
        """What the wall clock was ahead of the monotonic one when it stamped a fact; None when nothing was noted."""
        steps = self._steps.get(boot)
        if not steps:
            return None
        # Where the time is that of the stamping itself, the two tell by what clock.
        own_ns = int(time.timestamp() * 1e6) * 1000 - monotonic_ns
        nearest = min((offset_ns for _, offset_ns in steps), key=lambda offset_ns: abs(offset_ns - own_ns))
        if abs(nearest - own_ns) < _STEP_NS:
            return nearest
        place = bisect_right(steps, monotonic_ns, key=lambda step: step[0])
        return steps[max(place - 1, 0)][1]

    def _is_right(self, known: tuple[int, int], offset_ns: int) -> bool:
        true_ns, error_ns = known
        return abs(true_ns - offset_ns) <= self._tolerance_ns + error_ns


def _boots(connection: sqlite3.Connection) -> dict[str, tuple[int, int] | None]:
    return {
        name: None if true_ns is None else (true_ns, error_ns)
        for name, true_ns, error_ns in connection.execute("SELECT boot_id, true_ns, error_ns FROM boot")
    }


def _moved(time: datetime, by_ns: int) -> datetime | None:
    """`time` moved; None where that is no time the cloud takes."""
    try:
        moved = time + timedelta(microseconds=by_ns // 1000)
    except OverflowError:
        return None
    return moved if EARLIEST <= moved < LATEST else None
