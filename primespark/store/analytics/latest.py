"""The newest value of each group of series, without a look at the samples."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from sqlalchemy import Connection, text

from primespark.store.analytics.queries import group_key
from primespark.store.analytics.selection import CHOSEN, Filter, select_series
from primespark.store.analytics.series import Series, to_microseconds

# Of several at one moment the one that came last.
_LATEST = text(
    f"{CHOSEN} SELECT DISTINCT ON (g) g, time, value FROM chosen JOIN metrics.last_sample USING (series_id)"
    " ORDER BY g, time DESC, seq DESC, series_id DESC"
)


def latest(
    connection: Connection, metrics: Sequence[str], filters: Sequence[Filter], group_by: Sequence[str]
) -> list[Series]:
    """One point for each group that ever had a value; the connection has begun no transaction yet.

    Raises:
        InvalidInputError: No such field, a value that does not fit, or too many of anything.
    """
    selection = select_series(connection, metrics, filters, group_by)
    found = [
        Series(selection.groups[row.g], array("q", [to_microseconds(row.time)]), [array("d", [row.value])])
        for row in connection.execute(_LATEST, selection.parameters())
    ]
    return sorted(found, key=group_key)
