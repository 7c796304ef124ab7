"""What devices say of their own queues, in `reported.sync` of their twins."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, and_, select

from primespark.store.schema import device, document

_TWIN = "twin"


@dataclass(frozen=True, slots=True)
class Backlog:
    """A device's queue as the device told it last.

    Attributes:
        device_id: Whose.
        pending: Facts that waited for the cloud, where they waited for long.
        oldest_at: The time of the one that waited longest; None when none waited for long.
        dead_letters: Records that were refused for good and lie on the device.
        lost: Facts that were dropped or refused.
    """

    device_id: str
    pending: int
    oldest_at: datetime | None
    dead_letters: int
    lost: int


def read(connection: Connection) -> list[Backlog]:
    """Of every enrolled device that has told, in order of id."""
    rows = connection.execute(
        select(device.c.device_id, document.c.value["reported"]["sync"])
        .join(document, and_(document.c.scope == device.c.device_id, document.c.key == _TWIN))
        .where(device.c.key_sha256.is_not(None))
        .order_by(device.c.device_id)
    )
    return [_parse(device_id, told) for device_id, told in rows if isinstance(told, dict)]


def _parse(device_id: str, told: dict[str, Any]) -> Backlog:
    """What is no such number or time counts as not told: a device may write anything."""
    numbers = [_number(told.get(name)) for name in ("pending", "dead_letters", "lost")]
    return Backlog(device_id, numbers[0], _moment(told.get("oldest_at")), numbers[1], numbers[2])


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else 0


def _moment(value: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (TypeError, ValueError, OverflowError):
        return None
