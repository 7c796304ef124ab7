"""Models come from the cloud into service: verified, proven, exchanged without dropping a request, kept, reported."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edge_agent.database import Database
from edge_agent.documents import Kept, store
from edge_agent.inference_service import Given, InferenceService
from primespark.core.identifiers import sha256_hex
from primespark.core.manifests import SigningKey
from primespark.core.settings import InferenceSettings
from primespark.inference.images import decode_image
from primespark.inference.models import InputKind
from primespark.sync.documents import Document, merge_patch, write
from tests.integration.edge_agent.device import Device, running_device, until
from tests.integration.edge_agent.digits import Version, digit_png, make_version
from tests.integration.edge_agent.gate import GateOracle, RunningGate

# Under `desired` a path of this name is as long as one may be, under `reported` longer.
LONG = "x" * 490


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey.load_or_create(tmp_path_factory.mktemp("key") / "signing.key")


@pytest.fixture
def signed_gate(gate: RunningGate, key: SigningKey) -> RunningGate:
    gate.oracle = GateOracle(key)
    return gate


def desire(oracle: GateOracle, models: dict[str, Any]) -> None:
    """The cloud writes `desired.models` into the twin, over what it knows of it."""
    known = oracle.documents.get(("edge-1", "twin"), {"value": {}, "vv": {}, "leaf_hlc": {}})
    before = Document(known["value"] or {}, known["vv"], known["leaf_hlc"])
    counter = before.vv.get("cloud", 0) + 1
    value = merge_patch(before.value, {"desired": {"models": models}})
    after = write(before, value, replica="cloud", counter=counter, hlc=f"{1_790_000_000_000 + counter}-0000-cloud")
    oracle.put_document(
        "edge-1",
        "twin",
        {
            "data_class": "configurations", "scope": "edge-1", "key": "twin", "op": "put", "vv": after.vv,
            "hlc": after.hlc, "leaf_hlc": after.leaf_hlc, "value": after.value,
        },
    )  # fmt: skip


def reported(oracle: GateOracle) -> dict[str, Any]:
    """What the device reported of its digit reader."""
    document = oracle.documents.get(("edge-1", "twin"), {})
    models = ((document.get("value") or {}).get("reported") or {}).get("models") or {}
    found: dict[str, Any] = models.get("digits") or {}
    return found


def serves(device: Device) -> int:
    slot = device.slots.get("digits")
    return slot.model.current.version if slot else 0


async def test_a_version_is_served_reported_and_restored_without_the_cloud(
    signed_gate: RunningGate, key: SigningKey, tmp_path: Path
) -> None:
    oracle, first = signed_gate.oracle, make_version(1, key)
    async with running_device(tmp_path, signed_gate.url) as device:
        first.leave_in(oracle)
        desire(oracle, {"digits": first.pointer})
        await until(lambda: reported(oracle).get("version") == 1)
        assert reported(oracle)["digest"] == sha256_hex(first.onnx)
        assert "error" not in reported(oracle)
        slot = device.slots.get("digits")
        assert slot is not None
        assert slot.model.current.predict(decode_image(digit_png(0), 10_000))[0]["label"] == "0"
    oracle.blobs.clear()
    oracle.keys.clear()
    async with running_device(tmp_path, "http://127.0.0.1:9") as device:
        await until(lambda: serves(device) == 1)


async def test_no_request_is_dropped_by_an_exchange(signed_gate: RunningGate, key: SigningKey, tmp_path: Path) -> None:
    oracle = signed_gate.oracle
    versions = [make_version(number, key, count=200 + number) for number in range(1, 5)]
    async with running_device(tmp_path, signed_gate.url) as device:
        service = InferenceService(device.slots, InferenceSettings())
        await _deploy(device, oracle, versions[0])
        done, seen = asyncio.Event(), []

        async def ask() -> None:
            while not done.is_set():
                found = await service.answer(
                    Given(InputKind.IMAGE, partial(decode_image, digit_png(0), 10_000)), "digits", None
                )
                assert found.predictions[0]["label"] == "0"
                seen.append(found.model_version)

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        for version in versions[1:]:
            await _deploy(device, oracle, version)
            count = len(seen)
            await until(lambda count=count: len(seen) > count + 8)  # type: ignore[misc]
        done.set()
        await asyncio.gather(*asking)
        service.close()
    assert set(seen) == {1, 2, 3, 4}
    assert len(list((tmp_path / "models" / "blobs").iterdir())) == 2


async def _deploy(device: Device, oracle: GateOracle, version: Version) -> None:
    version.leave_in(oracle)
    desire(oracle, {"digits": version.pointer})
    await until(lambda: serves(device) == version.version)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("another_key", "untrusted_signature"),
        ("golden", "golden_mismatch"),
        ("altered_manifest", "bad_manifest"),
        ("other_version", "wrong_manifest"),
        ("other_name", "wrong_manifest"),
        ("other_artifact", "no_variant"),
        ("damaged_model", "bad_model"),
        ("no_pointer", "bad_pointer"),
        ("damaged_blob", "digest_mismatch"),
    ],
)
async def test_a_bad_version_leaves_the_running_one(
    signed_gate: RunningGate, key: SigningKey, tmp_path: Path, fault: str, code: str
) -> None:
    oracle, good, third = signed_gate.oracle, make_version(1, key), make_version(3, key, count=220)
    async with running_device(tmp_path, signed_gate.url) as device:
        await _deploy(device, oracle, good)
        await until(lambda: reported(oracle).get("version") == 1)
        desire(oracle, {"digits": _bad_pointer(oracle, key, fault, tmp_path)})
        await until(lambda: reported(oracle).get("error") == code)
        assert (reported(oracle)["version"], serves(device)) == (1, 1)
        third.leave_in(oracle)
        desire(oracle, {"digits": {"version": 3, **third.pointer}})
        await until(lambda: reported(oracle).get("version") == 3)
        assert "error" not in reported(oracle)


def _bad_pointer(oracle: GateOracle, key: SigningKey, fault: str, folder: Path) -> Any:
    bad = make_version(2, key, count=210)
    pointer = dict(bad.pointer)
    if fault == "another_key":
        bad = make_version(2, SigningKey.load_or_create(folder / "other.key"), count=210)
        pointer = bad.pointer
    elif fault == "golden":
        bad = make_version(2, key, count=210, golden="5")
        pointer = bad.pointer
    elif fault == "altered_manifest":
        bad = Version(2, bad.onnx, b"no manifest")
        pointer = bad.pointer
    elif fault == "other_version":
        pointer["version"] = 7
    elif fault == "other_name":
        bad = make_version(2, key, count=210, name="letters")
        pointer = bad.pointer
    elif fault == "other_artifact":
        pointer["artifacts"] = ["0" * 64]
    elif fault == "damaged_model":
        pointer = _sign_damaged_model(oracle, key)
    elif fault == "no_pointer":
        pointer = {"version": "two"}
    bad.leave_in(oracle)
    if fault == "damaged_blob":
        oracle.blobs[sha256_hex(bad.onnx)] = bad.onnx[:-1]
    return pointer


def _sign_damaged_model(oracle: GateOracle, key: SigningKey) -> dict[str, Any]:
    from primespark.core.manifests import SignedManifest

    garbage = b"no model"
    good = make_version(2, key)
    manifest = SignedManifest.parse(good.manifest).verify({key.key_id: key.public_bytes})
    variant = manifest.variants[0].model_copy(update={"sha256": sha256_hex(garbage), "size_bytes": len(garbage)})
    damaged = Version(2, garbage, key.sign(manifest.model_copy(update={"variants": (variant,)})).to_bytes())
    damaged.leave_in(oracle)
    return damaged.pointer


async def test_a_blob_that_comes_later_is_waited_for(signed_gate: RunningGate, key: SigningKey, tmp_path: Path) -> None:
    oracle, version = signed_gate.oracle, make_version(1, key)
    async with running_device(tmp_path, signed_gate.url) as device:
        desire(oracle, {"digits": version.pointer})
        await until(lambda: reported(oracle).get("error") == "not_found")
        version.leave_in(oracle)
        await until(lambda: serves(device) == 1)
        await until(lambda: reported(oracle).get("version") == 1 and "error" not in reported(oracle))


@pytest.mark.parametrize("fault", [(401, "unauthenticated"), (403, "wrong_device"), (422, "invalid_input")])
async def test_a_blob_that_is_refused_is_asked_for_again(
    signed_gate: RunningGate, key: SigningKey, tmp_path: Path, fault: tuple[int, str]
) -> None:
    oracle, version = signed_gate.oracle, make_version(1, key)
    oracle.blob_faults.append(fault)
    version.leave_in(oracle)
    async with running_device(tmp_path, signed_gate.url) as device:
        desire(oracle, {"digits": version.pointer})
        await until(lambda: serves(device) == 1)
        await until(lambda: reported(oracle).get("version") == 1 and "error" not in reported(oracle))
    assert not oracle.blob_faults


async def test_a_blob_that_came_damaged_is_fetched_again(
    signed_gate: RunningGate, key: SigningKey, tmp_path: Path
) -> None:
    oracle, version = signed_gate.oracle, make_version(1, key)
    version.leave_in(oracle)
    oracle.blobs[sha256_hex(version.onnx)] = version.onnx[:-1]
    async with running_device(tmp_path, signed_gate.url) as device:
        desire(oracle, {"digits": version.pointer})
        await until(lambda: reported(oracle).get("error") == "digest_mismatch")
        version.leave_in(oracle)
        await until(lambda: serves(device) == 1)


async def test_a_version_is_tried_again_when_enrolment_brings_its_key(
    signed_gate: RunningGate, key: SigningKey, tmp_path: Path
) -> None:
    oracle, version = signed_gate.oracle, make_version(1, key)
    oracle.signing_key = None
    version.leave_in(oracle)
    async with running_device(tmp_path, signed_gate.url) as device:
        desire(oracle, {"digits": version.pointer})
        await until(lambda: reported(oracle).get("error") == "untrusted_signature")
        oracle.signing_key = key
        oracle.tokens = {"a-second-token-of-16"}
        (tmp_path / "enrolment.token").write_text("a-second-token-of-16")
        oracle.keys.clear()
        await device.enqueue(0)
        await until(lambda: serves(device) == 1)


async def test_the_fault_of_a_model_that_is_no_longer_desired_is_forgotten(
    signed_gate: RunningGate, key: SigningKey, tmp_path: Path
) -> None:
    oracle, bad = signed_gate.oracle, make_version(2, key, count=210, golden="5")
    bad.leave_in(oracle)
    async with running_device(tmp_path, signed_gate.url):
        for _ in range(2):
            desire(oracle, {"digits": bad.pointer})
            await until(lambda: reported(oracle).get("error") == "golden_mismatch")
            desire(oracle, {"digits": None})
            await until(lambda: reported(oracle) == {})


async def test_a_name_that_cannot_be_reported_holds_nothing_up(
    signed_gate: RunningGate, key: SigningKey, tmp_path: Path
) -> None:
    oracle, version = signed_gate.oracle, make_version(1, key)
    version.leave_in(oracle)
    # What an older version of the program reported of such a name.
    stamp = "1790000000000-0000-edge-1"
    poisoned = Document(
        {"reported": {"models": {LONG: {"error": "bad_pointer"}}}}, {"edge-1": 1},
        {f"/reported/models/{LONG}/error": stamp},
    )  # fmt: skip
    database = Database(tmp_path / "queue.db")
    database.submit(lambda connection: store(connection, Kept("edge-1", "twin", poisoned, is_dirty=True)))
    database.close()
    async with running_device(tmp_path, signed_gate.url) as device:
        desire(oracle, {LONG: 1, "Digits": version.pointer, "digits": version.pointer})
        await until(lambda: reported(oracle).get("version") == 1)
        await device.enqueue(0)
        await device.drained()
    twin = oracle.documents["edge-1", "twin"]["value"]
    assert twin["reported"]["models"].keys() == {"digits"}


async def test_a_withdrawn_model_is_served_no_longer(signed_gate: RunningGate, key: SigningKey, tmp_path: Path) -> None:
    oracle, version, other = signed_gate.oracle, make_version(1, key), make_version(1, key, name="other")
    other.leave_in(oracle)
    async with running_device(tmp_path, signed_gate.url) as device:
        await _deploy(device, oracle, version)
        await until(lambda: reported(oracle).get("version") == 1)
        desire(oracle, {"digits": None, "other": other.pointer})
        await until(lambda: serves(device) == 0)
        await until(lambda: reported(oracle) == {})
        await until(lambda: device.slots.get("other") is not None)
    async with running_device(tmp_path, "http://127.0.0.1:9") as device:
        # Restored in the order of their names: whatever was left of `digits` would be there before.
        await until(lambda: device.slots.get("other") is not None)
        assert serves(device) == 0


async def test_a_damaged_file_on_the_device_is_fetched_again(
    signed_gate: RunningGate, key: SigningKey, tmp_path: Path
) -> None:
    oracle, version = signed_gate.oracle, make_version(1, key)
    async with running_device(tmp_path, signed_gate.url) as device:
        await _deploy(device, oracle, version)
    (tmp_path / "models" / "blobs" / sha256_hex(version.onnx)).write_bytes(b"rust")
    async with running_device(tmp_path, signed_gate.url) as device:
        await until(lambda: serves(device) == 1)


async def test_a_disk_that_takes_nothing_is_told_and_tried_again(
    signed_gate: RunningGate, key: SigningKey, tmp_path: Path
) -> None:
    oracle, version = signed_gate.oracle, make_version(1, key)
    version.leave_in(oracle)
    async with running_device(tmp_path, signed_gate.url) as device:
        blobs = tmp_path / "models" / "blobs"
        blobs.rmdir()
        desire(oracle, {"digits": version.pointer})
        await until(lambda: reported(oracle).get("error") == "disk_error")
        blobs.mkdir()
        await until(lambda: serves(device) == 1)
        await until(lambda: reported(oracle).get("version") == 1 and "error" not in reported(oracle))
