"""Quix Streams' tumbling window."""

from __future__ import annotations

import sys
import tempfile
import uuid
from datetime import timedelta
from typing import Any

from quixstreams import Application
from quixstreams.dataframe.windows import Count, Mean

from benchmarks.stream_peers.report import Run


def main() -> None:
    """Read them all."""
    broker, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    run, records, windows = Run(), 0, 0

    def seen(row: dict[str, Any]) -> float:
        nonlocal records
        run.begin()
        records += 1
        if records == count:
            run.end(records, windows)
            # Its own count of messages does not stop it.
            app.stop()
        value: float = row["cpu_percent"]
        return value

    def closed(_window: Any) -> None:
        nonlocal windows
        windows += 1

    with tempfile.TemporaryDirectory() as folder:
        app = Application(
            broker_address=broker, consumer_group=uuid.uuid4().hex, auto_offset_reset="earliest", state_dir=folder,
            loglevel="WARNING",
        )  # fmt: skip
        topic = app.topic(name, value_deserializer="json", timestamp_extractor=lambda row, *_: row["ts"])
        frame = app.dataframe(topic)
        frame = frame.apply(seen).tumbling_window(timedelta(seconds=60), grace_ms=timedelta(seconds=10))
        frame.agg(count=Count(), mean=Mean()).final().update(closed)
        app.run()


main()
