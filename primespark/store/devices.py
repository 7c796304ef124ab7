"""Devices: enrolment by token, keys, epochs. Of keys and tokens only the SHA-256 is stored."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from primespark.core.clock import utc_now
from primespark.core.identifiers import sha256_hex
from primespark.core.values import storable_json
from primespark.errors import AuthenticationError, ConflictError, NotFoundError
from primespark.store import commands, groups
from primespark.store.schema import device, enrolment_token, lost, watermark
from primespark.sync.records import EpochRequest

# How exactly `last_seen_at` is kept; more would be a write for every request.
_SEEN_INTERVAL = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What a device gets for its token; the key can be seen this once."""

    key: str
    epoch: int


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """An enrolled device."""

    device_id: str
    epoch: int
    enrolled_at: datetime
    last_seen_at: datetime | None
    capabilities: dict[str, Any]
    versions: dict[str, str]
    overdue_since: datetime | None = None
    groups: tuple[str, ...] = ()
    epoch_began_at: datetime | None = None
    epoch_reason: str | None = None


def create_token(connection: Connection, uses: int, lifetime: timedelta) -> str:
    """A token that enrols `uses` devices within `lifetime`."""
    connection.execute(delete(enrolment_token).where(enrolment_token.c.expires_at < utc_now() - timedelta(days=1)))
    token = secrets.token_urlsafe(32)
    connection.execute(
        insert(enrolment_token).values(
            token_sha256=sha256_hex(token.encode()), uses_left=uses, expires_at=utc_now() + lifetime
        )
    )
    return token


def enrol(
    connection: Connection, token: str, device_id: str, capabilities: dict[str, Any], versions: dict[str, str]
) -> Enrolment:
    """Exchange a token for a device's key and its next epoch.

    A device that asks again with the same token and has never shown its key lost the first answer: it gets another key
    and epoch, and the token loses no further use.

    Raises:
        AuthenticationError: Code `bad_token`: unknown, used up or expired.
        ConflictError: Code `device_exists`.
        InvalidInputError: Capabilities or versions that cannot be stored.
    """
    token_sha256 = sha256_hex(token.encode())
    # Locks the token, so that two devices do not share its last use.
    uses_left = connection.execute(
        select(enrolment_token.c.uses_left)
        .where(enrolment_token.c.token_sha256 == token_sha256, enrolment_token.c.expires_at > utc_now())
        .with_for_update()
    ).scalar()
    if uses_left is None:
        raise _bad_token()
    known = connection.execute(select(device).where(device.c.device_id == device_id).with_for_update()).one_or_none()
    if not _answer_was_lost(known, token_sha256):
        if uses_left < 1:
            raise _bad_token()
        if known is not None and known.key_sha256 is not None:
            raise _device_exists(device_id)
        connection.execute(
            update(enrolment_token)
            .where(enrolment_token.c.token_sha256 == token_sha256)
            .values(uses_left=enrolment_token.c.uses_left - 1)
        )
    return _write_enrolment(connection, known, token_sha256, device_id, capabilities, versions)


def authenticate(connection: Connection, key: str) -> str | None:
    """The device that holds `key`; notes that it was seen."""
    key_sha256 = sha256_hex(key.encode())
    row = connection.execute(
        select(device.c.device_id, device.c.last_seen_at).where(device.c.key_sha256 == key_sha256)
    ).one_or_none()
    if row is None:
        return None
    now = utc_now()
    # Either way: a clock that was ahead for a while leaves a time to come.
    if row.last_seen_at is None or abs(now - row.last_seen_at) >= _SEEN_INTERVAL:
        # A batch of the same device that is being applied holds the row: then somebody else notes it, later.
        free = select(device.c.device_id).where(device.c.key_sha256 == key_sha256).with_for_update(skip_locked=True)
        connection.execute(update(device).where(device.c.device_id.in_(free)).values(last_seen_at=now))
    device_id: str = row.device_id
    return device_id


def begin_epoch(connection: Connection, device_id: str, asked: EpochRequest | None = None) -> int:
    """The next epoch, for a device that lost its database, or whose cloud lost what came after a backup.

    What the device knows to be acknowledged and this cloud does not have is put on record as lost.

    Raises:
        NotFoundError: No such device.
    """
    asked = asked or EpochRequest()
    epoch: int | None = connection.execute(
        update(device)
        .where(device.c.device_id == device_id, device.c.key_sha256.is_not(None))
        .values(
            epoch=func.greatest(device.c.epoch, asked.epoch) + 1, epoch_began_at=func.now(), epoch_reason=asked.reason
        )
        .returning(device.c.epoch)
    ).scalar()
    if epoch is None:
        raise _no_device(device_id)
    for stream, seq in sorted(asked.acknowledged.items()):
        _note_lost(connection, device_id, asked.epoch, stream, seq)
    commands.interrupt(connection, device_id)
    return epoch


