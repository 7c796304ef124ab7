"""The device's real process, which kills itself at a point of its push cycle.

What the program knows nothing of is put around its own functions here, in the process that is to die; a name that is
gone fails at once. Each enqueue that was answered is noted.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from edge_agent import database_file
from edge_agent.bandwidth import Bandwidth
from edge_agent.gate_client import GateClient
from edge_agent.outgoing import Outgoing
from edge_agent.queue import NewFact, OfflineQueue
from tests.integration.crash.doom import Doom


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


# What a transaction does, and the points before and after its commit.
_TRANSACTIONS: dict[str, tuple[type, Point, Point]] = {
    "take": (OfflineQueue, Point.FACTS_WRITTEN, Point.FACTS_COMMITTED),
    "_fix": (Outgoing, Point.BATCH_WRITTEN, Point.BATCH_COMMITTED),
    "_acknowledge": (Outgoing, Point.ACKNOWLEDGEMENT_WRITTEN, Point.ACKNOWLEDGED),
}


@dataclass(slots=True)
class Commit:
    """Points before and after the commit of the transaction under way."""

    before: set[Point] = field(default_factory=set)
    after: set[Point] = field(default_factory=set)


def surround(point: Point, times: int, notes: Path) -> None:
    """Put the points around the program's functions."""
    doom, commit = Doom(point, times, notes), Commit()

    class Connection(sqlite3.Connection):
        def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
            if statement != "COMMIT":
                return super().execute(statement, *parameters)
            doom.pass_by(*commit.before)
            cursor = super().execute(statement)
            doom.pass_by(*commit.after)
            commit.before.clear()
            commit.after.clear()
            return cursor

    class Module:
        """`sqlite3` as the program's file module sees it."""

        connect = functools.partial(sqlite3.connect, factory=Connection)

        def __getattr__(self, name: str) -> Any:
            return getattr(sqlite3, name)

    vars(database_file)["sqlite3"] = Module()
    for name, (owner, before, after) in _TRANSACTIONS.items():
        _surround_work(commit, owner, name, before, after)
    _surround_requests(doom)
    _note_answers(doom)


def _surround_work(commit: Commit, owner: type, name: str, before: Point, after: Point) -> None:
    work: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(work)
    def surrounded(*args: Any) -> Any:
        answer = work(*args)
        commit.before.add(before)
        commit.after.add(after)
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
