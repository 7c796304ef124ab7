"""A queue at work, for its writes to be traced: FILE LIVES SYNCHRONOUS. It says what it has answered for.

Each line, written at once: `enqueued SEQ NUMBER`, `batch SEQ DIGEST`, `acknowledging SEQ`, `acknowledged SEQ`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

from edge_agent import database_file
from edge_agent.database import Database
from edge_agent.outgoing import Outgoing
from edge_agent.queue import NewFact, OfflineQueue
from primespark.core.settings import OfflineSettings
from primespark.sync.records import DataClass, PushResponse

LOG_BYTES = 32 * 1024
ROUNDS, FACTS, BATCH = 6, 3, 10


def say(*words: object) -> None:
    """One write, which the trace has in its place among those to the disk."""
    os.write(sys.stdout.fileno(), " ".join(map(str, words)).encode() + b"\n")


async def live(file: Path, first: int) -> int:
    """Enqueue and send, then close the file."""
    database = Database(file, LOG_BYTES)
    queue = OfflineQueue(database, OfflineSettings(minimum_free_disk_bytes=0))
    outgoing = Outgoing(database, "edge-1", BATCH, 100_000)
    # So seldom as it is otherwise, the file itself would be written to at the end only.
    await database.run(lambda connection: connection.execute("PRAGMA wal_autocheckpoint = 12").fetchall())
    await outgoing.begin_epoch(1)
    for number in range(first, first + ROUNDS):
        facts = [NewFact(DataClass.TELEMETRY, {"n": number, "text": "x" * 900}) for _ in range(FACTS)]
        for seq in await queue.enqueue(facts):
            say("enqueued", seq, number)
        if number % 2 and (batch := await outgoing.next_batch()) is not None:
            say("batch", batch.batch_seq, batch.headers["Content-Digest"])
            if number % 4 == 1:
                say("acknowledging", batch.batch_seq)
                await outgoing.acknowledge(batch.batch_seq, _answer_to(batch.batch_seq))
                say("acknowledged", batch.batch_seq)
    database.close()
    return first + ROUNDS


def _answer_to(batch_seq: int) -> PushResponse:
    return PushResponse(
        status="applied", ack_batch_seq=batch_seq, results=[], server_hlc="1790000000000-0000-cloud", server_epoch=1
    )


def _synchronise(level: str) -> None:
    """Have the file opened with another level than the program's own."""

    class Connection(sqlite3.Connection):
        def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
            return super().execute(statement.replace("synchronous = FULL", f"synchronous = {level}"), *parameters)

    class Module:
        def connect(self, *arguments: Any, **options: Any) -> sqlite3.Connection:
            return sqlite3.connect(*arguments, **options, factory=Connection)

        def __getattr__(self, name: str) -> Any:
            return getattr(sqlite3, name)

    vars(database_file)["sqlite3"] = Module()


if __name__ == "__main__":
    if sys.argv[3] != "FULL":
        _synchronise(sys.argv[3])
    number = 1
    for _ in range(int(sys.argv[2])):
        number = asyncio.run(live(Path(sys.argv[1]), number))
