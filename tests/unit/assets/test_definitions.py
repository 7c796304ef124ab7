"""The code location as a whole: it loads with nothing there, and says the same everywhere it is named."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import yaml

from primespark.embedded import dagster as embedded
from primespark_assets.definitions import build_defs, defs
from primespark_assets.ml.assets import STAGES
from primespark_assets.partitions import FIRST_HOUR, HOURS, hour_key
from primespark_assets.sync.assets import CLASSES

ROOT = Path(__file__).parents[3]
HEAVY = ("mlflow", "faust", "sklearn", "skl2onnx", "pandas", "sqlalchemy", "psycopg2", "onnxruntime", "numpy")
STAGE_NAMES = [
    "data_ingestion", "data_validation", "preprocessing", "feature_engineering",
    "training", "evaluation", "model_validation", "deployment",
]  # fmt: skip


def test_it_loads_with_nothing_running_no_environment_and_no_heavy_import(tmp_path: Path) -> None:
    program = (
        "import sys; from primespark_assets.definitions import defs; import dagster as dg; "
        "dg.Definitions.validate_loadable(defs); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error::UserWarning"}
    outcome = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.strip() == "[]"
    assert outcome.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_the_graph() -> None:
    graph = defs.resolve_asset_graph()
    found = {
        key.to_user_string(): sorted(parent.to_user_string() for parent in graph.get(key).parent_keys)
        for key in graph.get_all_asset_keys()
    }
    stages = {f"ml/{name}": [f"ml/{before}"] for before, name in itertools.pairwise(STAGE_NAMES)}
    assert found == {
        "edge/telemetry": [],
        "edge/inference_results": [],
        "edge/labels": [],
        "edge/metrics": [],
        "edge/command_results": [],
        "edge/configurations": [],
        "sync/round": [f"edge/{name}" for name in sorted(CLASSES)],
        "analytics/hourly_rollup": ["edge/metrics", "edge/telemetry"],
        "analytics/raw_samples": ["analytics/hourly_rollup"],
        "ml/data_ingestion": ["edge/labels"],
        **stages,
    }
    assert {graph.get(key).group_name for key in graph.get_all_asset_keys()} == {"edge", "sync", "analytics", "ml"}
    assert [key.path[1] for stage in STAGES for key in stage.keys] == STAGE_NAMES


def test_what_starts_by_itself_does() -> None:
    repository = defs.get_repository_def()
    assert {sensor.name: sensor.default_status for sensor in repository.sensor_defs} == dict.fromkeys(
        ("edge_batches", "new_labels", "promoted_model"), dg.DefaultSensorStatus.RUNNING
    )
    assert {sensor.name: sensor.minimum_interval_seconds for sensor in repository.sensor_defs} == {
        "edge_batches": 30, "new_labels": 1, "promoted_model": 1
    }  # fmt: skip
    assert {schedule.name: schedule.default_status for schedule in repository.schedule_defs} == {
        "hourly_rollup_schedule": dg.DefaultScheduleStatus.RUNNING,
        "sync_batches_schedule": dg.DefaultScheduleStatus.RUNNING,
        "retention_schedule": dg.DefaultScheduleStatus.RUNNING,
    }


def test_jobs_run_in_one_process_and_end() -> None:
    for name in ("digits_pipeline_job", "hourly_rollup_job", "sync_batches", "retention_job"):
        job = defs.resolve_job_def(name)
        assert job.executor_def is dg.in_process_executor
        assert float(job.tags["dagster/max_runtime"]) > 0
    assert len(defs.resolve_job_def("digits_pipeline_job").graph.node_defs) == len(STAGE_NAMES)


def test_the_gate_blocks_and_the_stages_share_one_pool() -> None:
    graph = defs.resolve_asset_graph()
    checks = {f"{check.asset_key.to_user_string()}:{check.name}": check for check in graph.asset_check_keys}
    assert sorted(checks) == [
        "ml/model_validation:better_than_champion",
        "sync/round:no_dead_letters", "sync/round:no_open_conflicts",
        "sync/round:no_sequence_gaps", "sync/round:nothing_waits_too_long",
    ]  # fmt: skip
    blocking = [name for name, check in checks.items() if graph.get_check_spec(check).blocking]
    assert blocking == ["ml/model_validation:better_than_champion"]
    assert {stage.op.pool for stage in STAGES} == {"digits_model"}


def test_an_override_replaces_a_resource_and_every_call_is_fresh() -> None:
    class Other(dg.ConfigurableResource["Other"]):
        pass

    other = Other()
    assert build_defs({"store": other}).resources["store"] is other  # type: ignore[index]
    assert build_defs() is not build_defs()


def test_the_current_hour_is_a_partition() -> None:
    now = datetime(2026, 5, 1, 12, 34, tzinfo=UTC)
    keys = HOURS.get_partition_keys(current_time=now)
    assert keys[0] == hour_key(FIRST_HOUR) == "2026-01-01-00:00"
    assert keys[-1] == "2026-05-01-12:00"
    assert hour_key(datetime.fromisoformat("2026-05-01T14:00+02:00")) == keys[-1]
    assert len(keys) == (now - FIRST_HOUR) // timedelta(hours=1) + 1


def test_the_location_has_one_name_in_all_files() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text(encoding="utf-8"))
    (entry,) = workspace["load_from"]
    named = {
        (entry["python_module"]["module_name"], entry["python_module"]["location_name"]),
        (project["dagster"]["module_name"], project["dagster"]["code_location_name"]),
        (project["dg"]["project"]["code_location_target_module"], project["dg"]["project"]["code_location_name"]),
    }
    assert named == {("primespark_assets.definitions", "primespark")}


def test_the_embedded_dagster_reads_the_same_instance_file_as_a_checkout() -> None:
    text = (ROOT / "dagster.yaml").read_text(encoding="utf-8")
    assert text == embedded._instance_configuration()
    assert (ROOT / "dagster.yaml").is_symlink()


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return dg.DagsterInstance.get()


def test_the_instance_file_is_understood(instance: dg.DagsterInstance) -> None:
    with instance:
        assert not instance.telemetry_enabled
        assert not instance.nux_enabled
        assert instance.run_monitoring_enabled
        assert not instance.run_retries_enabled
        workers = instance.get_sensor_settings()
        assert workers["use_threads"]
        assert workers["num_workers"] >= len(defs.get_repository_def().sensor_defs)
        concurrency = instance.get_concurrency_config()
        assert concurrency.pool_config.default_pool_limit == 1
        assert str(concurrency.pool_config.pool_granularity).endswith("RUN")
        assert concurrency.run_queue_config is not None
        assert concurrency.run_queue_config.max_concurrent_runs == 4