def _note_lost(connection: Connection, device_id: str, epoch: int, stream: str, acknowledged: int) -> None:
    of_stream = (watermark.c.device_id == device_id, watermark.c.epoch == epoch, watermark.c.stream == stream)
    known = connection.execute(select(watermark.c.seq).where(*of_stream)).scalar() or 0
    if acknowledged <= known:
        return
    row = {"device_id": device_id, "epoch": epoch, "stream": stream}
    connection.execute(
        insert(lost).values(row | {"seq_from": known + 1, "seq_to": acknowledged, "reason": "cloud_restored"})
    )
    connection.execute(
        insert(watermark)
        .values(row | {"seq": acknowledged})
        .on_conflict_do_update(index_elements=["device_id", "epoch", "stream"], set_={"seq": acknowledged})
    )


def list_devices(connection: Connection) -> list[DeviceRow]:
    """The enrolled devices in order of id."""
    rows = connection.execute(select(device).where(device.c.key_sha256.is_not(None)).order_by(device.c.device_id))
    members = groups.of_devices(connection)
    return [_device_row(row, members.get(row.device_id, ())) for row in rows]


def find(connection: Connection, device_id: str) -> DeviceRow:
    """One enrolled device.

    Raises:
        NotFoundError: No such device.
    """
    row = connection.execute(
        select(device).where(device.c.device_id == device_id, device.c.key_sha256.is_not(None))
    ).one_or_none()
    if row is None:
        raise _no_device(device_id)
    return _device_row(row, groups.of_device(connection, device_id))


def forget(connection: Connection, device_id: str) -> None:
    """Revoke a device's key; its data stay, and it may enrol again with another token.

    Raises:
        NotFoundError: No such device.
    """
    _set_key(connection, device_id, None)


def rotate(connection: Connection, device_id: str) -> str:
    """A new key; the old one ends at once.

    Raises:
        NotFoundError: No such device.
    """
    key = secrets.token_urlsafe(32)
    _set_key(connection, device_id, sha256_hex(key.encode()))
    return key


def _set_key(connection: Connection, device_id: str, key_sha256: str | None) -> None:
    changed = connection.execute(
        update(device)
        .where(device.c.device_id == device_id, device.c.key_sha256.is_not(None))
        # Without its token it cannot ask again as if the first answer had been lost.
        .values(key_sha256=key_sha256, token_sha256=None)
        .returning(device.c.device_id)
    )
    if changed.scalar() is None:
        raise _no_device(device_id)


def _answer_was_lost(known: Row[Any] | None, token_sha256: str) -> bool:
    return known is not None and known.token_sha256 == token_sha256 and known.last_seen_at is None


def _write_enrolment(
    connection: Connection,
    known: Row[Any] | None,
    token_sha256: str,
    device_id: str,
    capabilities: dict[str, Any],
    versions: dict[str, str],
) -> Enrolment:
    storable_json([capabilities, versions])
    key = secrets.token_urlsafe(32)
    epoch = 1 if known is None else known.epoch + 1
    fields = {
        "key_sha256": sha256_hex(key.encode()), "token_sha256": token_sha256, "epoch": epoch,
        "enrolled_at": func.now(), "last_seen_at": None, "overdue_since": None, "cursor": None, "cursor_at": None,
        "epoch_began_at": func.now(), "epoch_reason": "enrolled",
        "capabilities": capabilities, "versions": versions,
    }  # fmt: skip
    if known is None:
        made = connection.execute(
            insert(device).values(device_id=device_id, **fields).on_conflict_do_nothing().returning(device.c.epoch)
        )
        if made.scalar() is None:  # another token enrolled it this very moment
            raise _device_exists(device_id)
    else:
        connection.execute(update(device).where(device.c.device_id == device_id).values(**fields))
        commands.interrupt(connection, device_id)
    return Enrolment(key, epoch)


def _device_row(row: Row[Any], of_groups: Sequence[str]) -> DeviceRow:
    # The next round takes the mark away; it is wrong as soon as the device was seen.
    is_back = row.overdue_since and row.last_seen_at and row.last_seen_at >= row.overdue_since
    return DeviceRow(
        row.device_id, row.epoch, row.enrolled_at, row.last_seen_at, row.capabilities, row.versions,
        None if is_back else row.overdue_since, tuple(of_groups), row.epoch_began_at, row.epoch_reason,
    )  # fmt: skip


def _device_exists(device_id: str) -> ConflictError:
    return ConflictError(
        f"a device {device_id!r} is enrolled already",
        remedy=f"choose another id, or `primespark device forget {device_id}` first",
        code="device_exists",
    )


def _bad_token() -> AuthenticationError:
    return AuthenticationError(
        "the token is unknown, used up or expired", remedy="make one with `primespark device token`", code="bad_token"
    )


def _no_device(device_id: str) -> NotFoundError:
    return NotFoundError(f"no device {device_id[:63]!r}", remedy="see `primespark device list`")
