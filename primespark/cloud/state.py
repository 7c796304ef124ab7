"""What the routes of the cloud share, and the two ways they reach the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from sqlalchemy import Connection, Engine

from primespark.cloud.notifier import Notifier
from primespark.core.manifests import SigningKey
from primespark.core.settings import Settings
from primespark.core.web import Principal, Role
from primespark.errors import AuthenticationError
from primespark.store import access, devices
from primespark.store.blobs import BlobStore
from primespark.store.database import available

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Cloud:
    """The collaborators of every route."""

    settings: Settings
    engine: Engine
    notifier: Notifier
    blobs: BlobStore
    signing_key: SigningKey

    async def transact(self, work: Callable[[Connection], Answer]) -> Answer:
        """Run `work` in one transaction on a thread; its answer once it is committed.

        Raises:
            UnavailableError: The store does not answer; nothing of `work` stands.
        """

        def run() -> Answer:
            with available(), self.engine.begin() as connection:
                return work(connection)

        return await asyncio.to_thread(run)

    async def authenticate(self, token: str) -> Principal:
        """The device or person that holds this key.

        Raises:
            AuthenticationError: Nobody does.
        """

        def find(connection: Connection) -> Principal | None:
            device_id = devices.authenticate(connection, token)
            if device_id is not None:
                return Principal(device_id, Role.DEVICE)
            person = access.find_api_key(connection, token)
            return Principal(person[0], Role(person[1])) if person else None

        principal = await self.transact(find)
        if principal is None:
            raise AuthenticationError("unknown key", remedy="use a key that was issued here and not revoked")
        return principal


def cloud_of(request: Request) -> Cloud:
    """The application's collaborators, for use with `Depends`."""
    cloud: Cloud = request.app.state.cloud
    return cloud
