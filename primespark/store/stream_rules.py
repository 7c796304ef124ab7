"""Rules of the stream workers that people change while they run; what is here is what workers shall have.

Versions are numbers of one sequence over all rules, so a rule made anew under an old name has none that it had.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert

from primespark.errors import NotFoundError, OverloadedError
from primespark.store.schema import stream_rule, stream_rule_version

Check = Callable[["StoredRule | None"], None]
_COLUMNS = (
    stream_rule.c.rule_id, stream_rule.c.version, stream_rule.c.definition, stream_rule.c.changed_by,
    stream_rule.c.changed_at,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredRule:
    """A rule as it stands, who said so and when."""

    rule_id: str
    version: int
    definition: dict[str, Any]
    changed_by: str
    changed_at: datetime


def find(connection: Connection, rule_id: str) -> StoredRule | None:
    """The rule, if there is one."""
    row = connection.execute(select(*_COLUMNS).where(stream_rule.c.rule_id == rule_id)).one_or_none()
    return None if row is None else StoredRule(*row)


def everything(connection: Connection) -> list[StoredRule]:
    """All rules in order of `rule_id`."""
    return [StoredRule(*row) for row in connection.execute(select(*_COLUMNS).order_by(stream_rule.c.rule_id))]


def put(
    connection: Connection, rule_id: str, definition: dict[str, Any], by: str, check: Check, *, most: int
) -> tuple[StoredRule, bool]:
    """Store a rule; as it stands then, and whether it is new. The same definition again changes nothing.

    Args:
        connection: In a transaction.
        rule_id: Its name.
        definition: JSON values.
        by: Who says so.
        check: Raises if the present rule may not be changed; asked where it would be.
        most: How many rules there may be.

    Raises:
        OverloadedError: Code `too_many_rules`.
    """
    _lock(connection)
    present = find(connection, rule_id)
    if present is not None and present.definition == definition:
        return present, False
    check(present)
    if present is None and connection.execute(select(func.count()).select_from(stream_rule)).scalar_one() >= most:
        raise OverloadedError(f"there are {most} rules already", remedy="delete one", code="too_many_rules")
    values = {
        "version": stream_rule_version.next_value(), "definition": definition, "changed_by": by,
        "changed_at": func.now(),
    }  # fmt: skip
    statement = insert(stream_rule).values(rule_id=rule_id, **values)
    row = connection.execute(
        statement.on_conflict_do_update(
            index_elements=["rule_id"],
            set_={name: statement.excluded[name] for name in values},
        ).returning(*_COLUMNS)
    ).one()
    return StoredRule(*row), present is None


def remove(connection: Connection, rule_id: str, check: Check) -> None:
    """Delete a rule.

    Raises:
        NotFoundError: There is none.
    """
    _lock(connection)
    present = find(connection, rule_id)
    if present is None:
        raise NotFoundError(f"no live rule {rule_id!r}", remedy="list them first: GET /api/v1/streams/rules")
    check(present)
    connection.execute(delete(stream_rule).where(stream_rule.c.rule_id == rule_id))


def _lock(connection: Connection) -> None:
    """Writers follow one another until they commit; readers do not wait."""
    connection.execute(text("LOCK TABLE control.stream_rule IN SHARE ROW EXCLUSIVE MODE"))
