"""The device's real process, which kills itself at a point of its push cycle.

What the program knows nothing of is put around its own functions here, in the process that is to die; a name that is
gone fails at once. Each enqueue that was answered is noted in the file NOTES, as a line of JSON; the last line, once
there, says that the point was reached.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from edge_agent import database_file
from edge_agent.bandwidth import Bandwidth
from edge_agent.gate_client import GateClient
from edge_agent.outgoing import Outgoing
from edge_agent.queue import NewFact, OfflineQueue


class Point(StrEnum):
    """Where it dies: between the lines of the picture in docs/sync.md, and in the middle of each."""

    FACTS_WRITTEN = "facts are written, not committed"
    FACTS_COMMITTED = "facts are committed, nobody was told"
    BATCH_WRITTEN = "the batch is written, not committed"
    BATCH_COMMITTED = "the batch is committed, not sent"
    HALF_SENT = "half of the request is sent"
    SENT = "the request is sent, no answer read"
    ANSWERED = "the answer is read, not taken"
    ACKNOWLEDGEMENT_WRITTEN = "the acknowledgement is written, not committed"
    ACKNOWLEDGED = "the acknowledgement is committed"


REACHED = "reached"
# What a transaction does, and the points before and after its commit.
_TRANSACTIONS: dict[str, tuple[type, Point, Point]] = {
    "take": (OfflineQueue, Point.FACTS_WRITTEN, Point.FACTS_COMMITTED),
    "_fix": (Outgoing, Point.BATCH_WRITTEN, Point.BATCH_COMMITTED),
    "_acknowledge": (Outgoing, Point.ACKNOWLEDGEMENT_WRITTEN, Point.ACKNOWLEDGED),
}


class Doom:
    """Counts how often the point is come by, and ends the process there."""

    def __init__(self, point: Point, times: int, notes: Path) -> None:
        self._point, self._times = point, times
        self._notes = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        # Points before and after the commit of the transaction under way.
        self.before: set[Point] = set()
        self.after: set[Point] = set()

    def note(self, *entry: Any) -> None:
        """Keep a line, which outlives the kill."""
        os.write(self._notes, json.dumps(entry).encode() + b"\n")

    def pass_by(self, *points: Point) -> None:
        """Die if it is one of these, for the last of the times."""
        if self._point in points:
            self._times -= 1
            if self._times == 0:
                self.note(REACHED)
                os.kill(os.getpid(), signal.SIGKILL)


def surround(doom: Doom) -> None:
    """Put the points around the program's functions."""

    class Connection(sqlite3.Connection):
        def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
            if statement != "COMMIT":
                return super().execute(statement, *parameters)
            doom.pass_by(*doom.before)
            cursor = super().execute(statement)
            after, doom.before, doom.after = doom.after, set(), set()
            doom.pass_by(*after)
            return cursor

    class Module:
        """`sqlite3` as the program's file module sees it."""

        connect = functools.partial(sqlite3.connect, factory=Connection)

        def __getattr__(self, name: str) -> Any:
            return getattr(sqlite3, name)

    vars(database_file)["sqlite3"] = Module()
    for name, (owner, before, after) in _TRANSACTIONS.items():
        _surround_work(doom, owner, name, before, after)
    _surround_requests(doom)
    _note_answers(doom)


def _surround_work(doom: Doom, owner: type, name: str, before: Point, after: Point) -> None:
    work: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(work)
    def surrounded(*args: Any) -> Any:
        answer = work(*args)
        doom.before.add(before)
        doom.after.add(after)
        return answer

    setattr(owner, name, surrounded)


def _surround_requests(doom: Doom) -> None:
    paced, push = Bandwidth.paced, GateClient.push

    async def in_halves(self: Bandwidth, body: bytes) -> AsyncIterator[bytes]:
        for half in (body[: len(body) // 2], body[len(body) // 2 :]):
            async for piece in paced(self, half):
                yield piece
            # Asked for more: what was given is with the kernel, which sends it whatever becomes of the process.
            doom.pass_by(Point.HALF_SENT if half != body[len(body) // 2 :] else Point.SENT)

    async def pushed(self: GateClient, batch: Any) -> Any:
        answer = await push(self, batch)
        doom.pass_by(Point.ANSWERED)
        return answer

    Bandwidth.paced = in_halves  # type: ignore[method-assign,assignment]
    GateClient.push = pushed  # type: ignore[method-assign]


def _note_answers(doom: Doom) -> None:
    enqueue = OfflineQueue.enqueue

    async def noted(self: OfflineQueue, facts: Sequence[NewFact], once: Sequence[str] | None = None) -> list[int]:
        seqs = await enqueue(self, facts, once)
        for fact, seq in zip(facts, seqs, strict=True):
            doom.note(fact.stream or fact.data_class.value, seq, fact.value)
        return seqs

    OfflineQueue.enqueue = noted  # type: ignore[method-assign]


def run(point: Point, times: int, notes: Path, environment: dict[str, str], log: Path) -> None:
    """`primespark edge` in this process, until it dies."""
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    surround(Doom(point, times, notes))
    sys.argv = ["primespark", "edge"]
    runpy.run_module("primespark.cli.main", run_name="__main__")
