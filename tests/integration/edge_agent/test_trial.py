"""Versions are tried in a process of their own: what they do to it, they do to nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge_agent.slots.trial import Trial, try_version
from primespark.core.manifests import GoldenInput, Manifest, SignedManifest, SigningKey, TensorForm
from primespark.core.settings import InferenceSettings
from primespark.core.slot_settings import TrialSettings
from primespark.errors import IntegrityError
from tests.integration.edge_agent.device import until
from tests.integration.edge_agent.digits import Version, make_version
from tests.integration.edge_agent.odd_models import INPUTS, OUTPUTS, Oddity, make_odd_version

LIMITS = TrialSettings(timeout_s=60, max_memory_bytes=400_000_000)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey.load_or_create(tmp_path_factory.mktemp("key") / "signing.key")


def content(version: Version, key: SigningKey) -> Manifest:
    return SignedManifest.parse(version.manifest).verify({key.key_id: key.public_bytes})


async def attempt(version: Version, key: SigningKey, folder: Path, limits: TrialSettings = LIMITS) -> Trial:
    file = folder / "model.onnx"
    file.write_bytes(version.onnx)
    return await try_version(content(version, key), file, InferenceSettings(), limits)


def children() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "edge_agent.slots.trial_child" in child.cmdline()
    ]


@pytest.mark.parametrize("is_trained", [True, False])
async def test_a_good_version_is_measured(key: SigningKey, tmp_path: Path, is_trained: bool) -> None:
    version = make_version(1, key) if is_trained else make_odd_version(1, key)
    trial = await attempt(version, key, tmp_path)
    assert 0 < trial.run_s < 1
    assert 0 < trial.load_s < 10
    # Python, numpy and ONNX Runtime take some 60 MB, before any model.
    assert 40_000_000 < trial.peak_bytes < LIMITS.max_memory_bytes
    assert children() == []


@pytest.mark.parametrize(
    ("oddity", "fields", "limits", "code"),
    [
        (Oddity.HUGE, {}, LIMITS, "model_too_large"),
        # It never comes to tell of itself.
        (Oddity.HUGE_AND_ENDLESS, {}, LIMITS, "model_too_large"),
        (Oddity.ENDLESS, {}, TrialSettings(timeout_s=3), "model_too_slow"),
        (Oddity.NONE, {}, TrialSettings(max_memory_bytes=10_000_000), "model_too_large"),
        (Oddity.NONE, {"inputs": (TensorForm(name="x", type="float32", shape=(None, 64)),)}, LIMITS, "wrong_shape"),
        (Oddity.NONE, {"inputs": (INPUTS[0].model_copy(update={"type": "uint8"}),)}, LIMITS, "wrong_shape"),
        (Oddity.NONE, {"inputs": (INPUTS[0].model_copy(update={"shape": (1, 64)}),)}, LIMITS, "wrong_shape"),
        (Oddity.NONE, {"outputs": OUTPUTS[:1]}, LIMITS, "wrong_shape"),
        (Oddity.NONE, {"outputs": (*OUTPUTS, OUTPUTS[0])}, LIMITS, "wrong_shape"),
        (Oddity.NONE, {"labels": tuple("abc")}, LIMITS, "bad_model"),
        (Oddity.NONE, {"model_type": "pose"}, LIMITS, "bad_model"),
        (Oddity.NONE, {"golden": GoldenInput(image_png_base64="AAAA", label="0")}, LIMITS, "bad_manifest"),
        (Oddity.NONE, {"golden": GoldenInput(image_png_base64="?", label="0")}, LIMITS, "bad_manifest"),
    ],
)
async def test_a_bad_version_ends_its_own_process_with_a_reason(
    key: SigningKey, tmp_path: Path, oddity: Oddity, fields: dict[str, Any], limits: TrialSettings, code: str
) -> None:
    with pytest.raises(IntegrityError) as caught:
        await attempt(make_odd_version(1, key, oddity, **fields), key, tmp_path, limits)
    assert caught.value.code == code
    assert children() == []


async def test_another_answer_to_the_golden_input_is_refused(key: SigningKey, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError) as caught:
        await attempt(make_version(1, key, golden="5"), key, tmp_path)
    assert caught.value.code == "golden_mismatch"
    assert "got '0', not '5'" in caught.value.message


async def test_a_version_without_a_golden_input_must_run_all_the_same(key: SigningKey, tmp_path: Path) -> None:
    assert (await attempt(make_odd_version(1, key, golden=None), key, tmp_path)).run_s > 0


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
async def test_a_crash_takes_the_trial_alone(key: SigningKey, tmp_path: Path, number: signal.Signals) -> None:
    trying = asyncio.create_task(attempt(make_odd_version(1, key, Oddity.ENDLESS), key, tmp_path))
    await until(children)
    os.kill(children()[0].pid, number)
    with pytest.raises(IntegrityError) as caught:
        await trying
    assert caught.value.code == "model_crashed"


async def test_who_leaves_a_trial_leaves_no_process(key: SigningKey, tmp_path: Path) -> None:
    trying = asyncio.create_task(attempt(make_odd_version(1, key, Oddity.ENDLESS), key, tmp_path))
    await until(children)
    trying.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await trying
    assert children() == []
