"""Models the cloud wants here: fetched, verified, proven on a known input, exchanged, and reported."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from edge_agent.backoff import Backoff
from edge_agent.bundled_models import batching_of
from edge_agent.credentials import CredentialFiles
from edge_agent.documents import TWIN, Documents
from edge_agent.gate_client import GateClient
from edge_agent.inference_service import Slots
from primespark.core.clock import to_rfc3339
from primespark.core.identifiers import sha256_hex
from primespark.core.logging import get_logger
from primespark.core.manifests import Manifest, SignedManifest
from primespark.core.paths import private_directory, write_private
from primespark.core.settings import InferenceSettings
from primespark.errors import (
    IntegrityError,
    PermanentError,
    PrimeSparkError,
    TransientError,
    UnavailableError,
)
from primespark.inference.images import decode_image
from primespark.inference.models import DETECTOR, ServedModel, load_model

MAX_MODELS = 16
_RETRY_BASE_S = 0.5
_RETRY_MAX_S = 30.0
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_NAME = r"[a-z0-9][a-z0-9_.-]{0,62}"

log = get_logger(__name__)


class Pointer(BaseModel):
    """`desired.models.<name>` of a twin."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    version: Annotated[int, Field(gt=0)]
    manifest: _Sha256
    artifacts: Annotated[tuple[_Sha256, ...], Field(strict=False, min_length=1, max_length=16)]


@dataclass(frozen=True, slots=True)
class Deployed:
    """What runs under a name, as kept in `current.json`."""

    manifest: str
    artifact: str


class _BlobRefusedError(UnavailableError):
    """The cloud did not give a blob; it says nothing against the model, so it is reported and tried again."""


