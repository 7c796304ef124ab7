"""Groups of devices: who reads which documents beside its own and the fleet's."""

from __future__ import annotations

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from primespark.core.identifiers import group_scope
from primespark.errors import InvalidInputError, NotFoundError
from primespark.store import sync_log
from primespark.store.schema import device, member

FLEET = "fleet"
MAX_GROUPS_OF_A_DEVICE = 32


def join(connection: Connection, device_id: str, group: str) -> bool:
    """Make a device a member; False where it is one. Its waiting pull is told at commit.

    Raises:
        InvalidInputError: Code `too_many_groups`.
        NotFoundError: No such device.
    """
    _lock(connection, device_id)
    groups = of_device(connection, device_id)
    if group in groups:
        return False
    if len(groups) >= MAX_GROUPS_OF_A_DEVICE:
        raise InvalidInputError(
            f"{device_id} is in {MAX_GROUPS_OF_A_DEVICE} groups",
            remedy="take it out of one first",
            code="too_many_groups",
        )
    connection.execute(insert(member).values(device_id=device_id, group_name=group))
    sync_log.wake(connection, device_id)
    return True


def leave(connection: Connection, device_id: str, group: str) -> None:
    """End a membership; the device drops the group's documents as soon as it hears of it.

    Raises:
        NotFoundError: No such device, or it is no member.
    """
    _lock(connection, device_id)
    is_it = (member.c.device_id == device_id, member.c.group_name == group)
    if not connection.execute(delete(member).where(*is_it)).rowcount:
        raise NotFoundError(f"{device_id} is not in group {group!r}", remedy="see `primespark device list`")
    sync_log.wake(connection, device_id)


def of_device(connection: Connection, device_id: str) -> list[str]:
    """The groups of a device in order of name."""
    return sorted(
        connection.execute(select(member.c.group_name).where(member.c.device_id == device_id)).scalars().all()
    )


def of_devices(connection: Connection) -> dict[str, list[str]]:
    """The groups of all devices that are in any, in order of name."""
    rows = connection.execute(
        select(member.c.device_id, func.array_agg(member.c.group_name)).group_by(member.c.device_id)
    )
    return {device_id: sorted(groups) for device_id, groups in rows}


def scopes_of(device_id: str, groups: list[str]) -> list[str]:
    """The scopes that a device in `groups` reads."""
    return [FLEET, *map(group_scope, groups), device_id]


def _lock(connection: Connection, device_id: str) -> None:
    row = select(device.c.device_id).where(device.c.device_id == device_id, device.c.key_sha256.is_not(None))
    if connection.execute(row.with_for_update()).first() is None:
        raise NotFoundError(f"no device {device_id[:63]!r}", remedy="see `primespark device list`")
