"""Documents of one scope as people read them: page by page, and what changed since."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, cast, select
from sqlalchemy.dialects.postgresql import JSONB

from primespark.core.values import storable_json
from primespark.store import sync_log
from primespark.store.documents import PAGE_BYTES, ROWS_PER_FETCH, document_of
from primespark.store.schema import document as document_table
from primespark.sync.documents import Document
from primespark.sync.records import DataClass

_CLASS = DataClass.CONFIGURATIONS


@dataclass(frozen=True, slots=True)
class Page:
    """Documents by key, and after which key there are more; None: that was all."""

    items: list[tuple[str, Document]]
    next_after: str | None


@dataclass(frozen=True, slots=True)
class Changed:
    """Documents by key, how far the log was read for them, and whether it goes on at once."""

    items: list[tuple[str, Document]]
    log_seq: int
    has_more: bool


def page(connection: Connection, scope: str, after: str, limit: int, max_bytes: int = PAGE_BYTES) -> Page:
    """Documents of a scope in order of key, from the one behind `after`; at most `limit`, and about `max_bytes`."""
    statement = (
        select(document_table)
        .where(document_table.c.data_class == _CLASS, document_table.c.scope == scope)
        .where(document_table.c.key > after, document_table.c.value != cast({}, JSONB))
        .order_by(document_table.c.key)
        .limit(limit + 1)
    )
    items: list[tuple[str, Document]] = []
    size = 0
    with connection.execute(statement, execution_options={"yield_per": ROWS_PER_FETCH}) as rows:
        for row in rows:
            if len(items) == limit or size >= max_bytes:
                return Page(items, items[-1][0])
            items.append((row.key, document_of(row)))
            size += len(storable_json(row.value)) + len(storable_json(row.leaf_hlc))
    return Page(items, None)


def changed(connection: Connection, scope: str, key: str | None, after: int, limit: int) -> Changed:
    """Documents of a scope, or one, that changed after `after` in the log, in commit order, deleted ones too."""
    newest = sync_log.newest(connection)
    statement = (
        select(document_table)
        .where(document_table.c.data_class == _CLASS, document_table.c.scope == scope)
        .where(document_table.c.log_seq > after)
        .order_by(document_table.c.log_seq)
        .limit(limit)
    )
    if key is not None:
        statement = statement.where(document_table.c.key == key)
    rows = connection.execute(statement).all()
    last = rows[-1].log_seq if rows else 0
    is_full = len(rows) == limit
    return Changed([(row.key, document_of(row)) for row in rows], last if is_full else max(newest, last), is_full)
