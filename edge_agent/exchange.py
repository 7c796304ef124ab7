"""Exchange with the cloud: enrol, push what waits, pull what changed; for ever, and never in the way of the device."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NoReturn

from prometheus_client import Counter

from edge_agent.backoff import Backoff
from edge_agent.credentials import CredentialFiles, Credentials
from edge_agent.documents import Documents
from edge_agent.gate_client import GateClient
from edge_agent.outgoing import Batch, Outgoing
from edge_agent.pace import Pace
from edge_agent.reading import Sweep
from primespark.core.clock import utc_now
from primespark.core.logging import get_logger
from primespark.core.settings import SyncSettings
from primespark.errors import (
    AuthenticationError,
    AuthorizationError,
    ConflictError,
    InvalidInputError,
    PermanentError,
    PrimeSparkError,
    TransientError,
    UnavailableError,
)
from primespark.sync.records import PushResponse

PULL_LIMIT = 200
# What other programs left in the queue, and what may go because a window began, wakes nobody.
LOOK_AGAIN_S = 20.0
_TOKEN_POLL_S = 0.25
# An empty answer sooner than this is of a gate that is stopping: asking at once again would keep it busy.
_QUICK_ANSWER_S = 0.25
# Refusals that say nothing about the batch's content, but about what happened to it on the way.
_DAMAGED_ON_THE_WAY = {"bad_digest", "truncated_body"}
# No word of the cloud's: when it is heard of again, there is reason to try at once.
_NOT_REACHED = {"not_connected", "no_answer", "no_gate"}
# It knows less of this device than it had acknowledged: it was restored from a backup, and nobody said so.
_CLOUD_LOST_SOMETHING = {"batch_gap", "unknown_epoch"}
# What nobody but a person can mend; asking more often changes nothing.
_REFUSED_PAUSE_S = 30.0

OPERATIONS = Counter("primespark_sync_operations_total", "Exchanges with the cloud.", ["direction", "outcome"])
for _direction in ("push", "pull"):
    for _outcome in ("ok", "failed"):
        OPERATIONS.labels(_direction, _outcome)

log = get_logger(__name__)


class Phase(StrEnum):
    """Where the device stands with its cloud."""

    ALONE = "alone"
    WAITING_FOR_TOKEN = "waiting_for_token"  # noqa: S105 (a state, no secret)
    CONNECTING = "connecting"
    ONLINE = "online"
    OFFLINE = "offline"
    REFUSED = "refused"


@dataclass(slots=True)
class SyncState:
    """What `/api/v1/sync/status` tells."""

    phase: Phase = Phase.CONNECTING
    code: str = ""
    cause: str = ""
    remedy: str = ""
    last_push_at: datetime | None = None
    last_pull_at: datetime | None = None
    last_contact_at: datetime | None = None
    pushed_records: int = 0
    pace: Pace = field(default_factory=Pace)


class Exchange:
    """One device's exchange with one cloud.

    Args:
        gate: The cloud.
        files: Where keys and tokens lie.
        outgoing: What is to be sent.
        documents: What is pulled.
        settings: Sizes and pauses.
        device_id: Of this device.
        on_documents: Called when the cloud changed a document or sent a command, and once it is known that the
            device is enrolled.
        on_online: Called when the cloud answers again, and once the device has a key.
    """

    def __init__(
        self,
        gate: GateClient,
        files: CredentialFiles,
        outgoing: Outgoing,
        documents: Documents,
        settings: SyncSettings,
        *,
        device_id: str,
        on_documents: Callable[[], None],
        on_online: Callable[[], None] = lambda: None,
    ) -> None:
        self.state = SyncState()
        self._gate = gate
        self._files = files
        self._outgoing = outgoing
        self._documents = documents
        self._settings = settings
        self._device_id = device_id
        self._on_documents = on_documents
        self._on_online = on_online
        self._push_backoff = Backoff(settings.retry_base_s, settings.retry_max_s)
        self._pull_backoff = Backoff(settings.retry_base_s, settings.retry_max_s)
        self._work = asyncio.Event()
        self._flush = False
        self._pull_wait_s = 0.0
        self._server_epoch = 0
        self._epoch_lock = asyncio.Lock()

    def notify(self) -> None:
        """Something may wait to be sent."""
        self._work.set()

    def synchronise_now(self) -> None:
        """Push and pull without waiting for a batch to fill or a pause to end."""
        self._flush = True
        self._work.set()
        self._push_backoff.wake()
        self._pull_backoff.wake()

    async def look_again(self) -> None:
        """Count what other programs have left in the queue too."""
        await self._outgoing.count()

    def link_returned(self) -> None:
        """The cloud can be reached: end pauses that wait for just that."""
        if self.state.phase is Phase.OFFLINE and self.state.code in _NOT_REACHED:
            self._push_backoff.wake()
            self._pull_backoff.wake()

    async def run(self) -> NoReturn:
        """Synchronise until cancelled."""
        await self._become_known()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._push_forever(), name="push")
            group.create_task(self._pull_forever(), name="pull")
        raise AssertionError("the loops end by cancellation only")

    async def _become_known(self) -> None:
        """Use the key there is, else enrol as soon as there is a token and a gate."""
        while self._files.current is None:
            token = self._files.token()
            if token is None:
                self._wait_for_token()
                await asyncio.sleep(_TOKEN_POLL_S)
                continue
            try:
                await self._enrol(token)
            except Exception as error:  # noqa: BLE001 (no error may end a loop; `_ours` logs it)
                async with self._awake_for_another(token):
                    await self._failed(_ours(error), self._push_backoff)
        self._gate.use_key(self._files.current.key)
        self._push_backoff.succeeded()
        self._on_documents()
        self._on_online()

    def _wait_for_token(self) -> None:
        state = self.state
        if state.phase is not Phase.WAITING_FOR_TOKEN:
            remedy = f"put a token in {self._files.token_file}, or set edge.enrolment_token"
            log.warning("waiting_for_token", remedy=remedy)
            state.phase, state.code, state.cause, state.remedy = Phase.WAITING_FOR_TOKEN, "", "", remedy

    @contextlib.asynccontextmanager
    async def _awake_for_another(self, token: str | None) -> AsyncIterator[None]:
        """While this lasts, another token than `token` ends a pause of pushing."""

        async def watch() -> None:
            while self._files.token() == token:  # noqa: ASYNC110 (a file wakes nobody)
                await asyncio.sleep(_TOKEN_POLL_S)
            self._push_backoff.wake()

        watching = asyncio.create_task(watch(), name="token")
        try:
            yield
        finally:
            watching.cancel()

    async def _enrol(self, token: str) -> None:
        answer = await self._gate.enrol(token, self._device_id)
        # The epoch first: a kill before the key is kept makes the device enrol again, and no batch is under way yet.
        await self._outgoing.begin_epoch(answer.epoch, answer.server_epoch)
        credentials = Credentials.of(answer, token)
        try:
            await asyncio.to_thread(self._files.save, credentials)
        except OSError as error:
            raise UnavailableError(f"cannot keep the key: {error.strerror}", remedy="check the disk") from None
        self._gate.use_key(credentials.key)
        self._reached()
        log.info("enrolled", epoch=answer.epoch)

    async def _push_forever(self) -> NoReturn:
        while True:
            await self._until_due()
            try:
                await self._push_once()
            except AuthenticationError as error:
                OPERATIONS.labels("push", "failed").inc()
                token = self._files.token()
                if not await self._enrolled_again(token):
                    async with self._awake_for_another(token):
                        await self._failed(error, self._push_backoff)
            except Exception as error:  # noqa: BLE001 (no error may end a loop; `_ours` logs it)
                OPERATIONS.labels("push", "failed").inc()
                await self._failed(_ours(error), self._push_backoff)
            else:
                OPERATIONS.labels("push", "ok").inc()

    async def _push_once(self) -> None:
        # First: what is in a batch keeps the time it has there.
        await self._gate.learn_time()
        batch = await self._outgoing.next_batch()
        if batch is None:
            await self._ensure_epoch()
            await self._until_backlog_may_go()
            # What waited is of a priority that may go no longer, where a window has just ended.
            await self._outgoing.count()
            return
        try:
            response = await self._gate.push(batch)
        except ConflictError as error:
            if error.code in _CLOUD_LOST_SOMETHING:
                await self._outgoing.begin_anew()
                return
            if error.code == "blob_missing":
                await self._await_blobs(batch, error)
                return
            if error.code != "replica_cloned" or not await self._outgoing.take_up_again(batch.batch_seq):
                raise
            log.warning("batch_was_applied", batch_seq=batch.batch_seq, why="the cloud failed after it had taken it")
            return
        except TransientError as error:
            # The gate's own word; silence, a busy gate and strangers between say nothing about the batch.
            if type(error) is not TransientError or not await self._outgoing.failed(batch.batch_seq, error.code):
                raise
            log.warning("batch_divided", batch_seq=batch.batch_seq, records=batch.records, code=error.code)
            return
        except InvalidInputError as error:
            await self._batch_refused(batch, error)
            return
        await self._take_answer(batch, response)

    async def _await_blobs(self, batch: Batch, error: ConflictError) -> None:
        """Send the batch otherwise, or wait until its blobs are uploaded once more."""
        log.warning("blob_missing", batch_seq=batch.batch_seq, records=batch.records, cause=error.message)
        if not await self._outgoing.await_blobs(batch.batch_seq):
            raise UnavailableError(error.message, remedy="wait for the upload", code=error.code) from None

    async def _batch_refused(self, batch: Batch, error: InvalidInputError) -> None:
        """Send the batch otherwise, where that may help; else raise what refused it."""
        if error.code in _DAMAGED_ON_THE_WAY:
            raise UnavailableError(error.message, remedy="check what stands between", code=error.code) from None
        if error.code == "unknown_dictionary":
            await self._outgoing.forgo_dictionary(batch.batch_seq)
            return
        log.warning("batch_refused", batch_seq=batch.batch_seq, records=batch.records, code=error.code)
        if not await self._outgoing.reject(batch.batch_seq, error.code):
            raise error

    async def _until_due(self) -> None:
        """Wait until a batch is full, or its first record has waited long enough, or somebody asks."""
        while not self._outgoing.waiting:
            self._work.clear()
            if not self._outgoing.waiting:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN_S):
                        await self._work.wait()
                if not self._work.is_set():
                    await self._outgoing.count()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.batch_wait_s):
                while not self._is_due():
                    self._work.clear()
                    await self._work.wait()
        self._flush = False

    async def _until_backlog_may_go(self) -> None:
        """Wait for the next share of what has fallen behind, or for something new, which need not wait for that."""
        self._work.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._outgoing.pause_s):
                await self._work.wait()

    def _is_due(self) -> bool:
        return self._flush or self._outgoing.is_urgent or self._outgoing.waiting >= self._settings.batch_records

    async def _ensure_epoch(self) -> None:
        """A new epoch, when the database does not know one: it was lost, the key was not."""
        async with self._epoch_lock:
            if await self._outgoing.epoch() is None:
                request = await self._outgoing.epoch_request()
                answer = await self._gate.begin_epoch(request)
                await self._outgoing.begin_epoch(answer.epoch, answer.server_epoch)
                log.warning("new_epoch", epoch=answer.epoch, why=request.reason)

    async def _take_answer(self, batch: Batch, response: PushResponse) -> None:
        await self._outgoing.acknowledge(batch.batch_seq, response)
        self.state.last_push_at = utc_now()
        self.state.pushed_records += batch.records
        self.state.pace.add(batch.records)
        self._push_backoff.succeeded()
        self._reached()
        if any(result.record is not None for result in response.results):
            self._on_documents()

    async def _enrolled_again(self, token: str | None) -> bool:
        """Whether a new token, left for a device whose key was revoked, made it known again."""
        if token is None:
            return False
        try:
            # The cursor first: with the new key, the other loop reads on from it at once.
            await self._documents.read_anew(Sweep.SHARED)
            await self._enrol(token)
        except Exception as error:  # noqa: BLE001 (no error may end a loop; `_ours` logs it)
            fault = _ours(error)
            log.warning("enrolment_failed", code=fault.code, cause=fault.message)
            return False
        self._on_documents()
        return True

    async def _pull_forever(self) -> NoReturn:
        while True:
            try:
                await self._pull_once()
            except Exception as error:  # noqa: BLE001 (no error may end a loop; `_ours` logs it)
                OPERATIONS.labels("pull", "failed").inc()
                self._pull_wait_s = 0.0
                await self._failed(_ours(error), self._pull_backoff)
            else:
                OPERATIONS.labels("pull", "ok").inc()

    async def _pull_once(self) -> None:
        loop, wait_s = asyncio.get_running_loop(), self._pull_wait_s
        started = loop.time()
        await self._ensure_epoch()
        position = await self._documents.position()
        try:
            page = await self._gate.pull(position, PULL_LIMIT, wait_s)
        except PrimeSparkError as error:
            if error.code == "must_resync":
                await self._documents.read_anew(Sweep.ALL)
            raise
        if page.server_epoch != self._server_epoch:
            # A page of another life of the cloud is left: it is asked for anew.
            if await self._outgoing.meet(page.server_epoch):
                return
            self._server_epoch = page.server_epoch
        is_changed = await self._documents.apply(page, position.cursor)
        self.state.last_pull_at = utc_now()
        self._pull_backoff.succeeded()
        self._reached()
        if is_changed:
            self._on_documents()
        if wait_s and not page.changes and loop.time() - started < _QUICK_ANSWER_S:
            await self._pull_backoff.pause()
        self._pull_wait_s = 0.0 if page.has_more else self._settings.pull_wait_s

    def _reached(self) -> None:
        """The cloud answered: say so, and let the other direction try at once."""
        state = self.state
        if state.phase is not Phase.ONLINE:
            log.info("online")
            self._push_backoff.wake()
            self._pull_backoff.wake()
            self._on_online()
        state.phase, state.code, state.cause, state.remedy = Phase.ONLINE, "", "", ""
        state.last_contact_at = utc_now()

    async def _failed(self, error: PrimeSparkError, backoff: Backoff) -> None:
        state = self.state
        is_refusal = isinstance(error, PermanentError)
        phase = Phase.REFUSED if is_refusal else Phase.OFFLINE
        if (state.phase, state.code) != (phase, error.code):
            log.warning("cloud_refuses" if is_refusal else "offline", code=error.code, cause=error.message)
        state.phase, state.code, state.cause = phase, error.code, error.message
        state.remedy = error.remedy or ("enrol with a new token" if isinstance(error, AuthorizationError) else "")
        at_least_s = _REFUSED_PAUSE_S if is_refusal else error.retry_after_s
        await backoff.pause(at_least_s)


def _ours(error: Exception) -> PrimeSparkError:
    """An error of our tree as it is; any other is logged whole, and must not end the loop that met it."""
    if isinstance(error, PrimeSparkError):
        return error
    log.error("unexpected_error", exc_info=error)
    return PrimeSparkError(f"an error of ours: {type(error).__name__}", remedy="report it with the log")
