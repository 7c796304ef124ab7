"""Bytewax `fold_window`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.operators import windowing
from bytewax.testing import TestingSink, run_main

from benchmarks.stream_peers.report import Run

_State = tuple[int, float]


def main() -> None:
    """Read them all."""
    broker, topic, _count = sys.argv[1:4]
    run, records = Run(), 0
    windows: list[Any] = []

    def keyed(message: Any) -> tuple[str, dict[str, Any]]:
        nonlocal records
        run.begin()
        records += 1
        row = orjson.loads(message.value)
        return row["device_id"], row

    def fold(state: _State, row: dict[str, Any]) -> _State:
        return state[0] + 1, state[1] + row["cpu_percent"]

    flow = Dataflow("peer")
    messages = op.input("in", flow, KafkaSource([broker], [topic], tail=False, batch_size=5000))
    rows = op.map("keyed", messages, keyed)
    out = windowing.fold_window(
        "fold", rows,
        windowing.EventClock(
            ts_getter=lambda row: datetime.fromtimestamp(row["ts"] / 1000, UTC),
            wait_for_system_duration=timedelta(seconds=10),
        ),
        windowing.TumblingWindower(length=timedelta(seconds=60), align_to=datetime(2026, 1, 1, tzinfo=UTC)),
        lambda: (0, 0.0), fold, lambda one, other: (one[0] + other[0], one[1] + other[1]),
    )  # fmt: skip
    op.output("out", out.down, TestingSink(windows))
    run_main(flow)
    run.end(records, len(windows))


main()
