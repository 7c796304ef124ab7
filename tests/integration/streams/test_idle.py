"""Partitions that are silent, on Apache Kafka: after `idle_timeout_seconds` they hold no result back, by any clock."""

from __future__ import annotations

import shutil
import subprocess
from itertools import count
from pathlib import Path

import pytest

from tests.helpers import wait_until
from tests.integration.streams.stage import START_MS, Sent, Stage

MINUTE_MS = 60_000
IDLE_S = 8
# Between two looks at the clock, and from a result to the store.
SLACK_S = 6

on_apache_kafka = pytest.mark.parametrize("broker", ["apache_kafka"], indirect=True)


@pytest.fixture
def waiting(stage: Stage) -> Stage:
    """Its rule has one watermark over all partitions, of which the third never gets a record."""
    window = {
        "watermark_scope": "partition", "idle_timeout_seconds": IDLE_S, "max_out_of_orderness_seconds": 0,
        "allowed_lateness_seconds": 0,
    }  # fmt: skip
    stage.write_rules(window, aggregation_function="count")
    return stage


class Feed:
    """Publishes rows of one device a partition, each a millisecond after the last one of its minute."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._moments = count(START_MS)

    def say(self, **minutes: int) -> None:
        """A row of each device, `a` to `c` of partition 0 to 2, in its minute."""
        moment = next(self._moments)
        self._stage.publish(
            Sent.row({"device_id": device, "ts": moment + minute * MINUTE_MS}, "abc".index(device))
            for device, minute in minutes.items()
        )


def minutes_told(stage: Stage) -> set[tuple[str, int]]:
    """Device and minute of each window that fired; none was revised, as a row that came late is left out."""
    return {(device, (start - START_MS) // MINUTE_MS) for device, start in stage.windows()}


@pytest.mark.prove(only=True)
@on_apache_kafka
def test_a_partition_that_never_gets_a_record_holds_results_back_for_the_timeout_and_no_longer(waiting: Stage) -> None:
    worker, feed = waiting.start_ready(), Feed(waiting)
    feed.say(a=0, b=0)

    def is_told() -> bool:
        feed.say(a=1, b=1)
        return bool(minutes_told(waiting))

    feed.say(a=1, b=1)
    wait_until(lambda: worker.counter("events") >= 4)
    assert minutes_told(waiting) == set()
    wait_until(is_told, IDLE_S + SLACK_S)
    assert minutes_told(waiting) == {("a", 0), ("b", 0)}
    # It counts again from its first record on, which is late for what went out without it.
    feed.say(c=0)
    feed.say(c=1)
    feed.say(a=2, b=2, c=2)
    wait_until(lambda: minutes_told(waiting) == {(device, minute) for device in "ab" for minute in (0, 1)} | {("c", 1)})
    assert worker.counter("late_dropped") == 1


class WallClock:
    """The wall clock of processes started in its `environment`, which can be set while they run."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.step("+0")
        shown = subprocess.run(["faketime", "-f", "+0", "env"], check=True, capture_output=True, text=True).stdout
        preloaded = next(line for line in shown.splitlines() if line.startswith("LD_PRELOAD=")).partition("=")[2]
        self.environment = {
            "LD_PRELOAD": preloaded, "FAKETIME_TIMESTAMP_FILE": str(self._file), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip

    def step(self, offset: str) -> None:
        """From now on it is ahead by this, such as `+3600`."""
        self._file.write_text(f"{offset}\n")


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    if shutil.which("faketime") is None:
        pytest.skip("no faketime (Debian: faketime)")
    return WallClock(tmp_path)


@pytest.mark.prove(only=True)
@on_apache_kafka
def test_a_step_of_the_wall_clock_makes_no_partition_idle_and_keeps_none_from_it(
    waiting: Stage, clock: WallClock
) -> None:
    worker, feed = waiting.start_ready(environment=clock.environment), Feed(waiting)

    def is_told(minute: int, **minutes: int) -> bool:
        feed.say(**minutes)
        return ("a", minute) in minutes_told(waiting)

    feed.say(a=0, b=0)
    # Partition 0 goes ahead, so what fires is as far as partition 1 is.
    wait_until(lambda: is_told(0, a=9, b=1), IDLE_S + SLACK_S)
    before = {("a", 0), ("b", 0)}
    assert minutes_told(waiting) == before

    lag_s = worker.metric("watermark_lag_seconds")
    clock.step("+3600")
    wait_until(lambda: worker.metric("watermark_lag_seconds") > lag_s + 3000)
    feed.say(a=10)
    # Behind whatever the step made it say.
    feed.say(a=11, b=2)
    wait_until(lambda: ("b", 1) in minutes_told(waiting))
    assert minutes_told(waiting) == before | {("b", 1)}

    clock.step("-3600")
    wait_until(lambda: worker.metric("watermark_lag_seconds") < lag_s - 3000)
    # Partition 1 says nothing any more, and is idle in time.
    wait_until(lambda: is_told(11, a=12), IDLE_S + SLACK_S)
    assert worker.counter("late_dropped") == 0
    assert {minute for device, minute in minutes_told(waiting) if device == "b"} == {0, 1, 2}
