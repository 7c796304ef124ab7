"""Runs the commands that came, one after another, each once; a kill in the middle is answered, not run over."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import NoReturn

from prometheus_client import Counter

from edge_agent.backoff import Backoff
from edge_agent.commands import inbox
from edge_agent.commands.handlers import Handler
from edge_agent.commands.inbox import Received
from edge_agent.database import Database
from edge_agent.queue import NewFact, OfflineQueue, encode
from primespark.core.clock import wall_clock_ms
from primespark.core.logging import get_logger
from primespark.core.values import clean_text, storable_json
from primespark.errors import InvalidInputError, OverloadedError, PrimeSparkError
from primespark.sync.records import CommandResult, DataClass

LIMIT_S = 60.0
# The cloud takes facts of 100 KiB.
MAX_OUTPUT_BYTES = 80 * 1024
_RETRY_BASE_S = 1.0
_RETRY_MAX_S = 10.0

COMMANDS = Counter("primespark_commands_total", "Commands answered.", ["outcome"])
for _outcome in ("succeeded", "failed", "expired"):
    COMMANDS.labels(_outcome)

log = get_logger(__name__)


class CommandRunner:
    """Answers every command that the database holds.

    Args:
        database: Where commands are kept.
        queue: Of the same database; takes the answers.
        handlers: The commands that are known, by name.
        allowed: Names of those that may be run here.
        arrived: Set when commands may have come.
        now_ms: The device's clock.
        limit_s: How long one may run.
    """

    def __init__(
        self,
        database: Database,
        queue: OfflineQueue,
        handlers: Mapping[str, Handler],
        allowed: Collection[str],
        arrived: asyncio.Event,
        now_ms: Callable[[], int] = wall_clock_ms,
        limit_s: float = LIMIT_S,
    ) -> None:
        self._database = database
        self._queue = queue
        self._handlers = handlers
        self._allowed = frozenset(allowed)
        self._now_ms = now_ms
        self._limit_s = limit_s
        self._arrived = arrived
        self._backoff = Backoff(_RETRY_BASE_S, _RETRY_MAX_S)

    async def run(self) -> NoReturn:
        """Settle what a kill left, then run what comes, until cancelled."""
        await self._persist(self._settle)
        self._arrived.set()
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            try:
                await self.work()
            except PrimeSparkError as error:
                log.warning("commands_wait", code=error.code, cause=error.message)
                self._arrived.set()
                await self._backoff.pause()
            else:
                self._backoff.succeeded()

    async def work(self) -> None:
        """Run what has come, and tell what came of it.

        Raises:
            OverloadedError: Code `queue_full`: the answers wait here.
            PrimeSparkError: The database does not take it.
        """
        while (taken := await self._database.run(self._take)) is not None:
            handler = self._handlers[taken.name]
            result = await self._execute(taken, handler)
            # Begun is begun: to forget the result would be to tell that it was interrupted.
            await self._persist(partial(_keep, result))
            with contextlib.suppress(OverloadedError):
                await self._database.run(self._tell)
            if handler.after is not None and result.outcome == "succeeded":
                # What is left waits for the next start.
                handler.after()
                return
        await self._database.run(self._tell)

    def _settle(self, connection: sqlite3.Connection) -> None:
        """Answer the commands in whose middle this process was killed before, or run them again where that is safe."""
        for command_id, name in inbox.started(connection):
            handler = self._handlers.get(name)
            if handler is not None and handler.is_idempotent:
                inbox.begin_again(connection, command_id)
            else:
                message = "the device was stopped in its middle; it may have been run"
                _keep(_failed(command_id, "interrupted", message), connection)

    def _take(self, connection: sqlite3.Connection) -> Received | None:
        """The next command that is to be run, noted as begun; those that are not to be run are answered."""
        while (found := inbox.first_received(connection)) is not None:
            refusal = self._refusal(found)
            if refusal is None:
                inbox.start(connection, found.command_id)
                return found
            _keep(refusal, connection)
        return None

    def _refusal(self, command: Received) -> CommandResult | None:
        if self._now_ms() >= command.deadline_ms:
            return CommandResult(command_id=command.command_id, outcome="expired")
        if command.name not in self._handlers:
            return _failed(command.command_id, "unknown_command", f"known are {', '.join(sorted(self._handlers))}")
        if command.name not in self._allowed:
            return _failed(command.command_id, "not_allowed", "edge.commands does not name it")
        return None

    async def _execute(self, command: Received, handler: Handler) -> CommandResult:
        log.info("command_started", command_id=command.command_id, name=command.name)
        try:
            async with asyncio.timeout(self._limit_s):
                output = await handler.run(command.arguments)
            if len(storable_json(output).encode()) > MAX_OUTPUT_BYTES:
                raise InvalidInputError("it gave more than 80 KiB", remedy="ask for less", code="output_too_large")
        except PrimeSparkError as error:
            return _failed(command.command_id, error.code, error.message)
        except TimeoutError:
            return _failed(command.command_id, "command_timeout", f"not done after {self._limit_s:g} s")
        except Exception as error:
            # A fault of ours must end neither the loop nor the device.
            log.exception("command_failed", command_id=command.command_id, name=command.name)
            return _failed(command.command_id, "internal", f"an error of ours: {type(error).__name__}")
        return CommandResult(command_id=command.command_id, outcome="succeeded", output=output)

    def _tell(self, connection: sqlite3.Connection) -> None:
        """Enqueue the answers that are not told yet, all or none."""
        answers = inbox.untold(connection)
        if answers:
            self._queue.take(connection, [encode(NewFact(DataClass.COMMAND_RESULTS, answer)) for answer in answers])
            inbox.mark_told(connection)

    async def _persist(self, job: Callable[[sqlite3.Connection], None]) -> None:
        """Have the database do `job`, however long that takes."""
        while True:
            try:
                await self._database.run(job)
            except PrimeSparkError as error:
                log.warning("commands_wait", code=error.code, cause=error.message)
                await self._backoff.pause()
            else:
                return


def _keep(result: CommandResult, connection: sqlite3.Connection) -> None:
    inbox.answer(connection, result)
    COMMANDS.labels(result.outcome).inc()
    log.info("command_answered", command_id=result.command_id, outcome=result.outcome, code=result.code)


def _failed(command_id: str, code: str, message: str) -> CommandResult:
    return CommandResult(command_id=command_id, outcome="failed", code=code[:64], message=clean_text(message)[:200])
