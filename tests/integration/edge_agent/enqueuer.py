"""A process that enqueues until it is killed, and prints each seq once the queue has answered for it."""

from __future__ import annotations

import sys
from pathlib import Path

from edge_agent.database import Database
from edge_agent.queue import NewFact, OfflineQueue
from primespark.core.settings import OfflineSettings
from primespark.sync.records import DataClass

STREAMS = ("telemetry", "labels")


def main(path: Path) -> None:
    queue = OfflineQueue(Database(path), OfflineSettings())
    number = 0
    while True:
        futures = [
            (stream, queue.submit([NewFact(DataClass.TELEMETRY, {"n": number + i}, stream=stream) for i in range(3)]))
            for stream in STREAMS
        ]
        number += 3
        for stream, future in futures:
            for seq in future.result():
                sys.stdout.write(f"{stream} {seq}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
