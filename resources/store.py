"""PostgreSQL, at `cloud.store.url`: transactions, stage outputs, and waiting for something to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg
from pydantic import PrivateAttr

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

Answer = TypeVar("Answer")
# Notified in the transaction that stores a stage's output.
STAGE_CHANNEL = "pipeline_stage"
_POOL_SIZE = 2


@dataclass(frozen=True, slots=True)
class Later:
    """Nothing to do yet; look again after so many seconds, or when something was notified."""

    reason: str
    look_again_s: float | None = None


class StoreResource(dg.ConfigurableResource["StoreResource"]):
    """The store; connects on first use."""

    _engine: Any = PrivateAttr(default=None)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Close the connections."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection in one transaction, committed at the end.

        Raises:
            UnavailableError: The store does not answer.
        """
        from primespark.store.database import available

        with available(), self._connected().begin() as connection:
            yield connection

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """A connection that commits after each statement.

        Raises:
            UnavailableError: The store does not answer.
        """
        from primespark.store.database import available

        with available(), self._connected().connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    def wait_for(
        self, look: Callable[[Connection], Answer | Later], timeout_s: float, *channels: str
    ) -> Answer | Later:
        """What `look` answers as soon as it is no `Later`; its last `Later` when the time is over, or waits are ended.

        The sensor daemon visits a sensor every five seconds; one that waits here acts within milliseconds of a commit.

        Raises:
            UnavailableError: The store does not answer.
        """
        from primespark.store.database import END_WAITS_CHANNEL, Listener

        deadline = time.monotonic() + timeout_s
        # Listens before it looks: a commit between looking and waiting ends the wait.
        listener = Listener(self._connected(), END_WAITS_CHANNEL, *channels)
        try:
            is_ended = False
            while True:
                with self.transaction() as connection:
                    answer = look(connection)
                remaining_s = deadline - time.monotonic()
                if not isinstance(answer, Later) or remaining_s <= 0 or is_ended:
                    return answer
                pause_s = remaining_s if answer.look_again_s is None else min(remaining_s, answer.look_again_s)
                is_ended = END_WAITS_CHANNEL in listener.wait(pause_s)
        finally:
            listener.close()

    def load_stage(self, run_id: str, stage: str) -> dict[str, Any] | None:
        """A stage's output in one run."""
        from primespark.store import pipeline

        with self.transaction() as connection:
            return pipeline.load_stage(connection, run_id, stage)

    def latest_stage(self, stage: str) -> dict[str, Any] | None:
        """A stage's newest output of any run."""
        from primespark.store import pipeline

        with self.transaction() as connection:
            return pipeline.latest(connection, stage)

    def save_stage(self, run_id: str, stage: str, output: dict[str, Any]) -> None:
        """Store a stage's output, and wake who waits for it."""
        from sqlalchemy import func, select

        from primespark.store import pipeline

        with self.transaction() as connection:
            pipeline.save_stage(connection, run_id, stage, output)
            connection.execute(select(func.pg_notify(STAGE_CHANNEL, stage)))

    def _connected(self) -> Engine:
        if self._engine is None:
            from primespark.core.settings import load_settings
            from primespark.store.database import connect

            self._engine = connect(load_settings().require_store_url(), _POOL_SIZE)
        engine: Engine = self._engine
        return engine
