"""The stages of a version on its way, each a function: what it needs, what it makes, why it refuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from importlib.metadata import version as version_of
from pathlib import Path

from edge_agent.accelerator import SERVED_TYPES
from edge_agent.backoff import Backoff
from edge_agent.bundled_models import batching_of
from edge_agent.slots.candidate import Candidate
from edge_agent.slots.download import BlobFolder, BlobSource
from edge_agent.slots.golden import check_golden, golden_array
from edge_agent.slots.in_service import Slot, Slots
from edge_agent.slots.phases import Limits, Plan, State, Verdict, judge
from edge_agent.slots.threads import in_thread
from primespark.core.logging import get_logger
from primespark.core.manifests import MAX_MANIFEST_BYTES, Manifest, SignedManifest, Variant
from primespark.core.settings import InferenceSettings
from primespark.core.slot_settings import SlotSettings
from primespark.core.variants import Runtime, usable_variants
from primespark.errors import IntegrityError, PermanentError, UnavailableError
from primespark.inference.models import ServedModel, load_model

MAX_MODEL_BYTES = 2 * 1024**3
# A run that hangs tells nobody, so it is looked for.
_LOOK_S = 1.0
_JOIN_S = 2.0

log = get_logger(__name__)

Report = Callable[[State], Awaitable[None]]


class BlobRefusedError(UnavailableError):
    """The cloud did not give a blob; it says nothing against the model, so it is reported and tried again."""


class TakenBackError(PermanentError):
    """What a version did beside the live one spoke against it; it is not tried again."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A version whose manifest is signed and whose files are here and whole.

    Attributes:
        manifest: Its content.
        variant: For the processor.
        file: Of that variant.
        accelerated: Variant for the accelerator; None where it has none, or there is no accelerator that runs it.
        hef: Its file.
    """

    manifest: Manifest
    variant: Variant
    file: Path
    accelerated: Variant | None = None
    hef: Path | None = None


def check_manifest(data: bytes, name: str, version: int | None, trusted: dict[str, bytes], counter: int) -> Manifest:
    """The content of a signed manifest.

    Args:
        data: The file.
        name: Of the model it must be of.
        version: It must be of; None: any.
        trusted: Raw Ed25519 public keys by key id.
        counter: Highest that was live here.

    Raises:
        IntegrityError: Code `bad_manifest`, `untrusted_signature`, `wrong_manifest` or `rolled_back_version`.
    """
    content = SignedManifest.parse(data).verify(trusted)
    if content.name != name or version not in (None, content.version):
        raise IntegrityError(
            f"the manifest is of {content.name} {content.version}, not {name} {version}", code="wrong_manifest"
        )
    if content.rollback_counter < counter:
        raise IntegrityError(
            f"its rollback counter is {content.rollback_counter}; one with {counter} was live here",
            remedy="sign a new manifest of the same file with a counter that is as high",
            code="rolled_back_version",
        )
    return content


def choose_variants(
    manifest: Manifest, offered: tuple[str, ...], chip: Runtime | None = None
) -> tuple[Variant, Variant | None]:
    """The files of a version that this device runs: the processor's, which always stands by, and the accelerator's.

    Raises:
        IntegrityError: Code `no_variant`: none for the processor.
    """
    processor = Runtime("onnx", version=version_of("onnxruntime"))
    accelerated = None
    if chip is not None and manifest.model_type in SERVED_TYPES:
        accelerated = next((variant for _, variant in usable_variants(manifest, offered, [chip])), None)
    for _, variant in usable_variants(manifest, offered, [processor]):
        return variant, accelerated
    raise IntegrityError("no variant for this device's engine is offered", code="no_variant")


async def fetch(blobs: BlobFolder, sha256: str, source: BlobSource | None, size_bytes: int | None = None) -> None:
    """Have a blob on the disk, from the cloud if it is not there; without a size it is a manifest.

    Raises:
        UnavailableError: It cannot be had now.
    """
    if await blobs.holds(sha256):
        return
    if source is None:
        raise UnavailableError("no cloud to fetch the model from", code="not_enrolled")
    try:
        await blobs.fetch(sha256, source, MAX_MANIFEST_BYTES, size_bytes)
    except PermanentError as error:
        # Not for good: the key may be replaced, a proxy mended; a copy that is behind may not have the blob yet.
        raise BlobRefusedError(error.message, remedy=error.remedy, code=error.code) from None


async def bring(
    blobs: BlobFolder,
    source: BlobSource | None,
    manifest_sha256: str,
    artifacts: tuple[str, ...],
    check: Callable[[bytes], Manifest],
    chip: Callable[[], Runtime | None],
) -> Verified:
    """Manifest, then the files of `artifacts` that it says this device runs.

    Raises:
        UnavailableError: One of the two cannot be had now.
        IntegrityError: What `check` raises; code `no_variant`, or `model_too_large`: no disk is for such a file.
    """
    await fetch(blobs, manifest_sha256, source)
    manifest = check(await asyncio.to_thread(blobs.path(manifest_sha256).read_bytes))
    # Asking the chip opens it: only for a version that has something for it.
    runtime = await in_thread(chip) if _is_for_accelerator(manifest, artifacts) else None
    variant, accelerated = choose_variants(manifest, artifacts, runtime)
    file = await _fetch_variant(blobs, variant, source)
    hef = await _fetch_variant(blobs, accelerated, source) if accelerated is not None else None
    return Verified(manifest, variant, file, accelerated, hef)


async def bring_accelerated(
    served: Verified,
    artifacts: tuple[str, ...],
    blobs: BlobFolder,
    source: Callable[[], BlobSource | None],
    chip: Callable[[], Runtime | None],
    pauses: Backoff,
) -> Verified | None:
    """A version that serves, with its file for the accelerator, once one answers; None where none of its files fits.

    Raises:
        UnavailableError: The file cannot be had now.
    """
    if not _is_for_accelerator(served.manifest, artifacts):
        return None
    while (runtime := await in_thread(chip)) is None:
        await pauses.pause()
    pauses.succeeded()
    try:
        _, accelerated = choose_variants(served.manifest, artifacts, runtime)
        hef = await _fetch_variant(blobs, accelerated, source()) if accelerated is not None else None
    except IntegrityError as error:
        log.error("accelerator_not_used", model=served.manifest.name, code=error.code, cause=error.message[:200])
        return None
    return replace(served, accelerated=accelerated, hef=hef)


def _is_for_accelerator(manifest: Manifest, artifacts: tuple[str, ...]) -> bool:
    is_served = manifest.model_type in SERVED_TYPES
    return is_served and any(one.format == "hef" and one.sha256 in artifacts for one in manifest.variants)


async def _fetch_variant(blobs: BlobFolder, wanted: Variant, source: BlobSource | None) -> Path:
    if wanted.size_bytes > MAX_MODEL_BYTES:
        raise IntegrityError(f"a file of {wanted.size_bytes} bytes, limit {MAX_MODEL_BYTES}", code="model_too_large")
    await fetch(blobs, wanted.sha256, source, wanted.size_bytes)
    return blobs.path(wanted.sha256)


def load(verified: Verified, inference: InferenceSettings) -> ServedModel:
    """A version loaded into this process, its golden input asked.

    Raises:
        IntegrityError: As `load_model`, or code `golden_mismatch`.
    """
    manifest = verified.manifest
    onnx, batching = verified.file.read_bytes(), batching_of(inference)
    model = load_model(manifest, onnx, inference.threads, inference.minimum_score, batching)
    check_golden(manifest.golden, model, golden_array(manifest, model, inference.max_image_pixels))
    return model


async def prove_beside(
    live: Slot, version: ServedModel, slots: Slots, settings: SlotSettings, is_idle: Callable[[], bool], report: Report
) -> None:
    """Shadow and canary; afterwards the live version serves alone again, whatever came of it.

    Raises:
        IntegrityError: Code `other_model_type`.
        TakenBackError: Code `candidate_failed`, `candidate_slower`, `candidate_disagrees` or `candidate_hangs`.
    """
    if live.model.model_type != version.model_type:
        raise IntegrityError(
            f"a {version.model_type} model under the name of a {live.model.model_type} model",
            remedy="publish it under another name, or withdraw the other first",
            code="other_model_type",
        )
    if live.model.current.digest == version.digest:
        return
    loop, seen = asyncio.get_running_loop(), asyncio.Event()
    candidate = Candidate(live.model, version, is_idle, lambda: _tell(loop, seen))
    slots.put(candidate, live.since)
    limits = Limits(settings.max_error_ratio, settings.max_latency_ratio, settings.minimum_agreement)
    try:
        for state, phase in ((State.SHADOW, settings.shadow), (State.CANARY, settings.canary)):
            if phase.requests:
                await report(state)
                candidate.begin(state, phase.share)
                await _observe(candidate, seen, Plan(phase.requests, phase.max_s), limits)
    finally:
        slots.put(live.model, live.since)
        candidate.end()
        if not await in_thread(candidate.join, _JOIN_S):
            log.warning("candidate_hangs", model=version.name, version=version.version)


async def _observe(candidate: Candidate, seen: asyncio.Event, plan: Plan, limits: Limits) -> None:
    started = time.monotonic()
    while True:
        seen.clear()
        elapsed_s = time.monotonic() - started
        verdict = judge(candidate.runs(), elapsed_s, plan, limits)
        if candidate.hangs:
            raise TakenBackError("the version does not end its answer", code="candidate_hangs")
        if verdict not in (Verdict.WAIT, Verdict.PROCEED):
            raise _taken_back(verdict)
        if verdict is Verdict.PROCEED:
            # What a run under way brings may speak against it yet.
            candidate.pause()
            if not candidate.is_busy:
                return
        try:
            remaining_s = plan.max_s - elapsed_s if verdict is Verdict.WAIT else _LOOK_S
            await asyncio.wait_for(seen.wait(), min(remaining_s, _LOOK_S))
        except TimeoutError:
            continue


def _taken_back(verdict: Verdict) -> TakenBackError:
    remedy = "train and publish again"
    if verdict is Verdict.FAILS:
        return TakenBackError("it fails where the live version answers", remedy=remedy, code="candidate_failed")
    if verdict is Verdict.IS_SLOWER:
        return TakenBackError("it is slower than edge.models allows", remedy=remedy, code="candidate_slower")
    return TakenBackError("its answers are not the live version's", remedy=remedy, code="candidate_disagrees")


def _tell(loop: asyncio.AbstractEventLoop, seen: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(seen.set)
