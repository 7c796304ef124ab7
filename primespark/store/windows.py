"""Results of stream windows; a replay overwrites itself, never a later revision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from primespark.store.schema import window_result

_KEY = ("rule_id", "group_key", "window_start", "window_end")


def upsert(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Store results; one with a lower revision than the stored changes nothing."""
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in _KEY)
        if key not in newest or row["revision"] >= newest[key]["revision"]:
            newest[key] = row
    if not newest:
        return
    # Sorted: two workers during a rebalance take the rows in the same order, so neither waits for the other.
    statement = insert(window_result).values([newest[key] for key in sorted(newest)])
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=list(_KEY),
            set_={name: statement.excluded[name] for name in ("value", "count", "kind", "revision")},
            where=statement.excluded.revision >= window_result.c.revision,
        )
    )
