"""What starts the pipeline, on a real store and an ephemeral instance, through several ticks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from primespark.store import pipeline
from primespark_assets.definitions import defs
from primespark_assets.ml.sensors import new_labels
from primespark_assets.ml.stage import REFUSED_TAG
from tests.helpers import wait_until
from tests.integration.assets.drive import add_labels, seconds, tick
from tests.unit.ml.data import Row

Resources = dict[str, Any]
pytestmark = pytest.mark.usefixtures("no_waiting")


def label(engine: Engine, first: int, end: int, age_s: float = 60.0) -> None:
    add_labels(engine, [Row(f"s{number:05d}", str(number % 10), b"png") for number in range(first, end)], age_s)


def conclude(engine: Engine, stage: str, labels: int, **output: Any) -> None:
    with engine.begin() as connection:
        pipeline.save_stage(connection, f"run-{labels}", stage, {"labels": labels, **output})


def start(instance: dg.DagsterInstance, request: dg.RunRequest, status: dg.DagsterRunStatus, **tags: str) -> None:
    """A run as the daemon makes it of a request, which has come to `status`."""
    run = instance.create_run_for_job(
        defs.resolve_job_def("digits_pipeline_job"), tags={**request.tags, **tags}, status=status
    )
    assert run.job_name == "digits_pipeline_job"


def requested(instance: dg.DagsterInstance, resources: Resources) -> dg.RunRequest | None:
    requests = tick(new_labels, instance, resources).run_requests
    assert len(requests) <= 1
    return requests[0] if requests else None


def test_the_first_run_starts_from_the_first_sixty_labels(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine
) -> None:
    assert requested(instance, resources) is None
    label(store_engine, 0, 59)
    assert requested(instance, resources) is None
    label(store_engine, 59, 60)
    request = requested(instance, resources)
    assert request is not None
    assert request.run_key == "digits/60/1"


def test_labels_must_have_been_quiet(instance: dg.DagsterInstance, resources: Resources, store_engine: Engine) -> None:
    label(store_engine, 0, 100, age_s=0.0)
    found = tick(new_labels, instance, resources)
    assert found.skip_message == "labels are still coming in"


def test_the_next_run_needs_as_many_new_labels_again(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine
) -> None:
    label(store_engine, 0, 119)
    conclude(store_engine, "deployment", 60, version=1)
    assert requested(instance, resources) is None
    label(store_engine, 119, 120)
    request = requested(instance, resources)
    assert request is not None
    assert request.run_key == "digits/120/1"


def test_a_candidate_that_was_turned_down_is_not_trained_again_from_the_same_labels(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine
) -> None:
    label(store_engine, 0, 150)
    conclude(store_engine, "deployment", 60, version=1)
    conclude(store_engine, "model_validation", 150, passed=False)
    assert requested(instance, resources) is None


def test_no_second_run_beside_one_under_way_whoever_started_it(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine
) -> None:
    label(store_engine, 0, 100)
    start(instance, dg.RunRequest(), dg.DagsterRunStatus.STARTED)
    assert tick(new_labels, instance, resources).skip_message == "a run is under way"


def test_a_failed_run_is_retried_with_a_fresh_run_key_three_times_in_all(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine
) -> None:
    label(store_engine, 0, 100)
    keys = []
    for _ in range(6):
        request = requested(instance, resources)
        if request is None:
            break
        keys.append(request.run_key)
        start(instance, request, dg.DagsterRunStatus.FAILURE)
    assert keys == ["digits/100/1", "digits/100/2", "digits/100/3"]
    label(store_engine, 100, 160)
    request = requested(instance, resources)
    assert request is not None
    assert request.run_key == "digits/160/1"


@pytest.mark.parametrize(
    ("status", "tags"),
    [
        (dg.DagsterRunStatus.FAILURE, {REFUSED_TAG: "missing_classes"}),
        (dg.DagsterRunStatus.CANCELED, {}),
    ],
)
def test_a_verdict_or_a_persons_will_is_not_retried(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine,
    status: dg.DagsterRunStatus, tags: dict[str, str],
) -> None:  # fmt: skip
    label(store_engine, 0, 100)
    request = requested(instance, resources)
    assert request is not None
    start(instance, request, status, **tags)
    assert requested(instance, resources) is None


def test_a_fresh_dagster_home_does_not_train_what_was_trained(
    resources: Resources, store_engine: Engine, home: Path
) -> None:
    label(store_engine, 0, 100)
    conclude(store_engine, "deployment", 100, version=1)
    with dg.DagsterInstance.ephemeral() as fresh:
        assert requested(fresh, resources) is None


def test_a_tick_waits_for_the_labels_to_settle_and_then_starts(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from primespark_assets.ml import sensors

    monkeypatch.setattr(sensors, "LONG_POLL_S", 4.5)
    monkeypatch.setenv("PRIMESPARK_CLOUD__LEARNING__SETTLE_S", "0.4")
    label(store_engine, 0, 100, age_s=0.0)
    found: list[Any] = []
    assert seconds(lambda: found.append(requested(instance, resources))) < 3
    assert found[0].run_key == "digits/100/1"
    with store_engine.connect() as connection:
        quiet = connection.execute(text("SELECT clock_timestamp() - max(received_at) FROM control.label")).scalar_one()
    assert quiet.total_seconds() >= 0.4


def test_a_tick_that_waits_ends_when_waits_are_ended(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from primespark.store import database
    from primespark_assets.ml import sensors

    monkeypatch.setattr(sensors, "LONG_POLL_S", 60.0)
    label(store_engine, 0, 5)
    ticks: list[Any] = []
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(lambda: ticks.append(requested(instance, resources)))
        wait_until(lambda: listens(store_engine, "pipeline_stage"))
        database.end_waits(store_engine)
        ended.result(timeout=20)
    assert ticks == [None]


def listens(engine: Engine, channel: str) -> bool:
    query = text("SELECT count(*) FROM pg_stat_activity WHERE query = :query AND datname = current_database()")
    with engine.connect() as connection:
        return bool(connection.execute(query, {"query": f'LISTEN "{channel}"'}).scalar_one())
