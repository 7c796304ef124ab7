"""How long samples are kept, by class: what is older is rolled up, then dropped in whole parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, text

from primespark.core.values import EARLIEST
from primespark.store.analytics.plan import DAY, floor

# Who writes samples holds it together with others; see `metrics.ensure_parts`.
_LOCK = 7_301_008
# Behind a question that takes longer, the parts stay until the next time.
_LOCK_TIMEOUT = "2s"


def configure(connection: Connection, prefixes: Mapping[str, Sequence[str]]) -> None:
    """Series made from now on are of the class that has the longest prefix of their metric.

    Args:
        connection: In a transaction.
        prefixes: By class.
    """
    statement = text(
        "UPDATE metrics.retention SET prefixes = CAST(:prefixes AS text[])"
        " WHERE class = :class AND prefixes IS DISTINCT FROM CAST(:prefixes AS text[])"
    )
    for name in sorted(prefixes):
        connection.execute(statement, {"class": name, "prefixes": list(prefixes[name])})


def begin_later(connection: Connection, retention_class: str, moment: datetime) -> datetime:
    """Take no samples of a class any more that are from days before that of `moment`; from when on they are kept.

    It never goes back. Who has written older ones has committed when this returns.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    kept_from: datetime = connection.execute(
        text(
            "UPDATE metrics.retention SET raw_from = greatest(raw_from, CAST(:moment AS timestamptz))"
            " WHERE class = :class RETURNING raw_from"
        ),
        {"class": retention_class, "moment": max(floor(moment, DAY), EARLIEST)},
    ).scalar_one()
    return kept_from


def drop_parts(connection: Connection, retention_class: str) -> list[str]:
    """Drop the parts that hold only samples from before the class begins, all of which are rolled up; their names.

    Raises:
        OperationalError: Of SQLAlchemy: a question still reads them.
    """
    connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
    # Questions hold it before they look at anything, so none has seen less of the rollups than of the samples.
    connection.execute(text("LOCK TABLE metrics.part IN ACCESS EXCLUSIVE MODE"))
    rows = connection.execute(
        text(
            "SELECT name FROM metrics.part JOIN metrics.retention USING (class)"
            " WHERE class = :class AND ends <= raw_from AND NOT EXISTS ("
            "SELECT FROM metrics.dirty JOIN metrics.series USING (series_id)"
            " WHERE series.class = :class AND bucket < ends) ORDER BY starts"
        ),
        {"class": retention_class},
    )
    names = list(rows.scalars())
    for name in names:
        connection.execute(text("SELECT metrics.drop_part(:class, :name)"), {"class": retention_class, "name": name})
    return names
