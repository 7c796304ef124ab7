"""The commands a device was sent, in its database: `received`, then `started`, then `answered`.

Each state is on disk before what follows it. An answered command is remembered, so that one sent again is not run
again; it is answered again, since the cloud may lack the answer.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from primespark.sync.records import Command, CommandResult

# The cloud holds at most a hundred that are not answered, and gets the answers in order.
REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Received:
    """A command that is to be run.

    Attributes:
        deadline_ms: Until when, by this device's clock.
    """

    command_id: str
    name: str
    arguments: dict[str, Any]
    deadline_ms: int


def receive(connection: sqlite3.Connection, command: Command, now_ms: int) -> bool:
    """Keep a command; False where it is known. One that is answered will be answered again."""
    deadline_ms = now_ms + int(command.expires_in_s * 1000)
    is_new = connection.execute(
        "INSERT OR IGNORE INTO command (command_id, name, arguments, deadline_ms, state)"
        " VALUES (?, ?, ?, ?, 'received')",
        (command.command_id, command.name, json.dumps(command.arguments), deadline_ms),
    ).rowcount
    if not is_new:
        again = "UPDATE command SET is_told = 0 WHERE command_id = ? AND state = 'answered'"
        return connection.execute(again, (command.command_id,)).rowcount == 1
    connection.execute(
        "DELETE FROM command WHERE state = 'answered' AND is_told AND position <= ?",
        (connection.execute("SELECT max(position) FROM command").fetchone()[0] - REMEMBERED,),
    )
    return True


def first_received(connection: sqlite3.Connection) -> Received | None:
    """The oldest command that nothing was done about."""
    row = connection.execute(
        "SELECT command_id, name, arguments, deadline_ms FROM command WHERE state = 'received'"
        " ORDER BY position LIMIT 1"
    ).fetchone()
    return None if row is None else Received(row[0], row[1], json.loads(row[2]), row[3])


def start(connection: sqlite3.Connection, command_id: str) -> None:
    """Note that a command is about to be run."""
    connection.execute("UPDATE command SET state = 'started' WHERE command_id = ?", (command_id,))


def started(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Identity and name of the commands that were begun and are not answered."""
    return connection.execute("SELECT command_id, name FROM command WHERE state = 'started'").fetchall()


def begin_again(connection: sqlite3.Connection, command_id: str) -> None:
    """As if a command had just come."""
    connection.execute("UPDATE command SET state = 'received' WHERE command_id = ?", (command_id,))


def answer(connection: sqlite3.Connection, result: CommandResult) -> None:
    """Keep what became of a command; it is not told yet."""
    connection.execute(
        "UPDATE command SET state = 'answered', answer = ?, is_told = 0 WHERE command_id = ?",
        (result.model_dump_json(), result.command_id),
    )


def untold(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    """Answers that are to be told, in the order their commands came."""
    rows = connection.execute("SELECT answer FROM command WHERE state = 'answered' AND NOT is_told ORDER BY position")
    return [json.loads(text) for (text,) in rows.fetchall()]


def mark_told(connection: sqlite3.Connection) -> None:
    """Note that all answers there are were told."""
    connection.execute("UPDATE command SET is_told = 1 WHERE state = 'answered' AND NOT is_told")
