"""librdkafka alone: messages are read and not looked at."""

from __future__ import annotations

import sys
import uuid

from confluent_kafka import Consumer

from benchmarks.stream_peers.report import Run

_MOST = 20_000


def main() -> None:
    """Read them all."""
    broker, topic, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    consumer = Consumer(
        {"bootstrap.servers": broker, "group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"}
    )  # fmt: skip
    consumer.subscribe([topic])
    run, records = Run(), 0
    while records < count:
        messages = consumer.consume(_MOST, 1.0)
        if messages:
            run.begin()
            records += len(messages)
    run.end(records, 0)
    consumer.close()


main()