class ModelDeployer:
    """Brings what runs to what the twin desires.

    Args:
        folder: Where models are kept.
        slots: Models in service.
        documents: The twin.
        files: Keys trusted since enrolment.
        gate: Where blobs come from; None without a cloud.
        settings: Threads and limits.
    """

    def __init__(
        self,
        folder: Path,
        slots: Slots,
        documents: Documents,
        files: CredentialFiles,
        gate: GateClient | None,
        settings: InferenceSettings,
    ) -> None:
        self._blobs = private_directory(folder / "blobs")
        self._folder = folder
        self._slots = slots
        self._documents = documents
        self._files = files
        self._gate = gate
        self._settings = settings
        self._deployed: dict[str, Deployed] = {}
        self._failed: dict[str, Pointer] = {}
        self._bad_names: set[str] = set()
        self._credentials = files.current
        self._backoff = Backoff(_RETRY_BASE_S, _RETRY_MAX_S)
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """The twin may have changed."""
        self._changed.set()
        self._backoff.wake()

    async def run(self) -> NoReturn:
        """Serve the last good models, then follow the twin until cancelled."""
        await self._restore()
        self._changed.set()
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._reconcile()
            except (TransientError, OSError) as error:
                log.warning("deployment_waits", cause=str(error))
                await self._retry()
            except Exception:
                log.exception("deployment_failed")
                await self._retry()
            else:
                self._backoff.succeeded()

    async def _retry(self) -> None:
        self._changed.set()
        await self._backoff.pause()

    async def _restore(self) -> None:
        """Load what ran before, verified again; what fails is left to the twin."""
        for file in sorted(self._folder.glob("*.json"))[:MAX_MODELS]:
            try:
                kept = Deployed(**json.loads(file.read_bytes()))
                await self._deploy(file.stem, kept.manifest, (kept.artifact,), None)
            except (PrimeSparkError, OSError) as error:
                log.error("model_not_restored", model=file.stem, cause=str(error)[:200])
            except (ValueError, TypeError):
                log.error("model_not_restored", model=file.stem, cause="damaged record of what ran")
                file.unlink()
            except Exception:
                log.exception("model_not_restored", model=file.stem)

    async def _reconcile(self) -> None:
        if self._files.current is not self._credentials:
            # Enrolled since: other keys may be trusted.
            self._credentials = self._files.current
            self._failed.clear()
        effective = await self._documents.effective(TWIN)
        wanted = self._well_named(_models_of(effective, "desired"))
        self._failed = {name: pointer for name, pointer in self._failed.items() if name in wanted}
        # All at once and first: while a name that cannot travel is left, nothing else can be reported.
        stale = _models_of(effective, "reported").keys() - wanted.keys() - self._deployed.keys()
        if stale:
            await self._documents.patch(TWIN, {"reported": {"models": dict.fromkeys(stale)}})
        waiting: TransientError | None = None
        for name, value in sorted(wanted.items())[:MAX_MODELS]:
            try:
                await self._follow(name, value)
            except TransientError as error:
                # One blob that does not come must not hold up the other models.
                waiting = error
        for name in self._deployed.keys() - wanted.keys():
            await self._withdraw(name)
        if waiting is not None:
            raise waiting

    def _well_named(self, models: dict[str, Any]) -> dict[str, Any]:
        """Those whose name can be reported; any other is logged once."""
        well_named = {name: value for name, value in models.items() if re.fullmatch(_NAME, name)}
        bad_names = models.keys() - well_named.keys()
        for name in sorted(bad_names - self._bad_names):
            log.error("model_refused", model=name[:64], code="bad_pointer", cause="not a name of a model")
        self._bad_names = set(bad_names)
        return well_named

    async def _follow(self, name: str, value: Any) -> None:
        try:
            pointer = _parse_pointer(name, value)
        except IntegrityError as error:
            await self._report(name, error.code)
            return
        running = self._deployed.get(name)
        if self._failed.get(name) == pointer:
            return
        try:
            if running is None or running.manifest != pointer.manifest:
                await self._deploy(name, pointer.manifest, pointer.artifacts, pointer.version)
        except _BlobRefusedError as error:
            await self._report(name, error.code)
            raise
        except PermanentError as error:
            log.error("model_refused", model=name, code=error.code, cause=error.message)
            self._failed[name] = pointer
            await self._report(name, error.code)
            return
        self._failed.pop(name, None)
        await self._report(name, None)

    async def _deploy(self, name: str, manifest: str, artifacts: tuple[str, ...], version: int | None) -> None:
        """Prove a version and put it in service."""
        if name == DETECTOR:
            raise IntegrityError("the detector is the bundled one", code="reserved_model")
        signed = SignedManifest.parse(await self._blob(manifest))
        trusted = self._files.current.trusted_keys() if self._files.current else {}
        content = signed.verify(trusted)
        if content.name != name or version not in (None, content.version):
            raise IntegrityError(
                f"the manifest is of {content.name} {content.version}, not {name} {version}", code="wrong_manifest"
            )
        artifact = _choose_artifact(content, artifacts)
        onnx = await self._blob(artifact)
        model = await asyncio.to_thread(self._prove, content, onnx)
        await asyncio.to_thread(self._keep, name, Deployed(manifest, artifact))
        self._slots.put(model)
        log.info("model_serves", model=name, version=model.version, digest=model.digest)

    def _prove(self, manifest: Manifest, onnx: bytes) -> ServedModel:
        settings = self._settings
        model = load_model(manifest, onnx, settings.threads, settings.minimum_score, batching_of(settings))
        if manifest.golden is not None:
            try:
                image = base64.b64decode(manifest.golden.image_png_base64, validate=True)
            except binascii.Error:
                raise IntegrityError("the golden input is not base64", code="bad_manifest") from None
            answer = model.predict(decode_image(image, self._settings.max_image_pixels))
            if not answer or answer[0]["label"] != manifest.golden.label:
                raise IntegrityError("the golden input got another answer", code="golden_mismatch")
        return model

    def _keep(self, name: str, deployed: Deployed) -> None:
        content = {"manifest": deployed.manifest, "artifact": deployed.artifact}
        write_private(self._folder / f"{name}.json", json.dumps(content).encode())
        self._deployed[name] = deployed
        self._drop_unused_blobs()

    def _drop_unused_blobs(self) -> None:
        used = {sha256 for kept in self._deployed.values() for sha256 in (kept.manifest, kept.artifact)}
        for file in self._folder.glob("*.json"):
            used |= set(json.loads(file.read_bytes()).values())
        for blob in self._blobs.iterdir():
            if blob.name not in used:
                blob.unlink()

    async def _withdraw(self, name: str) -> None:
        log.info("model_withdrawn", model=name)
        self._slots.remove(name)
        (self._folder / f"{name}.json").unlink(missing_ok=True)
        del self._deployed[name]
        await self._documents.patch(TWIN, {"reported": {"models": {name: None}}})

    async def _report(self, name: str, error: str | None) -> None:
        """`reported.models.<name>`: what runs, and beside it why what is desired does not."""
        slot = self._slots.get(name)
        running: dict[str, Any] = {"version": None, "digest": None, "since": None}
        if slot is not None and name != DETECTOR:
            current = slot.model.current
            running = {"version": current.version, "digest": current.digest, "since": to_rfc3339(slot.since)}
        await self._documents.patch(TWIN, {"reported": {"models": {name: {**running, "error": error}}}})

    async def _blob(self, sha256: str) -> bytes:
        """A blob from the disk if it is whole there, else from the cloud."""
        path = self._blobs / sha256
        if path.exists():
            data = await asyncio.to_thread(path.read_bytes)
            if sha256_hex(data) == sha256:
                return data
            log.error("blob_damaged", sha256=sha256)
        if self._gate is None or self._files.current is None:
            raise UnavailableError("no cloud to fetch the model from", code="not_enrolled")
        try:
            data = await self._gate.blob(sha256)
        except PermanentError as error:
            # Not for good: the key may be replaced, a proxy mended; a copy that is behind may not have the blob yet.
            raise _BlobRefusedError(error.message, remedy=error.remedy, code=error.code) from None
        if shutil.disk_usage(self._blobs).free < 2 * len(data):
            raise UnavailableError("no space for the model", remedy="free disk space", code="disk_full")
        await asyncio.to_thread(write_private, path, data)
        return data


def _models_of(twin: dict[str, Any], side: str) -> dict[str, Any]:
    """`models` of the twin's `desired` or `reported`, whatever else people wrote there."""
    part = twin.get(side)
    models = part.get("models") if isinstance(part, dict) else None
    return models if isinstance(models, dict) else {}


def _parse_pointer(name: str, value: Any) -> Pointer:
    try:
        return Pointer.model_validate(value)
    except ValidationError as error:
        cause = error.errors()[0]["msg"]
        raise IntegrityError(f"desired.models.{name[:64]}: {cause}", code="bad_pointer") from None


def _choose_artifact(manifest: Manifest, offered: tuple[str, ...]) -> str:
    """The variant this device runs."""
    for variant in manifest.variants:
        if variant.format == "onnx" and variant.sha256 in offered:
            return variant.sha256
    raise IntegrityError("no variant for this device's engine is offered", code="no_variant")
