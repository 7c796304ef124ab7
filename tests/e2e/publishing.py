"""Digit readers published as the pipeline's last stage and the sensor behind it do, some damaged afterwards.

What is published takes an evaluation's word, so a slow or a worse reader needs no more than a wrong one. The rest is
done to the store and the database of the cloud, as by who has these but sees to it that nothing looks amiss there.
"""

from __future__ import annotations

import base64
import logging
from enum import StrEnum
from pathlib import Path

from sklearn.datasets import load_digits

from primespark.core.identifiers import sha256_hex
from primespark.core.manifests import GoldenInput, Manifest, SignedManifest, SigningKey, TensorForm
from primespark.inference.digits import encode_digit_png
from primespark.ml import digits_pipeline
from primespark.ml.deployment import deploy
from primespark.ml.outputs import Deployed, Evaluated
from primespark.store.blobs import BlobStore
from primespark_assets.ml.rollout import SensorState, Work, find_work, point_devices
from resources import BlobResource, RegistryResource, StoreResource

_GOLDEN = GoldenInput(
    image_png_base64=base64.b64encode(encode_digit_png(load_digits().images[0])).decode(),
    label=str(load_digits().target[0]),
)


class Damage(StrEnum):
    """What becomes of a version between its publication and the devices' twins."""

    DIGEST = "digest"
    SIGNATURE = "signature"
    SHAPE = "shape"


class Publisher:
    """Publishes to the cloud that the environment names, as the code location's resources find it."""

    def __init__(self) -> None:
        blobs = BlobResource()
        self._store, self._registry = StoreResource(), RegistryResource().registry()
        self._blobs, self._key = blobs.store(), blobs.signing_key()
        self._state = SensorState()

    def publish(self, onnx: bytes, damage: Damage | None = None) -> int:
        """Register, sign, promote, damage, and write into every twin; the version's number."""
        evaluated = Evaluated(
            labels=1, artifact=self._blobs.put(onnx), held_back=1, accuracy=1.0, champion_version=None,
            champion_accuracy=None, is_champion=False, golden=_GOLDEN,
        )  # fmt: skip
        judged = digits_pipeline.judge(evaluated, 0.9)
        deployed = deploy(judged, evaluated, self._registry, self._blobs, self._key)
        if damage is not None:
            deployed = damaged(deployed, damage, self._blobs, self._key)
        self._store.save_stage(f"run-{deployed.version}", "deployment", deployed.model_dump(mode="json"))
        with self._store.transaction() as connection:
            work = find_work(connection, self._state)
        assert isinstance(work, Work)
        assert point_devices(self._store, work, logging.getLogger(__name__)) == len(work.devices) > 0
        self._state = self._state.after(work)
        return deployed.version


def damaged(deployed: Deployed, damage: Damage, blobs: BlobStore, key: SigningKey) -> Deployed:
    """What the database says then of a version, the store's files being changed."""
    if damage is Damage.DIGEST:
        _damage_file(blobs.path(deployed.artifact))
        return deployed
    signed = SignedManifest.parse(blobs.get(deployed.manifest))
    if damage is Damage.SIGNATURE:
        # Without the key nothing can be changed, were it only the labels' order.
        changed = signed.model_copy(update={"payload": signed.payload.replace('"1","2"', '"2","1"')})
        assert changed.payload != signed.payload
    else:
        manifest = Manifest.model_validate_json(signed.payload)
        inputs = (TensorForm(name="input", type="float32", shape=(None, 81)),)
        changed = key.sign(manifest.model_copy(update={"inputs": inputs}))
    return deployed.model_copy(update={"manifest": blobs.put(changed.to_bytes())})


def _damage_file(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert sha256_hex(path.read_bytes()) != path.name
