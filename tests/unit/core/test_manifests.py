"""Manifests are trusted by signature alone."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from primespark.core.manifests import MAX_MANIFEST_BYTES, Manifest, SignedManifest, SigningKey, Variant
from primespark.errors import IntegrityError

MANIFEST = Manifest(
    name="digits",
    version=2,
    model_type="tabular",
    created=datetime(2026, 1, 2, tzinfo=UTC),
    labels=("0", "1"),
    variants=(Variant(format="onnx", architecture="cpu", sha256="0" * 64, size_bytes=10),),
)


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.load_or_create(tmp_path / "signing.key")


def test_a_signed_manifest_survives_the_wire(key: SigningKey) -> None:
    signed = SignedManifest.parse(key.sign(MANIFEST).to_bytes())
    assert signed.verify({key.key_id: key.public_bytes}) == MANIFEST


def test_the_key_is_private_and_kept(key: SigningKey, tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load_or_create(path).key_id == key.key_id


def test_every_changed_byte_of_the_payload_is_noticed(key: SigningKey) -> None:
    signed = key.sign(MANIFEST)
    for position in range(0, len(signed.payload), 7):
        changed = signed.payload[:position] + chr(ord(signed.payload[position]) ^ 1) + signed.payload[position + 1 :]
        forged = SignedManifest(payload=changed, key_id=signed.key_id, signature=signed.signature)
        with pytest.raises(IntegrityError, match="signature"):
            forged.verify({key.key_id: key.public_bytes})


def test_an_unknown_signer_is_refused(key: SigningKey, tmp_path: Path) -> None:
    other = SigningKey.load_or_create(tmp_path / "other.key")
    with pytest.raises(IntegrityError) as caught:
        other.sign(MANIFEST).verify({key.key_id: key.public_bytes})
    assert caught.value.code == "untrusted_signature"


@pytest.mark.parametrize("data", [b"", b"{}", b"\x00" * 10, b"[1]", b" " * (MAX_MANIFEST_BYTES + 1)])
def test_other_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        SignedManifest.parse(data)
