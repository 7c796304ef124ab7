"""`primespark models publish`: what a device pulls afterwards is what was given, signed by the cloud's key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine

from primespark.cli.publication import TWIN, Publication, list_deployed, publish, withdraw
from primespark.core.manifests import Manifest, SignedManifest, SigningKey
from primespark.core.settings import Settings, load_settings
from primespark.errors import InvalidInputError, NotFoundError
from primespark.store import documents
from primespark.store.blobs import BlobStore
from tests.integration.store.builders import enrol


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SigningKey:
    monkeypatch.setenv("PRIMESPARK_HOME", str(tmp_path))
    return SigningKey.load_or_create(tmp_path / "cloud" / "signing.key")


@pytest.fixture
def settings(postgres_url: str, key: SigningKey, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("PRIMESPARK_CLOUD__STORE__URL", postgres_url)
    return load_settings()


@pytest.fixture
def asked(tmp_path: Path, store_engine: Engine) -> Publication:
    """A classifier for two devices that are enrolled."""
    with store_engine.begin() as connection:
        for device_id in ("edge-1", "edge-2"):
            enrol(connection, device_id)
    onnx, labels, image = (tmp_path / name for name in ("parts.onnx", "labels.txt", "screw.png"))
    onnx.write_bytes(b"a graph")
    labels.write_text("screw\n\n nut \n", encoding="utf-8")
    image.write_bytes(b"a picture")
    return Publication(onnx, "parts", "classification", labels, (image, "nut"), None, ())


def desired(engine: Engine, device_id: str) -> dict[str, object]:
    with engine.begin() as connection:
        twin = documents.read(connection, device_id, TWIN)
    models = twin.value["desired"]["models"] if twin else {}
    assert isinstance(models, dict)
    return models


def manifest_of(pointer: dict[str, object], home: Path, key: SigningKey) -> Manifest:
    signed = SignedManifest.parse(BlobStore(home / "blobs").get(str(pointer["manifest"])))
    return signed.verify({key.key_id: key.public_bytes})


def test_every_device_is_pointed_to_what_was_given(
    settings: Settings, asked: Publication, store_engine: Engine, tmp_path: Path, key: SigningKey
) -> None:
    publish(settings, asked)
    pointer = desired(store_engine, "edge-1")["parts"]
    assert pointer == desired(store_engine, "edge-2")["parts"]
    assert isinstance(pointer, dict)
    manifest = manifest_of(pointer, tmp_path, key)
    assert (manifest.name, manifest.version, manifest.labels) == ("parts", 1, ("screw", "nut"))
    assert manifest.golden is not None
    assert manifest.golden.label == "nut"
    (artifact,) = pointer["artifacts"]
    assert (manifest.variants[0].sha256, manifest.variants[0].size_bytes) == (artifact, len(b"a graph"))
    assert BlobStore(tmp_path / "blobs").get(artifact) == b"a graph"


def test_versions_rise_over_all_who_serve(
    settings: Settings, asked: Publication, store_engine: Engine, tmp_path: Path, key: SigningKey
) -> None:
    publish(settings, replace(asked, version=7, device_ids=("edge-1",)))
    assert "parts" not in desired(store_engine, "edge-2")
    publish(settings, asked)
    pointers = [desired(store_engine, device_id)["parts"] for device_id in ("edge-1", "edge-2")]
    assert [manifest_of(pointer, tmp_path, key).version for pointer in pointers if isinstance(pointer, dict)] == [8, 8]


def test_what_is_withdrawn_is_desired_no_more(
    settings: Settings, asked: Publication, store_engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(settings, asked)
    withdraw(settings, "parts", ("edge-2",))
    capsys.readouterr()
    list_deployed(settings, as_json=True)
    items = json.loads(capsys.readouterr().out)["items"]
    assert [(item["device"], item["desired"], item["serves"]) for item in items] == [("edge-1", 1, None)]
    with pytest.raises(NotFoundError):
        withdraw(settings, "parts", ("edge-2",))


def test_what_no_device_would_take_is_refused_and_nothing_is_desired(
    settings: Settings, asked: Publication, store_engine: Engine
) -> None:
    assert asked.golden is not None
    for wrong in (
        replace(asked, name="No Name"),
        replace(asked, name="coco-ssd"),
        replace(asked, model_type="llm"),
        replace(asked, model_type="segmentation"),
        replace(asked, labels=None),
        replace(asked, golden=(asked.golden[0], "bolt")),
    ):
        with pytest.raises(InvalidInputError):
            publish(settings, wrong)
    with pytest.raises(NotFoundError):
        publish(settings, replace(asked, device_ids=("edge-1", "edge-3")))
    assert desired(store_engine, "edge-1") == {}


def test_a_machine_without_the_clouds_key_makes_none(
    settings: Settings, asked: Publication, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIMESPARK_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(NotFoundError):
        publish(settings, asked)
    assert not (tmp_path / "elsewhere" / "cloud").exists()
