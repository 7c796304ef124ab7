"""What is known of blobs that go to the cloud, beside the queue of facts and in its transactions."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_SELECT = "SELECT name, sha256, size, stream, attempts, operation, is_there, tail FROM upload"


@dataclass(frozen=True, slots=True)
class Upload:
    """A blob and its fact.

    Attributes:
        name: Of its file here.
        stream: Of the fact.
        attempts: So often the cloud failed on it.
        operation: Place of the fact in the queue; 0 while it waits for the blob.
        is_there: Whether the cloud has the blob.
    """

    name: str
    sha256: str
    size: int
    stream: str
    attempts: int
    operation: int
    is_there: bool


@dataclass(frozen=True, slots=True)
class UploadTotals:
    """How many blobs the cloud lacks, and the bytes of all that are kept."""

    waiting: int
    bytes: int


def add(connection: sqlite3.Connection, name: str, sha256: str, size: int, stream: str, tail: bytes) -> None:
    """Note a blob whose file is on the disk, with the fact that names it."""
    connection.execute(
        "INSERT INTO upload (name, sha256, size, stream, tail) VALUES (?, ?, ?, ?, ?)",
        (name, sha256, size, stream, tail),
    )


def held(connection: sqlite3.Connection) -> tuple[int, int]:
    """Facts that are not in the queue yet, and the bytes of all blobs with them."""
    facts, size = connection.execute(
        "SELECT count(*) FILTER (WHERE NOT operation), total(size + length(tail)) FROM upload"
    ).fetchone()
    return int(facts), int(size)


def totals(connection: sqlite3.Connection) -> UploadTotals:
    """What waits."""
    waiting, size = connection.execute(
        "SELECT count(*) FILTER (WHERE NOT is_there), total(size) FROM upload"
    ).fetchone()
    return UploadTotals(int(waiting), int(size))


def page(connection: sqlite3.Connection, after: str, limit: int) -> list[Upload]:
    """Uploads by name, after one."""
    rows = connection.execute(_SELECT + " WHERE name > ? ORDER BY name LIMIT ?", (after, limit))
    return [_of(row) for row in rows.fetchall()]


def next_to_send(connection: sqlite3.Connection) -> Upload | None:
    """The blob that goes next: those that facts of a batch wait for first, those the cloud fails on last."""
    row = connection.execute(_SELECT + " WHERE NOT is_there ORDER BY NOT operation, attempts, id LIMIT 1").fetchone()
    return None if row is None else _of(row)


def read(connection: sqlite3.Connection, name: str) -> tuple[Upload, bytes] | None:
    """An upload and its fact as the queue takes it."""
    row = connection.execute(_SELECT + " WHERE name = ?", (name,)).fetchone()
    return None if row is None else (_of(row), row[-1])


def names(connection: sqlite3.Connection) -> set[str]:
    """Of the files that are needed."""
    return {name for (name,) in connection.execute("SELECT name FROM upload")}


def mark_there(connection: sqlite3.Connection, name: str) -> None:
    """The cloud has the blob."""
    connection.execute("UPDATE upload SET is_there = 1 WHERE name = ?", (name,))


def mark_queued(connection: sqlite3.Connection, name: str, operation: int) -> None:
    """The fact has its place in the queue, and its content there."""
    connection.execute("UPDATE upload SET operation = ?, tail = x'' WHERE name = ?", (operation, name))


def count_attempt(connection: sqlite3.Connection, name: str) -> None:
    """The cloud failed on it."""
    connection.execute("UPDATE upload SET attempts = attempts + 1 WHERE name = ?", (name,))


def forget(connection: sqlite3.Connection, name: str) -> None:
    """It is not to be sent."""
    connection.execute("DELETE FROM upload WHERE name = ?", (name,))


def forget_sent(connection: sqlite3.Connection) -> None:
    """Facts have left the queue, in this transaction, since places are given anew: their blobs are not needed here."""
    connection.execute(
        "DELETE FROM upload WHERE operation AND NOT EXISTS (SELECT 1 FROM operation WHERE id = upload.operation)"
    )


def named_by(connection: sqlite3.Connection, operations: Sequence[int]) -> list[str]:
    """The blobs that these facts name, one for each that does."""
    tails = connection.execute(
        "SELECT tail FROM operation WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(operations)),)
    )
    facts = (json.loads(b"{" + tail) for (tail,) in tails.fetchall() if b'"blob"' in tail)
    return [str(fact["blob"]) for fact in facts if "blob" in fact]


def send_again(connection: sqlite3.Connection, operations: Sequence[int]) -> list[str]:
    """The cloud may lack the blobs of these facts: their names, of those that are here still."""
    rows = connection.execute(
        "UPDATE upload SET is_there = 0 WHERE operation IN (SELECT value FROM json_each(?)) RETURNING name",
        (json.dumps(list(operations)),),
    )
    return [name for (name,) in rows.fetchall()]


def _of(row: tuple[Any, ...]) -> Upload:
    name, sha256, size, stream, attempts, operation, is_there, _ = row
    return Upload(name, sha256, size, stream, attempts, operation, bool(is_there))
