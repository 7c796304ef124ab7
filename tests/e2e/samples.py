"""Whether the store has each sample once, held against the facts that carried them."""

from __future__ import annotations

from sqlalchemy import Connection, text

# One statement, so both counts are of one moment: each number of a telemetry fact is one sample.
_COUNTS = text(
    "SELECT (SELECT count(*) FROM metrics.sample) AS stored, (SELECT count(*) FROM sync.fact f, jsonb_each(f.value) v"
    " WHERE f.data_class = 'telemetry' AND jsonb_typeof(v.value) = 'number') AS sent"
)


def stored_and_sent(connection: Connection) -> tuple[int, int]:
    """Samples in the store, and numbers in the telemetry it took."""
    counts = connection.execute(_COUNTS).one()
    return counts.stored, counts.sent
