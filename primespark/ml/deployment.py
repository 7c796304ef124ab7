"""The last stage: a judged candidate becomes a registered, signed and promoted version.

Every step finds what an earlier attempt made: the version by the digest of its file, the manifest by the version's
own time, the alias by its name. So a kill between any two of them leaves nothing twice.
"""

from __future__ import annotations

from typing import Protocol

from primespark.core.manifests import GoldenInput, Manifest, SigningKey, Variant
from primespark.errors import ConflictError
from primespark.ml.datasets import CLASSES
from primespark.ml.digits_model import MODEL, MODEL_TYPE
from primespark.ml.digits_pipeline import Blobs
from primespark.ml.outputs import Deployed, Evaluated, Judged
from primespark.ml.registry import RegisteredVersion


class Versions(Protocol):
    """The registry, as far as a deployment needs it."""

    def register(self, artifact: str, onnx: bytes, facts: dict[str, float]) -> RegisteredVersion:
        """The version with this file."""
        ...

    def attach_manifest(self, version: int, sha256: str, manifest: bytes) -> None:
        """Keep a version's signed manifest."""
        ...

    def promote(self, version: int) -> None:
        """Put a version into service."""
        ...

    def mark(self) -> int | None:
        """Changes with the registry."""
        ...


def deploy(
    judged: Judged,
    evaluated: Evaluated,
    versions: Versions,
    blobs: Blobs,
    key: SigningKey,
    rollback_counter: int = 0,
) -> Deployed:
    """Register, sign with the counter that devices do not fall behind, promote.

    Raises:
        ConflictError: Code `not_better`: the candidate did not pass, or the figures are another candidate's.
    """
    if not judged.passed or judged.artifact != evaluated.artifact:
        raise ConflictError(f"not to be deployed: {judged.reason}", remedy="train a better one", code="not_better")
    onnx = blobs.get(judged.artifact)
    facts = {"accuracy": judged.accuracy, "labels": float(judged.labels)}
    registered = versions.register(judged.artifact, onnx, facts)
    signed = key.sign(_manifest(registered, len(onnx), evaluated.golden, rollback_counter)).to_bytes()
    manifest = blobs.put(signed)
    versions.attach_manifest(registered.version, manifest, signed)
    versions.promote(registered.version)
    return Deployed(
        labels=judged.labels, version=registered.version, registered_at=registered.registered_at, manifest=manifest,
        artifact=judged.artifact, promoted=True, registry_mark=versions.mark(),
    )  # fmt: skip


def _manifest(registered: RegisteredVersion, size_bytes: int, golden: GoldenInput, rollback_counter: int) -> Manifest:
    return Manifest(
        name=MODEL,
        version=registered.version,
        model_type=MODEL_TYPE,
        created=registered.registered_at,
        labels=CLASSES,
        variants=(Variant(format="onnx", architecture="cpu", sha256=registered.artifact, size_bytes=size_bytes),),
        golden=golden,
        rollback_counter=rollback_counter,
    )
