"""One name: what is live under it, what is on its way, and what is told of both."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from prometheus_client import Counter

from edge_agent.backoff import Backoff
from edge_agent.slots import stages
from edge_agent.slots.phases import State
from edge_agent.slots.shelf import Shelf
from edge_agent.slots.stages import BlobRefusedError, TakenBackError, Verified
from edge_agent.slots.state import Attempt, Pointer, Refusal, SlotState
from edge_agent.slots.threads import in_thread
from edge_agent.slots.trial import try_version
from primespark.core.clock import to_rfc3339
from primespark.core.logging import get_logger
from primespark.core.manifests import Manifest
from primespark.errors import IntegrityError, PermanentError, PrimeSparkError, TransientError, UnavailableError
from primespark.inference.models import DETECTOR, ServedModel

_RETRY_BASE_S = 0.5
_RETRY_MAX_S = 30.0
# A process that ends in the middle so often was ended by the version.
_MOST_ATTEMPTS = 3
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

ROLLOUTS = Counter(
    "primespark_model_rollouts_total", "Versions that came into service, or why one did not.", ["outcome"]
)
ROLLOUTS.labels("live")

log = get_logger(__name__)


class ModelSlot:
    """The slot of one name.

    Args:
        name: Of the model.
        state: What is kept of it.
        shelf: What it shares with the others.
    """

    def __init__(self, name: str, state: SlotState, shelf: Shelf) -> None:
        self.name = name
        self.state = state
        self.pointer: Pointer | None = None
        self.has_failed = False
        self._shelf = shelf
        self._served: Verified | None = None
        self._on_its_way: State | None = None
        self._error: str | None = None
        self._backoff = Backoff(_RETRY_BASE_S, _RETRY_MAX_S)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is wanted, served or held against a version under this name."""
        return self.pointer is None and self.state == SlotState(highest_counter=self.state.highest_counter)

    @property
    def is_live(self) -> bool:
        """Whether a version serves."""
        return self.state.manifest is not None and self._shelf.slots.get(self.name) is not None

    def blobs(self) -> set[str]:
        """What must stay on the disk."""
        pointer = None if self.has_failed else self.pointer
        return self.state.blobs() | ({pointer.manifest, *pointer.artifacts} if pointer is not None else set())

    def wake(self) -> None:
        """Try again at once what was waiting for the link."""
        self._backoff.wake()

    async def restore(self) -> None:
        """Serve what served before, verified again; what fails is left to the twin."""
        manifest, artifact, accelerated = self.state.manifest, self.state.artifact, self.state.accelerated
        if manifest is None or artifact is None:
            return
        artifacts = (artifact, accelerated) if accelerated is not None else (artifact,)
        try:
            verified = await stages.bring(self._shelf.blobs, None, manifest, artifacts, self._check, self._shelf.chip)
            model = await asyncio.to_thread(stages.load, verified, self._shelf.settings.inference)
        except (PrimeSparkError, OSError) as error:
            log.error("model_not_restored", model=self.name, cause=str(error)[:200])
        except Exception:
            # Whatever a library raises about one file must not keep the other models from serving.
            log.exception("model_not_restored", model=self.name)
        else:
            self._serve(verified, model)
            log.info("model_serves", model=self.name, version=model.version, digest=model.digest)

    async def follow(self, pointer: Pointer) -> None:
        """Bring the version that is desired into service, then what serves onto an accelerator that comes up late."""
        self.pointer, self.has_failed = pointer, False
        for work in (self._settle, self._accelerate):
            while not await self._step(work, pointer):
                await self._backoff.pause()
            self._backoff.succeeded()

    async def reject(self, code: str) -> None:
        """Say why what is desired cannot be followed; what serves goes on."""
        self.pointer = None
        await self._tell(None, code)

    async def withdraw(self) -> None:
        """Serve nothing; only the counter is remembered, so that no older version comes back by this way."""
        if self.state.manifest is not None:
            log.info("model_withdrawn", model=self.name)
            slot = self._shelf.slots.get(self.name)
            self._shelf.slots.remove(self.name)
            if slot is not None:
                await in_thread(slot.model.retire)
        self.pointer = None
        await self._save(SlotState(highest_counter=self.state.highest_counter))
        self._shelf.tidy()

    async def report(self) -> None:
        """Say again what was said last."""
        await self._tell(self._on_its_way, self._error)

    async def _step(self, work: Callable[[Pointer], Awaitable[None]], pointer: Pointer) -> bool:
        """Whether all is done that can be done for a pointer."""
        try:
            await work(pointer)
        except (TransientError, OSError) as error:
            log.warning("deployment_waits", model=self.name, cause=str(error))
            return False
        except Exception:
            # Whatever a library raises about one file must not end the deployment of the others.
            log.exception("deployment_failed", model=self.name)
            return False
        return True

    async def _settle(self, pointer: Pointer) -> None:
        try:
            await self._bring(pointer)
        except PermanentError as error:
            await self._refuse(pointer, error)
        except UnavailableError as error:
            if isinstance(error, BlobRefusedError) or error.code == "disk_full":
                await self._tell(self._on_its_way, error.code)
            raise
        except OSError as error:
            await self._tell(self._on_its_way, "disk_full" if error.errno in _FULL else "disk_error")
            raise

    def _check(self, data: bytes) -> Manifest:
        version = self.pointer.version if self.pointer is not None else None
        return stages.check_manifest(data, self.name, version, self._shelf.trusted(), self.state.highest_counter)

    async def _bring(self, pointer: Pointer) -> None:
        if self.is_live and self.state.manifest == pointer.manifest:
            await self._tell(None, None)
            return
        if self.name == DETECTOR:
            raise IntegrityError("the detector is the bundled one", code="reserved_model")
        self._refuse_what_was_refused(pointer)
        await self._tell(State.DOWNLOADING, None)
        verified = await stages.bring(
            self._shelf.blobs, self._shelf.source(), pointer.manifest, pointer.artifacts, self._check,
            self._shelf.chip,
        )  # fmt: skip
        await self._tell(State.VERIFYING, None)
        await self._try(verified)
        await self._let_in(pointer, verified)
        await self._tell(None, None)

    def _refuse_what_was_refused(self, pointer: Pointer) -> None:
        refused, attempt = self.state.refused, self.state.attempt
        if refused is not None and refused.manifest == pointer.manifest:
            raise TakenBackError("it was taken back before", remedy="publish another", code=refused.code)
        if attempt is not None and attempt.manifest == pointer.manifest and attempt.count >= _MOST_ATTEMPTS:
            raise TakenBackError(
                f"the device ended {attempt.count} times in the middle of its trial",
                remedy="see the log, publish another",
                code="model_crashed",
            )

    async def _try(self, verified: Verified) -> None:
        settings = self._shelf.settings
        async with self._shelf.one_trial:
            trial = await try_version(verified.manifest, verified.file, settings.inference, settings.models.trial)
        log.info(
            "model_tried", model=self.name, version=verified.manifest.version, load_ms=round(trial.load_s * 1000, 1),
            run_ms=round(trial.run_s * 1000, 3), peak_bytes=trial.peak_bytes,
        )  # fmt: skip

    async def _let_in(self, pointer: Pointer, verified: Verified) -> None:
        """From here on the version is in the process that serves; a kill is counted, an orderly end is not."""
        before = self.state
        earlier = before.attempt if before.attempt and before.attempt.manifest == pointer.manifest else None
        attempt = Attempt(manifest=pointer.manifest, count=earlier.count + 1 if earlier else 1)
        await self._save(before.changed(attempt=attempt))
        try:
            model = await asyncio.to_thread(stages.load, verified, self._shelf.settings.inference)
            live = self._shelf.slots.get(self.name)
            if live is not None:
                await stages.prove_beside(
                    live, model, self._shelf.slots, self._shelf.settings.models, self._shelf.is_idle, self._enter
                )
        except BaseException:
            # Refused, broken or cancelled: only a kill leaves the attempt counted.
            await self._save(before.changed(attempt=earlier))
            raise
        await self._go_live(pointer, verified, model)

    async def _go_live(self, pointer: Pointer, verified: Verified, model: ServedModel) -> None:
        counter = max(self.state.highest_counter, verified.manifest.rollback_counter)
        accelerated = verified.accelerated.sha256 if verified.accelerated is not None else None
        artifact = verified.variant.sha256
        await self._save(
            SlotState(manifest=pointer.manifest, artifact=artifact, accelerated=accelerated, highest_counter=counter)
        )
        before = self._shelf.slots.get(self.name)
        self._serve(verified, model)
        if before is not None:
            # The chip is free for the new version then; who has taken the old one is answered by the processor.
            await in_thread(before.model.retire)
        self._shelf.tidy()
        ROLLOUTS.labels("live").inc()
        log.info("model_serves", model=self.name, version=model.version, digest=model.digest)

    def _serve(self, verified: Verified, model: ServedModel, since: datetime | None = None) -> None:
        self._served = verified
        self._shelf.slots.put(self._shelf.serve(verified, model), since)

    async def _accelerate(self, pointer: Pointer) -> None:
        """Once an accelerator answers, let it serve the version that serves on the processor alone."""
        served, live = self._served, self._shelf.slots.get(self.name)
        if served is None or live is None or served.accelerated is not None:
            return
        offered = (*pointer.artifacts, *self.state.blobs())
        found = await stages.bring_accelerated(
            served, offered, self._shelf.blobs, self._shelf.source, self._shelf.chip, self._backoff
        )
        if found is not None and found.accelerated is not None:
            await self._save(self.state.changed(accelerated=found.accelerated.sha256))
            # The processor's variant goes on answering until the accelerator's has proven itself.
            self._serve(found, live.model.current, live.since)

    async def _refuse(self, pointer: Pointer, error: PermanentError) -> None:
        log.error("model_refused", model=self.name, version=pointer.version, code=error.code, cause=error.message)
        ROLLOUTS.labels(error.code).inc()
        self.has_failed = True
        if isinstance(error, TakenBackError):
            refusal = Refusal(manifest=pointer.manifest, version=pointer.version, code=error.code)
            await self._save(self.state.changed(refused=refusal, attempt=None))
        self._shelf.tidy()
        await self._tell(None, error.code)

    async def _save(self, state: SlotState) -> None:
        def save() -> None:
            self._shelf.files.save(self.name, state)
            self.state = state

        await in_thread(save)

    async def _enter(self, state: State) -> None:
        log.info("model_state", model=self.name, state=state, version=self.pointer.version if self.pointer else None)
        await self._tell(state, None)

    async def _tell(self, on_its_way: State | None, error: str | None) -> None:
        """`reported.models.<name>`: what runs, and beside it where what is desired is, or why it does not run."""
        self._on_its_way, self._error = on_its_way, error
        told: dict[str, Any] = {"version": None, "digest": None, "since": None, "candidate": None}
        slot = self._shelf.slots.get(self.name)
        if slot is not None and self.name != DETECTOR:
            current = slot.model.current
            told |= {"version": current.version, "digest": current.digest, "since": to_rfc3339(slot.since)}
        if self.pointer is not None and (on_its_way is not None or error is not None):
            told["candidate"] = self.pointer.version
        state = on_its_way or (State.LIVE if told["version"] is not None else None)
        await self._shelf.report(self.name, {**told, "state": state, "error": error})
