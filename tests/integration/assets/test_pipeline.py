"""The eight stages against a real store and a real MLflow, in this process, as Dagster runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine

from primespark.core.manifests import SignedManifest, SigningKey
from primespark.ml.registry import Registry
from primespark.store import pipeline
from primespark.store.blobs import BlobStore
from primespark_assets.definitions import defs
from primespark_assets.ml.assets import STAGES
from primespark_assets.ml.stage import REFUSED_TAG
from tests.helpers import wait_until
from tests.integration.assets.drive import add_labels, materializations
from tests.unit.ml.data import digit_rows

ROOT = Path(__file__).parents[3]
NAMES = [stage.key.path[1] for stage in STAGES]


def run(instance: dg.DagsterInstance, run_id: str | None = None, only: str | None = None) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def("digits_pipeline_job").execute_in_process(
        instance=instance,
        raise_on_error=False,
        run_id=run_id,
        asset_selection=[dg.AssetKey(["ml", only])] if only else None,
    )


def latest(engine: Engine, stage: str) -> dict[str, Any] | None:
    with engine.connect() as connection:
        return pipeline.latest(connection, stage)


def test_two_versions_then_a_worse_candidate(home: Path, instance: dg.DagsterInstance, store_engine: Engine) -> None:
    """Version 1 from 60 labels, version 2 from all; what is then no better does not pass the gate."""
    registry, blobs = Registry(), BlobStore(home / "blobs")
    add_labels(store_engine, digit_rows(60))
    first = run(instance)
    assert first.success
    one = latest(store_engine, "deployment")
    assert one is not None
    assert (one["version"], one["labels"], one["promoted"]) == (1, 60, True)
    evaluated = latest(store_engine, "evaluation")
    assert evaluated is not None
    assert 0.8 <= evaluated["accuracy"] <= 0.93

    add_labels(store_engine, digit_rows(1078))
    assert run(instance).success
    two = latest(store_engine, "deployment")
    better = latest(store_engine, "evaluation")
    assert two is not None
    assert better is not None
    assert (two["version"], two["labels"]) == (2, 1078)
    assert better["accuracy"] >= 0.97
    assert better["champion_accuracy"] == evaluated["accuracy"]
    champion = registry.champion()
    assert champion is not None
    assert (champion.version, champion.artifact, champion.manifest) == (2, two["artifact"], two["manifest"])
    assert registry.mark() == two["registry_mark"], "reading must not look like writing"

    manifest = _verified(home, blobs, two["manifest"])
    assert (manifest.name, manifest.version, manifest.labels) == ("digits", 2, tuple("0123456789"))
    assert manifest.variants[0].sha256 == two["artifact"]
    assert manifest.variants[0].size_bytes == len(blobs.get(two["artifact"]))
    assert len(list((home / "mlflow" / "artifacts").rglob("model.onnx"))) == 2

    # Six wrong labels: another candidate, which is no better.
    wrong = [type(row)(f"wrong-{row.sample}", str((int(row.label) + 1) % 10), row.image_png) for row in digit_rows(60)]
    add_labels(store_engine, wrong)
    third = run(instance)
    assert not third.success
    assert [event.step_key for event in third.get_step_failure_events()] == ["ml__model_validation"]
    judged = latest(store_engine, "model_validation")
    assert judged is not None
    assert not judged["passed"]
    assert latest(store_engine, "deployment") == two
    assert registry.champion() == champion
    assert REFUSED_TAG in instance.get_run_by_id(third.run_id).tags  # type: ignore[union-attr]
    (check,) = third.get_asset_check_evaluations()
    assert not check.passed
    assert [len(materializations(instance, "ml", name)) for name in NAMES] == [3, 3, 3, 3, 3, 3, 3, 2]


def test_a_stage_that_runs_again_in_its_run_does_nothing_twice(
    home: Path, instance: dg.DagsterInstance, store_engine: Engine
) -> None:
    """A stage was stored, then its process was killed before Dagster knew."""
    add_labels(store_engine, digit_rows(60))
    run_id = dg.DagsterRun(job_name="x").run_id
    assert run(instance, run_id).success
    before = {name: _stage(store_engine, run_id, name) for name in NAMES}
    add_labels(store_engine, digit_rows(200))
    with dg.DagsterInstance.ephemeral() as forgetful:
        assert run(forgetful, run_id).success
    assert {name: _stage(store_engine, run_id, name) for name in NAMES} == before


@pytest.mark.parametrize("killed_after", ["register", "attach_manifest", "promote"])
def test_a_retry_after_a_kill_in_the_deployment_registers_nothing_twice(
    home: Path, instance: dg.DagsterInstance, store_engine: Engine,
    monkeypatch: pytest.MonkeyPatch, killed_after: str,
) -> None:  # fmt: skip
    add_labels(store_engine, digit_rows(60))
    step = getattr(Registry, killed_after)

    def killed(self: Registry, *arguments: Any) -> None:
        step(self, *arguments)
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(Registry, killed_after, killed)
        assert not run(instance).success
    assert latest(store_engine, "deployment") is None
    assert run(instance).success
    deployed = latest(store_engine, "deployment")
    champion = Registry().champion()
    assert champion is not None
    assert deployed is not None
    assert champion.version == deployed["version"] == 1
    assert champion.manifest == deployed["manifest"]
    _verified(home, BlobStore(home / "blobs"), deployed["manifest"])
    assert Registry().register(champion.artifact, b"", {}).version == 1
    assert len(list((home / "mlflow" / "artifacts").rglob("model.onnx"))) == 1


class KilledError(RuntimeError):
    """Nothing of the stage happens after it, as after a kill at exactly this place."""


@pytest.mark.parametrize("stored", ["training", "model_validation"])
def test_a_run_process_that_is_killed_leaves_nothing_the_next_run_stumbles_over(
    home: Path, instance: dg.DagsterInstance, store_engine: Engine, stored: str
) -> None:
    """A real SIGKILL as soon as a stage is stored, somewhere in the next one."""
    add_labels(store_engine, digit_rows(60))
    program = (
        "import dagster as dg\n"
        "from primespark_assets.definitions import defs\n"
        "with dg.DagsterInstance.ephemeral() as instance:\n"
        "    defs.resolve_job_def('digits_pipeline_job').execute_in_process(instance=instance)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: latest(store_engine, stored), timeout_s=60)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert run(instance).success
    deployed = latest(store_engine, "deployment")
    champion = Registry().champion()
    assert champion is not None
    assert deployed is not None
    assert champion.version == deployed["version"] == 1
    assert champion.manifest == deployed["manifest"]
    assert len(list((home / "mlflow" / "artifacts").rglob("model.onnx"))) == 1


def test_data_that_cannot_work_are_refused_with_cause_and_remedy(
    instance: dg.DagsterInstance, store_engine: Engine
) -> None:
    add_labels(store_engine, [row for row in digit_rows(200) if row.label != "4"])
    failed = run(instance)
    assert not failed.success
    (event,) = failed.get_step_failure_events()
    assert event.step_key == "ml__data_validation"
    failure = event.step_failure_data.user_failure_data
    assert failure is not None
    assert "no usable image of 4" in str(failure.description)
    assert failure.metadata["code"].value == "missing_classes"
    assert instance.get_run_by_id(failed.run_id).tags[REFUSED_TAG] == "missing_classes"  # type: ignore[union-attr]


def test_one_stage_alone_takes_up_the_latest_run(instance: dg.DagsterInstance, store_engine: Engine) -> None:
    assert not run(instance, only="preprocessing").success
    add_labels(store_engine, digit_rows(60))
    assert run(instance).success
    assert run(instance, only="preprocessing").success
    assert len(materializations(instance, "ml", "preprocessing")) == 2


def _stage(engine: Engine, run_id: str, stage: str) -> dict[str, Any] | None:
    with engine.connect() as connection:
        return pipeline.load_stage(connection, run_id, stage)


def _verified(home: Path, blobs: BlobStore, manifest: str) -> Any:
    key = SigningKey.load_or_create(home / "cloud" / "signing.key")
    return SignedManifest.parse(blobs.get(manifest)).verify({key.key_id: key.public_bytes})
