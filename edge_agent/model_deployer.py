"""Models the cloud wants here: what the twin desires of each name is handed to its slot, what is not desired goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from edge_agent.backoff import Backoff
from edge_agent.credentials import CredentialFiles
from edge_agent.documents import TWIN, Documents
from edge_agent.gate_client import GateClient
from edge_agent.slots.download import BlobFolder
from edge_agent.slots.in_service import Slots
from edge_agent.slots.shelf import Shelf
from edge_agent.slots.slot import ModelSlot
from edge_agent.slots.stages import Verified
from edge_agent.slots.state import MODEL_NAME, Pointer, SlotState, StateFiles
from primespark.core.logging import get_logger
from primespark.core.settings import EdgeSettings
from primespark.core.variants import Runtime
from primespark.errors import IntegrityError, TransientError
from primespark.inference.models import Model, ServedModel

MAX_MODELS = 16
_RETRY_BASE_S = 0.5
_RETRY_MAX_S = 30.0

log = get_logger(__name__)


class ModelDeployer:
    """Brings what runs to what the twin desires.

    Args:
        folder: Where models are kept.
        slots: Models in service.
        documents: The twin.
        files: Keys trusted since enrolment.
        gate: Where blobs come from; None without a cloud.
        settings: Of the device.
        is_idle: Whether no inference waits.
        chip: What the accelerator runs; None without one.
        serve: A version as it is served, from its model on the processor.
    """

    def __init__(
        self,
        folder: Path,
        slots: Slots,
        documents: Documents,
        files: CredentialFiles,
        gate: GateClient | None,
        settings: EdgeSettings,
        is_idle: Callable[[], bool],
        chip: Callable[[], Runtime | None],
        serve: Callable[[Verified, ServedModel], Model],
    ) -> None:
        self._documents = documents
        self._files = files
        self._gate = gate
        self._states = StateFiles(folder)
        self._blobs = BlobFolder(folder / "blobs", settings.offline.minimum_free_disk_bytes)
        self._shelf = Shelf(
            slots, self._blobs, self._states, self._source, self._trusted, is_idle, self._report, self._tidy,
            chip, serve, settings, asyncio.Lock(),
        )  # fmt: skip
        self._slots: dict[str, ModelSlot] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._bad_names: set[str] = set()
        self._credentials = files.current
        self._backoff = Backoff(_RETRY_BASE_S, _RETRY_MAX_S)
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """The twin may have changed."""
        self._changed.set()
        self._backoff.wake()
        for slot in self._slots.values():
            slot.wake()

    async def run(self) -> NoReturn:
        """Serve the last good models, then follow the twin until cancelled."""
        await self._restore()
        self._changed.set()
        async with asyncio.TaskGroup() as group:
            while True:
                await self._changed.wait()
                self._changed.clear()
                try:
                    await self._reconcile(group)
                except (TransientError, OSError) as error:
                    log.warning("deployment_waits", cause=str(error))
                    await self._retry()
                except Exception:
                    # A fault of ours must not end the loop, and with it the device.
                    log.exception("deployment_failed")
                    await self._retry()
                else:
                    self._backoff.succeeded()

    async def _retry(self) -> None:
        self._changed.set()
        await self._backoff.pause()

    async def _restore(self) -> None:
        states = await asyncio.to_thread(self._states.load_all)
        self._slots = {name: ModelSlot(name, state, self._shelf) for name, state in states.items()}
        for slot in [slot for slot in self._slots.values() if slot.state.manifest is not None][:MAX_MODELS]:
            await slot.restore()

    async def _reconcile(self, group: asyncio.TaskGroup) -> None:
        if self._files.current is not self._credentials:
            # Enrolled since: other keys may be trusted.
            self._credentials = self._files.current
            for slot in self._slots.values():
                if slot.has_failed:
                    slot.pointer = None
        effective = await self._documents.effective(TWIN)
        wanted = self._well_named(_models_of(effective, "desired"))
        live = {name for name, slot in self._slots.items() if slot.state.manifest is not None}
        # All at once and first: while a name that cannot travel is left, nothing else can be reported.
        stale = _models_of(effective, "reported").keys() - wanted.keys() - live
        if stale:
            await self._documents.patch(TWIN, {"reported": {"models": dict.fromkeys(stale)}})
        for name, value in sorted(wanted.items())[:MAX_MODELS]:
            await self._follow(group, name, value)
        for name in sorted(self._slots.keys() - wanted.keys()):
            await self._withdraw(name)

    def _well_named(self, models: dict[str, Any]) -> dict[str, Any]:
        """Those whose name can be reported; any other is logged once."""
        well_named = {name: value for name, value in models.items() if MODEL_NAME.fullmatch(name)}
        bad_names = models.keys() - well_named.keys()
        for name in sorted(bad_names - self._bad_names):
            log.error("model_refused", model=name[:64], code="bad_pointer", cause="not a name of a model")
        self._bad_names = set(bad_names)
        return well_named

    async def _follow(self, group: asyncio.TaskGroup, name: str, value: Any) -> None:
        slot = self._slots.get(name)
        if slot is None:
            slot = self._slots[name] = ModelSlot(name, SlotState(), self._shelf)
        try:
            pointer = Pointer.parse(name, value)
        except IntegrityError as error:
            await self._end(name)
            await slot.reject(error.code)
            return
        if slot.pointer == pointer:
            await slot.report()
            return
        await self._end(name)
        slot.pointer = pointer
        self._tasks[name] = group.create_task(slot.follow(pointer), name=f"model-{name}")

    async def _withdraw(self, name: str) -> None:
        slot = self._slots[name]
        await self._end(name)
        if not slot.is_empty:
            await slot.withdraw()
            await self._documents.patch(TWIN, {"reported": {"models": {name: None}}})
        if slot.state == SlotState():
            del self._slots[name]

    async def _end(self, name: str) -> None:
        """Leave what is on its way under a name."""
        task = self._tasks.pop(name, None)
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait({task})

    async def _report(self, name: str, told: dict[str, Any]) -> None:
        await self._documents.patch(TWIN, {"reported": {"models": {name: told}}})

    def _source(self) -> GateClient | None:
        return self._gate if self._files.current is not None else None

    def _trusted(self) -> dict[str, bytes]:
        return self._files.current.trusted_keys() if self._files.current is not None else {}

    def _tidy(self) -> None:
        self._blobs.keep_only({sha256 for slot in self._slots.values() for sha256 in slot.blobs()})


def _models_of(twin: dict[str, Any], side: str) -> dict[str, Any]:
    """`models` of the twin's `desired` or `reported`, whatever else people wrote there."""
    part = twin.get(side)
    models = part.get("models") if isinstance(part, dict) else None
    return models if isinstance(models, dict) else {}
