"""The scheduled job that closes rounds: what it shows, what its checks say, and that it may run any number of times."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from primespark.core.clock import to_rfc3339, utc_now
from primespark.store import documents
from primespark.store.blobs import BlobStore
from primespark_assets.definitions import build_defs
from primespark_assets.sync.rounds import ROUND
from tests.integration.assets.drive import materializations
from tests.integration.store.builders import batch, fact, push

pytestmark = pytest.mark.usefixtures("devices")


def run_job(instance: dg.DagsterInstance) -> dict[str, dict[str, Any]]:
    """Run the job; metadata and outcome of each check."""
    result = build_defs().resolve_job_def("sync_batches").execute_in_process(instance=instance)
    assert result.success
    return {
        check.check_name: {
            "passed": check.passed, "severity": check.severity,
            **{name: value.value for name, value in check.metadata.items()},
        }
        for check in result.get_asset_check_evaluations()
    }  # fmt: skip


def report(engine: Engine, device_id: str, told: Any) -> None:
    """Put what a device says into its twin as stored, past what a real device would write."""
    with engine.begin() as connection:
        documents.write_cloud(connection, device_id, "twin", {"desired": {"x": 1}})
        connection.execute(
            text("UPDATE sync.document SET value = jsonb_build_object('reported', jsonb_build_object('sync',"
                 " CAST(:told AS jsonb))) WHERE scope = :scope"),
            {"told": told, "scope": device_id},
        )  # fmt: skip


def test_a_round_shows_what_came_in_and_goes_on_from_there(instance: dg.DagsterInstance, store_engine: Engine) -> None:
    with store_engine.begin() as connection:
        push(connection, batch(1, [fact(1), fact(2)]))
        push(connection, batch(1, [fact(1)], "edge-2"))
    checks = run_job(instance)
    assert {name: check["passed"] for name, check in checks.items()} == {
        "no_sequence_gaps": True, "no_dead_letters": True, "no_open_conflicts": True, "nothing_waits_too_long": True
    }  # fmt: skip
    run_job(instance)
    first, second = materializations(instance, *ROUND.path)
    assert (first["batches"], first["facts"], first["devices"]) == (2, 3, 2)
    assert (second["batches"], second["facts"], second["log_from"]) == (0, 0, first["log_to"])


def test_gaps_fail_their_check(instance: dg.DagsterInstance, store_engine: Engine) -> None:
    with store_engine.begin() as connection:
        push(connection, batch(1, [fact(1), fact(2)]))
        connection.execute(text("DELETE FROM sync.fact WHERE seq = 2"))
    check = run_job(instance)["no_sequence_gaps"]
    assert (check["passed"], check["severity"]) == (False, dg.AssetCheckSeverity.ERROR)
    assert check["culprits"] == [
        {"device_id": "edge-1", "epoch": 1, "stream": "telemetry", "seq_from": 1, "seq_to": 2, "missing": 1}
    ]


def test_dead_letters_and_old_facts_on_devices_fail_their_checks(
    instance: dg.DagsterInstance, store_engine: Engine
) -> None:
    two_hours_ago = to_rfc3339(utc_now() - timedelta(hours=2))
    report(store_engine, "edge-1", f'{{"pending": 7, "oldest_at": "{two_hours_ago}", "dead_letters": 0, "lost": 0}}')
    report(store_engine, "edge-2", '{"pending": 0, "dead_letters": 3, "lost": 4}')
    checks = run_job(instance)
    dead, waiting = checks["no_dead_letters"], checks["nothing_waits_too_long"]
    assert (dead["passed"], dead["found"], waiting["passed"], waiting["found"]) == (False, 1, False, 1)
    assert dead["culprits"][0] | {"oldest_at": None} == {
        "device_id": "edge-2", "pending": 0, "oldest_at": None, "dead_letters": 3, "lost": 4
    }  # fmt: skip
    assert waiting["culprits"][0]["device_id"] == "edge-1"
    assert waiting["oldest_age_s"] == pytest.approx(7200, abs=60)


@pytest.mark.parametrize(
    "told",
    ['"text"', "null", "[1]", '{"dead_letters": "3", "oldest_at": 5}', '{"dead_letters": -1, "oldest_at": "yesterday"}',
     '{"dead_letters": true, "oldest_at": "2026-01-01T00:00:00"}', '{"dead_letters": 1e300, "pending": 1.5}',
     '{"oldest_at": "0001-01-01T00:00:00+23:59"}'],
)  # fmt: skip
def test_whatever_a_device_tells_is_no_fault_of_the_job(
    told: str, instance: dg.DagsterInstance, store_engine: Engine
) -> None:
    report(store_engine, "edge-1", told)
    assert all(check["passed"] for check in run_job(instance).values())


def test_blobs_that_nothing_names_go_and_the_others_stay(
    instance: dg.DagsterInstance, store_engine: Engine, home: Path
) -> None:
    blobs = BlobStore(home / "blobs")
    artifact, named_by_stage, unnamed, young = (blobs.put(name.encode()) for name in "abcd")
    manifest = blobs.put(f'{{"payload": "{{\\"sha256\\": \\"{artifact}\\"}}"}}'.encode())
    for sha256 in (artifact, named_by_stage, unnamed, manifest):
        os.utime(blobs.path(sha256), (time.time() - 31 * 86_400,) * 2)
    with store_engine.begin() as connection:
        documents.write_cloud(connection, "edge-1", "twin", {"desired": {"models": {"m": {"manifest": manifest}}}})
        connection.execute(
            text(
                "INSERT INTO control.pipeline_stage (run_id, stage, output) VALUES ('r', 's', to_jsonb(:name ::text))"
            ),
            {"name": named_by_stage},
        )
    for removed in (1, 0):
        run_job(instance)
        assert materializations(instance, *ROUND.path)[-1]["removed_blobs"] == removed
        assert {sha256 for sha256, _ in blobs.kept_since()} == {artifact, named_by_stage, manifest, young}
    with store_engine.begin() as connection:
        documents.write_cloud(connection, "edge-1", "twin", {"desired": {"models": None}})
    # Named until now: their age began anew.
    run_job(instance)
    assert blobs.exists(manifest)
    assert blobs.exists(artifact)


def test_the_schedule_asks_for_a_round_every_five_minutes(instance: dg.DagsterInstance) -> None:
    schedule = build_defs().get_repository_def().get_schedule_def("sync_batches_schedule")
    moment = datetime(2026, 3, 1, 12, 5, tzinfo=UTC)
    with dg.build_schedule_context(instance=instance, scheduled_execution_time=moment) as context:
        (request,) = schedule.evaluate_tick(context).run_requests or []
    assert request.tags["dagster/schedule_name"] == "sync_batches_schedule"
    assert schedule.cron_schedule == "*/5 * * * *"
