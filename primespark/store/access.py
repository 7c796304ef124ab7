"""API keys of people; only their SHA-256 is stored."""

from __future__ import annotations

import secrets

from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert as upsert

from primespark.core.identifiers import sha256_hex
from primespark.core.values import check_text
from primespark.errors import ConflictError, InvalidInputError
from primespark.store.schema import api_key

ROLES = ("viewer", "operator", "admin")
FIRST_ADMIN = "admin"


def create_api_key(connection: Connection, name: str, role: str) -> str:
    """A new key of a person; it can be seen this once.

    Raises:
        ConflictError: Code `api_key_exists`.
        InvalidInputError: No such role.
    """
    if role not in ROLES:
        raise InvalidInputError(f"no role {role[:40]!r}", remedy=f"one of {', '.join(ROLES)}", code="unknown_role")
    check_text(name)
    key = secrets.token_urlsafe(32)
    statement = upsert(api_key).values(key_sha256=sha256_hex(key.encode()), name=name, role=role)
    made = connection.execute(statement.on_conflict_do_nothing(index_elements=["name"]).returning(api_key.c.name))
    if made.scalar() is None:
        raise ConflictError(f"{name!r} has a key already", remedy="choose another name", code="api_key_exists")
    return key


def ensure_admin_key(connection: Connection, key: str) -> None:
    """Make `key` the first administrator's, in place of whatever it was before."""
    key_sha256 = sha256_hex(key.encode())
    statement = upsert(api_key).values(key_sha256=key_sha256, name=FIRST_ADMIN, role="admin")
    connection.execute(
        statement.on_conflict_do_update(index_elements=["name"], set_={"key_sha256": key_sha256, "role": "admin"})
    )


def find_api_key(connection: Connection, key: str) -> tuple[str, str] | None:
    """Name and role of whoever holds `key`."""
    row = connection.execute(
        select(api_key.c.name, api_key.c.role).where(api_key.c.key_sha256 == sha256_hex(key.encode()))
    ).one_or_none()
    return (row.name, row.role) if row else None
