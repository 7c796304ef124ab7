"""A plain Faust agent with a windowed table."""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from datetime import timedelta
from typing import Any

import faust

from benchmarks.stream_peers.report import Run


def main() -> None:
    """Read them all."""
    broker, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    app = faust.App(
        f"peer-{uuid.uuid4().hex[:8]}", broker=f"kafka://{broker}", store="memory://", web_enabled=False,
        topic_disable_leader=True, consumer_auto_offset_reset="earliest", datadir=tempfile.mkdtemp(),
        topic_partitions=3, broker_max_poll_records=5000, stream_wait_empty=False, worker_redirect_stdouts=False,
    )  # fmt: skip
    topic = app.topic(name, value_serializer="json")
    minute, kept = timedelta(seconds=60), timedelta(days=3650)
    sums = app.Table("sums", default=float, partitions=3).tumbling(minute, expires=kept).relative_to_stream()
    counts = app.Table("counts", default=int, partitions=3).tumbling(minute, expires=kept).relative_to_stream()
    run, records = Run(), 0
    starts: set[Any] = set()

    @app.agent(topic)
    async def add_up(stream: Any) -> None:
        nonlocal records
        async for row in stream:
            run.begin()
            sums[row["device_id"]] += row["cpu_percent"]
            counts[row["device_id"]] += 1
            starts.add((row["device_id"], row["ts"] // 60_000))
            records += 1
            if records == count:
                run.end(records, len(starts))
                # A stop would take longer than the run.
                os._exit(0)

    faust.Worker(app, loglevel="ERROR").execute_from_commandline()


main()
