"""Labelled images of a dataset; the newest word on a sample stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Row, func, select, text

from primespark.store import sync_log
from primespark.store.schema import label as label_table


@dataclass(frozen=True, slots=True)
class Label:
    """What somebody says an image shows."""

    sample: str
    label: str
    image_png: bytes
    source: str
    labelled_at: datetime


def add(connection: Connection, dataset: str, rows: Sequence[Label]) -> None:
    """Store labels; an older word on a sample never replaces a newer one.

    A time more than a minute ahead is replaced by the cloud's, else nobody could correct that label for long.

    Holds the log's lock until commit, so that `received_at` grows in commit order.
    """
    newest: dict[str, Label] = {}
    for row in rows:
        known = newest.get(row.sample)
        if known is None or row.labelled_at >= known.labelled_at:
            newest[row.sample] = row
    if not newest:
        return
    sync_log.lock(connection)
    connection.execute(
        text(
            "INSERT INTO control.label AS known"
            " (dataset, sample, label, image_png, source, labelled_at, received_at)"
            " SELECT :dataset, :sample, :label, :image_png, :source,"
            " CASE WHEN given.labelled_at > given.now + interval '1 minute' THEN given.now ELSE given.labelled_at END,"
            " given.now"
            " FROM (SELECT CAST(:labelled_at AS timestamptz) AS labelled_at, clock_timestamp() AS now) AS given"
            " ON CONFLICT (dataset, sample) DO UPDATE SET label = excluded.label, image_png = excluded.image_png,"
            " source = excluded.source, labelled_at = excluded.labelled_at, received_at = excluded.received_at"
            " WHERE excluded.labelled_at >= known.labelled_at"
        ),
        [
            {
                "dataset": dataset, "sample": row.sample, "label": row.label, "image_png": row.image_png,
                "source": row.source, "labelled_at": row.labelled_at,
            }
            for row in newest.values()
        ],
    )  # fmt: skip


def count(connection: Connection, dataset: str) -> int:
    """Labelled samples of a dataset."""
    return connection.execute(
        select(func.count()).select_from(label_table).where(label_table.c.dataset == dataset)
    ).scalar_one()


def newest_received_at(connection: Connection, dataset: str) -> datetime | None:
    """When the newest label of a dataset came in."""
    return connection.execute(
        select(func.max(label_table.c.received_at)).where(label_table.c.dataset == dataset)
    ).scalar()


def read(connection: Connection, dataset: str, received_before: datetime | None = None) -> list[Label]:
    """Labels of a dataset in order of sample.

    Args:
        connection: Of the store.
        dataset: Its name.
        received_before: Only what came in until then, that moment included.
    """
    statement = select(label_table).where(label_table.c.dataset == dataset)
    if received_before is not None:
        statement = statement.where(label_table.c.received_at <= received_before)
    return _labels(connection.execute(statement.order_by(label_table.c.sample)))


def page(connection: Connection, dataset: str, after: str, limit: int) -> list[Label]:
    """The first `limit` labels of a dataset whose sample comes after `after`."""
    return _labels(
        connection.execute(
            select(label_table)
            .where(label_table.c.dataset == dataset, label_table.c.sample > after)
            .order_by(label_table.c.sample)
            .limit(limit)
        )
    )


def _labels(rows: Iterable[Row[tuple[object, ...]]]) -> list[Label]:
    return [Label(row.sample, row.label, bytes(row.image_png), row.source, row.labelled_at) for row in rows]
