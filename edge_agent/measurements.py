"""What a device measures of itself, now (psutil) or as it was once recorded."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.resources import files
from itertools import cycle, islice

import psutil

RECORDING = "_data/telemetry_recording.csv"
RECORDING_INTERVAL = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One look at the device: `time` and numbers by name."""

    time: datetime
    values: dict[str, float]


def begin_measuring() -> None:
    """Set the point from which the first `measure` counts processor time."""
    psutil.cpu_percent(interval=None)


def measure() -> dict[str, float]:
    """The device's load since the last call, in percent, and its run queue."""
    load_1m, load_5m, _ = psutil.getloadavg()
    values = {
        "cpu_percent": psutil.cpu_percent(interval=None),
        "memory_percent": psutil.virtual_memory().percent,
        "swap_percent": psutil.swap_memory().percent,
        "disk_percent": psutil.disk_usage("/").percent,
        "load_1m": load_1m,
        "load_5m": load_5m,
    }
    # Only where the machine has sensors; psutil lacks the call elsewhere.
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    hottest = max((sensor.current for group in sensors.values() for sensor in group), default=None)
    return values if hottest is None else {**values, "temperature_celsius": float(hottest)}


def recorded_hour(end: datetime) -> Iterator[Measurement]:
    """The shipped recording laid over the hour that ends at `end`, both ends included, repeated as often as needed."""
    count = timedelta(hours=1) // RECORDING_INTERVAL + 1
    start = end - timedelta(hours=1)
    for index, values in enumerate(islice(cycle(_read_recording()), count)):
        yield Measurement(start + index * RECORDING_INTERVAL, values)


def _read_recording() -> list[dict[str, float]]:
    text = files("edge_agent").joinpath(RECORDING).read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return [{name: float(value) for name, value in row.items()} for row in rows]


def _record(rows: int) -> None:
    """Write a recording of this machine to standard output: `python -m edge_agent.measurements ROWS`."""
    begin_measuring()
    deadline, writer = time.monotonic(), None
    for _ in range(rows):
        deadline += RECORDING_INTERVAL.total_seconds()
        time.sleep(max(0.0, deadline - time.monotonic()))
        values = measure()
        if writer is None:
            writer = csv.DictWriter(sys.stdout, list(values), lineterminator="\n")
            writer.writeheader()
        writer.writerow(values)
        sys.stdout.flush()


if __name__ == "__main__":
    _record(int(sys.argv[1]))
