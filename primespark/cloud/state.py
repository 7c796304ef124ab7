"""What the routes of the cloud share, and the two ways they reach the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from sqlalchemy import Connection, Engine

from primespark.cloud.lanes import Lane, Lanes
from primespark.cloud.notifier import Notifier
from primespark.core.manifests import SigningKey
from primespark.core.settings import Settings
from primespark.core.web import Principal, Role
from primespark.core.web.watching import Watchers
from primespark.errors import AuthenticationError, DeadlineExceededError
from primespark.store import access, devices
from primespark.store.analytics.answers import Answers
from primespark.store.blobs import BlobStore
from primespark.store.database import available
from primespark.store.reconciliation import DocumentRules
from primespark.sync.strategies import Strategy, StrategyRule

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Cloud:
    """The collaborators of every route.

    Attributes:
        deadline_s: How long a request waits for the store.
        push_deadline_s: How long a batch does.
    """

    settings: Settings
    engine: Engine
    lanes: Lanes
    notifier: Notifier
    blobs: BlobStore
    signing_key: SigningKey
    watchers: Watchers
    answers: Answers
    deadline_s: float = 10.0
    push_deadline_s: float = 30.0

    @property
    def document_rules(self) -> DocumentRules:
        """What decides over documents, from the settings."""
        sync = self.settings.sync
        rules = [StrategyRule(rule.data_class, rule.prefix, Strategy(rule.strategy)) for rule in sync.strategies]
        return DocumentRules(rules, sync.fleet_writable)

    async def transact(
        self, work: Callable[[Connection], Answer], deadline_s: float | None = None, lane: Lane | None = None
    ) -> Answer:
        """Run `work` in one transaction on a thread of a lane; its answer once it is committed.

        Args:
            work: What to do.
            deadline_s: How long to wait for it, and for its turn; `self.deadline_s` when absent.
            lane: Where it waits for its turn; with others of the request's path when absent.

        Raises:
            UnavailableError: The store refuses or the connection broke; code `gate_overloaded`: too many wait.
            DeadlineExceededError: It is silent; `work` may yet be committed, when the store answers again.
        """

        def run() -> Answer:
            with available(), self.engine.begin() as connection:
                return work(connection)

        limit_s = self.deadline_s if deadline_s is None else deadline_s
        try:
            async with asyncio.timeout(limit_s):
                return await self.lanes.run(run, lane)
        except TimeoutError:
            raise DeadlineExceededError(
                f"the store has not answered for {limit_s:.0f} s",
                remedy="try again; see that PostgreSQL runs",
                retry_after_s=1,
            ) from None

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
