"""Model manifests: what a version consists of, signed with Ed25519 over its exact bytes.

A manifest file is the JSON object `{"payload": <text>, "key_id": <hex>, "signature": <base64>}`; the signature is over
the UTF-8 bytes of `payload`, so no canonical form of JSON has to be agreed on.
"""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from primespark.core.identifiers import sha256_hex
from primespark.core.paths import write_private
from primespark.errors import IntegrityError

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RuntimeVersion = Annotated[str, Field(pattern=r"^[0-9]{1,6}(\.[0-9]{1,6}){0,3}$")]
TensorType = Literal[
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64",
]  # fmt: skip
MAX_MANIFEST_BYTES = 256 * 1024


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Variant(_Strict):
    """One file that serves the model on one kind of engine.

    Attributes:
        format: What kind of file.
        architecture: The chip it was compiled for; of an ONNX file it says nothing.
        sha256: Of the file.
        size_bytes: Of the file.
        runtime_min: First version of the engine's library (HailoRT, ONNX Runtime) that runs it; None: any.
        runtime_max: Last version; `4.23` stands for all of 4.23. None: any.
    """

    format: Literal["onnx", "hef"]
    architecture: str = Field(max_length=40)
    sha256: Sha256
    size_bytes: int = Field(gt=0)
    runtime_min: RuntimeVersion | None = None
    runtime_max: RuntimeVersion | None = None


class TensorForm(_Strict):
    """An input or output of a model's graph.

    Attributes:
        name: As in the graph.
        type: Of its elements, numpy's name.
        shape: Lengths of its axes; None where any length fits.
    """

    name: str = Field(max_length=200)
    type: TensorType
    shape: tuple[Annotated[int, Field(ge=0)] | None, ...] = Field(max_length=16, strict=False)


class GoldenInput(_Strict):
    """An input the device runs before it serves the model, and the label it must answer."""

    image_png_base64: str = Field(max_length=64 * 1024)
    label: str = Field(max_length=100)


class Manifest(_Strict):
    """One version of a model.

    Attributes:
        name: What it is asked for by.
        version: Number of the version.
        model_type: Which shape its predictions have.
        created: When it was registered.
        labels: Names of the classes it answers, by class id.
        variants: Its files.
        golden: An input it must answer rightly before it serves.
        inputs: What its graph takes, every input by name; None: not said.
        outputs: What its graph gives, every output by name; None: not said.
        rollback_counter: A device never goes back to a lower one than it served. Raise it with a version behind which
            no device may fall; equal counters leave the way back open.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")
    version: int = Field(gt=0)
    model_type: str = Field(max_length=40)
    created: datetime = Field(strict=False)
    labels: tuple[str, ...] = Field(max_length=10_000, strict=False)
    variants: tuple[Variant, ...] = Field(min_length=1, max_length=16, strict=False)
    golden: GoldenInput | None = None
    inputs: tuple[TensorForm, ...] | None = Field(default=None, max_length=64, strict=False)
    outputs: tuple[TensorForm, ...] | None = Field(default=None, max_length=64, strict=False)
    rollback_counter: int = Field(default=0, ge=0, lt=2**53)


class SignedManifest(_Strict):
    """A manifest as it travels and is stored."""

    payload: str
    key_id: str
    signature: str

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The signed manifest in a file's bytes, not yet verified.

        Raises:
            IntegrityError: Too large or not such a file.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise IntegrityError(f"manifest of {len(data)} bytes, limit {MAX_MANIFEST_BYTES}", code="bad_manifest")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise IntegrityError(f"not a signed manifest: {error.error_count()} faults", code="bad_manifest") from None

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        return self.model_dump_json().encode()

    def verify(self, trusted: dict[str, bytes]) -> Manifest:
        """The manifest, if a trusted key signed it.

        Args:
            trusted: Raw Ed25519 public keys (32 bytes) by key id.

        Raises:
            IntegrityError: Unknown key, wrong signature, malformed payload.
        """
        public = trusted.get(self.key_id)
        if public is None:
            raise IntegrityError(f"manifest signed by unknown key {self.key_id[:16]!r}", code="untrusted_signature")
        try:
            signature = base64.b64decode(self.signature, validate=True)
            Ed25519PublicKey.from_public_bytes(public).verify(signature, self.payload.encode())
        except (InvalidSignature, binascii.Error, ValueError):
            raise IntegrityError("manifest signature does not match", code="untrusted_signature") from None
        try:
            return Manifest.model_validate_json(self.payload)
        except ValidationError as error:
            raise IntegrityError(f"malformed manifest: {error.error_count()} faults", code="bad_manifest") from None


class SigningKey:
    """An Ed25519 key kept in a private file."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_bytes = private.public_key().public_bytes_raw()
        self.key_id = sha256_hex(self.public_bytes)[:16]

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """The key in `path`; a new one, written with mode 0600, when there is none."""
        if path.exists():
            return cls(Ed25519PrivateKey.from_private_bytes(path.read_bytes()))
        private = Ed25519PrivateKey.generate()
        write_private(path, private.private_bytes_raw())
        return cls(private)

    def sign(self, manifest: Manifest) -> SignedManifest:
        """`manifest`, signed over the bytes of its JSON."""
        payload = manifest.model_dump_json()
        signature = base64.b64encode(self._private.sign(payload.encode())).decode()
        return SignedManifest(payload=payload, key_id=self.key_id, signature=signature)
