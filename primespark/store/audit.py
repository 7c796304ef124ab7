"""Whether every fact the gate counted as received is there, or on record as lost."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Table, and_, func, select
from sqlalchemy.dialects.postgresql import insert

from primespark.store.schema import audited, fact, lost, watermark


@dataclass(frozen=True, slots=True)
class Gap:
    """Facts of `[seq_from, seq_to]` of a stream of which `missing` are neither stored nor on record as lost."""

    device_id: str
    epoch: int
    stream: str
    seq_from: int
    seq_to: int
    missing: int


def find_gaps(connection: Connection) -> tuple[Gap, ...]:
    """The gaps in what was received; what is found whole is not looked at again, a gap until it is closed."""
    key = (watermark.c.device_id, watermark.c.epoch, watermark.c.stream)
    known = func.coalesce(audited.c.seq, 0)

    def in_stream(table: Table) -> list[ColumnElement[bool]]:
        return [table.c.device_id == key[0], table.c.epoch == key[1], table.c.stream == key[2]]

    stored = select(func.count()).where(*in_stream(fact), fact.c.seq > known, fact.c.seq <= watermark.c.seq)
    dropped = select(func.coalesce(func.sum(lost.c.seq_to - lost.c.seq_from + 1), 0)).where(
        *in_stream(lost), lost.c.seq_from > known, lost.c.seq_to <= watermark.c.seq
    )
    # One statement sees whole batches only.
    rows = connection.execute(
        select(
            *key, known, watermark.c.seq,
            watermark.c.seq - known - stored.scalar_subquery() - dropped.scalar_subquery(),
        )
        .select_from(watermark.outerjoin(audited, and_(*in_stream(audited))))
        .where(watermark.c.seq > known)
        .order_by(*key)
    )  # fmt: skip
    found = [Gap(device_id, epoch, stream, seq + 1, to, int(gap)) for device_id, epoch, stream, seq, to, gap in rows]
    _remember(connection, [entry for entry in found if not entry.missing])
    return tuple(entry for entry in found if entry.missing)


def _remember(connection: Connection, whole: list[Gap]) -> None:
    if not whole:
        return
    statement = insert(audited).values(
        [{"device_id": e.device_id, "epoch": e.epoch, "stream": e.stream, "seq": e.seq_to} for e in whole]
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["device_id", "epoch", "stream"], set_={"seq": statement.excluded.seq}
        )
    )
