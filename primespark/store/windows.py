"""Results of stream windows; a replay overwrites itself, never a later revision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

_KEY = ("rule_id", "group_key", "window_start", "window_end")
# Arrays, as a statement with a parameter for each value of each row costs more to build than to run.
_UPSERT = text("""
    INSERT INTO metrics.window_result AS known
        (rule_id, group_key, window_start, window_end, value, count, kind, revision)
    SELECT * FROM unnest(
        CAST(:rule_id AS text[]), CAST(:group_key AS text[]), CAST(:window_start AS timestamptz[]),
        CAST(:window_end AS timestamptz[]), CAST(:value AS double precision[]), CAST(:count AS bigint[]),
        CAST(:kind AS text[]), CAST(:revision AS integer[])
    )
    ON CONFLICT (rule_id, group_key, window_start, window_end) DO UPDATE
    SET value = excluded.value, count = excluded.count, kind = excluded.kind, revision = excluded.revision
    WHERE excluded.revision >= known.revision
""")
_COLUMNS = (*_KEY, "value", "count", "kind", "revision")


def upsert(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Store results; one with a lower revision than the stored changes nothing."""
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple([row[name] for name in _KEY])
        if key not in newest or row["revision"] >= newest[key]["revision"]:
            newest[key] = row
    if not newest:
        return
    # Sorted: two workers during a rebalance take the rows in the same order, so neither waits for the other.
    ordered = [newest[key] for key in sorted(newest)]
    connection.execute(_UPSERT, {name: [row[name] for row in ordered] for name in _COLUMNS})
