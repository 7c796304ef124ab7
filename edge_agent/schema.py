"""Tables of the device's database, and the small values beside them."""

from __future__ import annotations

import sqlite3

# An operation is a fact that is not acknowledged; `tail` is its JSON without stream and seq, which a new epoch changes.
# At most one batch is under way. A document is `dirty` while the cloud lacks a write of this device.
_FIRST = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE stream (
    name TEXT PRIMARY KEY, last_seq INTEGER NOT NULL DEFAULT 0, acknowledged_seq INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0, pending INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE operation (id INTEGER PRIMARY KEY, stream TEXT NOT NULL, seq INTEGER NOT NULL, tail BLOB NOT NULL);
CREATE TABLE lost (
    id INTEGER PRIMARY KEY, stream TEXT NOT NULL, seq_from INTEGER NOT NULL, seq_to INTEGER NOT NULL,
    reason TEXT NOT NULL
);
CREATE TABLE batch (
    batch_seq INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, last_lost INTEGER NOT NULL, last_operation INTEGER NOT NULL,
    documents TEXT NOT NULL, lost INTEGER NOT NULL, records INTEGER NOT NULL, headers TEXT NOT NULL, body BLOB NOT NULL
);
CREATE TABLE dead_letter (
    id INTEGER PRIMARY KEY, stream TEXT NOT NULL, seq INTEGER NOT NULL, code TEXT NOT NULL, record TEXT NOT NULL,
    at TEXT NOT NULL
);
CREATE TABLE document (
    scope TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, vv TEXT NOT NULL, leaf_hlc TEXT NOT NULL,
    dirty INTEGER NOT NULL, PRIMARY KEY (scope, key)
) WITHOUT ROWID;
CREATE TABLE remembered (key TEXT PRIMARY KEY) WITHOUT ROWID
"""

# Beside a document with a write of this device that the cloud has not judged yet, `theirs` is what the cloud holds.
_CONFLICTS = """
ALTER TABLE document ADD COLUMN written_hlc TEXT NOT NULL DEFAULT '';
ALTER TABLE document ADD COLUMN theirs TEXT
"""

# Boots of this machine with the true time on their monotonic clock, null without contact; and how the wall clock stood
# against it: a row when it was set.
_CLOCK = """
CREATE TABLE boot (id INTEGER PRIMARY KEY, boot_id TEXT NOT NULL UNIQUE, true_ns INTEGER, error_ns INTEGER);
CREATE TABLE clock_step (
    id INTEGER PRIMARY KEY, boot_id TEXT NOT NULL, from_ns INTEGER NOT NULL, offset_ns INTEGER NOT NULL
)
"""

# An operation's id has its lane in its upper bits, see `streams`; lane 5 is normal priority. A batch names its records
# in order: ["lost", id], ["document", scope, key, counter], ["operation", id]. One that was given up, though the cloud
# may have it, is kept until its number is acknowledged.
_PRIORITIES = """
ALTER TABLE stream ADD COLUMN rank INTEGER NOT NULL DEFAULT 2;
ALTER TABLE stream ADD COLUMN is_behind INTEGER NOT NULL DEFAULT 0;
CREATE TABLE fixed (
    batch_seq INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, records TEXT NOT NULL, headers TEXT NOT NULL,
    body BLOB NOT NULL, attempts INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE given_up (
    batch_seq INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, records TEXT NOT NULL, headers TEXT NOT NULL,
    body BLOB NOT NULL
);
INSERT INTO fixed (batch_seq, epoch, records, headers, body) SELECT batch_seq, epoch, (
    SELECT json_group_array(json(entry)) FROM (
        SELECT * FROM (SELECT json_array('lost', id) AS entry FROM lost WHERE id <= last_lost ORDER BY id)
        UNION ALL
        SELECT json_array('document', value ->> 0, value ->> 1, value ->> 2) FROM json_each(documents)
        UNION ALL
        SELECT * FROM (
            SELECT json_array('operation', id + (5 << 56)) FROM operation WHERE id <= last_operation ORDER BY id
        )
    )
), headers, body FROM batch;
DROP TABLE batch;
ALTER TABLE fixed RENAME TO batch;
UPDATE operation SET id = id + (5 << 56);
UPDATE stream SET acknowledged_seq = last_seq - pending - (
    SELECT coalesce(sum(seq_to - seq_from + 1), 0) FROM lost WHERE lost.stream = stream.name
)
"""

# The reading from the beginning in which the cloud last showed a document, or the device wrote it.
_READINGS = "ALTER TABLE document ADD COLUMN seen INTEGER NOT NULL DEFAULT 0"

# A command is `received`, `started`, then `answered`; `is_told`: its answer is in the queue.
_COMMANDS = """
CREATE TABLE command (
    position INTEGER PRIMARY KEY, command_id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, arguments TEXT NOT NULL,
    deadline_ms INTEGER NOT NULL, state TEXT NOT NULL, answer TEXT, is_told INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX command_to_do ON command (position) WHERE NOT is_told
"""

# A timestamp given before the time was known, with when it was; or what had been seen by then.
_STAMPS = """
CREATE TABLE early_stamp (id INTEGER PRIMARY KEY, hlc TEXT, seen TEXT, boot_id TEXT, monotonic_ns INTEGER)
"""

# A blob that has to be at the cloud before the fact that names it goes. Until it is, `tail` is that fact; from then on
# `operation` is its place in the queue, and 0 while it has none. The bytes are kept until the fact is acknowledged.
_UPLOADS = """
CREATE TABLE upload (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL, size INTEGER NOT NULL,
    stream TEXT NOT NULL, tail BLOB NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    operation INTEGER NOT NULL DEFAULT 0, is_there INTEGER NOT NULL DEFAULT 0
)
"""

# What takes a file from each version to the next, the first from none. A version that was published never changes.
STEPS = (_FIRST, _CONFLICTS, _CLOCK, _PRIORITIES, _READINGS, _COMMANDS, _STAMPS, _UPLOADS)
VERSION = len(STEPS)
# Name of a small value: when the cloud was found restored from a backup.
RESTORED_AT = "cloud_restored_at"


def upgrade(connection: sqlite3.Connection) -> None:
    """Bring a file of any older version to `VERSION`, all of it or nothing."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    steps = "; ".join(STEPS[version:])
    connection.executescript(f"BEGIN IMMEDIATE; {steps}; PRAGMA user_version = {VERSION}; COMMIT")


def read_meta(connection: sqlite3.Connection, name: str) -> str | None:
    """The value kept under `name`."""
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def read_number(connection: sqlite3.Connection, name: str, default: int = 0) -> int:
    """The number kept under `name`."""
    value = read_meta(connection, name)
    return default if value is None else int(value)


def write_meta(connection: sqlite3.Connection, name: str, value: str | int) -> None:
    """Keep `value` under `name`."""
    connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (name, str(value)))


def forget_meta(connection: sqlite3.Connection, name: str) -> None:
    """Keep nothing under `name`."""
    connection.execute("DELETE FROM meta WHERE name = ?", (name,))
