"""Indexes of samples built anew once the time of a part is over, which makes them smaller by about half.

Samples of many series come in turns. Each goes in the middle of the index, and a full page there is split into two that
are half empty and stay so, since nothing comes between samples of the past.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, text

# Two that pack the same part wait for each other until one is ended as a deadlock.
_LOCK = 7_301_009
_FIND = text("SELECT class, name FROM metrics.part WHERE packed_at IS NULL AND ends <= :ended_by ORDER BY ends, class")
# Ended in the middle, REINDEX leaves the new index, or the old one, behind as invalid.
_LEFT_BEHIND = text(
    "SELECT i.indexrelid::regclass::text FROM pg_index i WHERE NOT i.indisvalid"
    " AND i.indrelid = to_regclass(format('metrics_parts.%I', CAST(:name AS text)))"
)
_DONE = text("UPDATE metrics.part SET packed_at = now() WHERE class = :class AND name = :name")


def pack(connection: Connection, ended_by: datetime) -> list[str]:
    """Pack the parts that ended by a moment and have not been packed; their names, none where somebody else packs.

    Samples that come late and questions go on meanwhile. Ended in the middle, it goes on with the next call.

    Args:
        connection: One that commits after each statement.
        ended_by: What comes after it for the time before is late.
    """
    if not connection.execute(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": _LOCK}).scalar_one():
        return []
    try:
        packed = []
        for retention_class, name in connection.execute(_FIND, {"ended_by": ended_by}).all():
            for index in connection.execute(_LEFT_BEHIND, {"name": name}).scalars().all():
                connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {index}"))
            connection.execute(text(f'REINDEX TABLE CONCURRENTLY metrics_parts."{name}"'))
            connection.execute(_DONE, {"class": retention_class, "name": name})
            packed.append(name)
        return packed
    finally:
        # With its connection the lock is gone too.
        if not connection.invalidated:
            connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _LOCK})
