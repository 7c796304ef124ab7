"""What carries a promoted model into the twins, on a real store, through several ticks."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine

from primespark.errors import InvalidInputError
from primespark.ml.registry import Registry
from primespark.store import documents, sync_log
from primespark_assets.ml import rollout
from primespark_assets.ml.sensors import promoted_model
from resources import StoreResource
from tests.integration.assets.drive import tick
from tests.integration.store.builders import enrol

Resources = dict[str, Any]
MANIFESTS = {version: f"{version:x}" * 64 for version in range(1, 5)}
ARTIFACTS = {version: f"{version + 8:x}" * 64 for version in range(1, 5)}


def deploy(version: int) -> None:
    output = {
        "version": version,
        "manifest": MANIFESTS[version],
        "artifact": ARTIFACTS[version],
        "labels": 60,
        "registry_mark": Registry().mark(),
    }
    StoreResource().save_stage(f"run-{version}", "deployment", output)


def wanted(version: int) -> dict[str, Any]:
    return {"version": version, "manifest": MANIFESTS[version], "artifacts": [ARTIFACTS[version]]}


def desired(engine: Engine, device_id: str) -> Any:
    with engine.connect() as connection:
        twin = documents.read(connection, device_id, "twin")
    return twin.value["desired"]["models"]["digits"] if twin else None


def newest(engine: Engine) -> int:
    with engine.connect() as connection:
        return sync_log.newest(connection)


def test_every_device_gets_the_promoted_model_once(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, devices: None
) -> None:
    assert tick(promoted_model, instance, resources).skip_message == "no model has been promoted"
    deploy(1)
    found = tick(promoted_model, instance, resources)
    assert [desired(store_engine, name) for name in ("edge-1", "edge-2")] == [wanted(1), wanted(1)]
    before = newest(store_engine)
    again = tick(promoted_model, instance, resources, found.cursor)
    assert again.skip_message == "version 1 is desired of every device"
    assert newest(store_engine) == before
    deploy(2)
    tick(promoted_model, instance, resources, again.cursor)
    assert [desired(store_engine, name) for name in ("edge-1", "edge-2")] == [wanted(2), wanted(2)]


def test_a_device_that_enrols_later_gets_it_too(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, devices: None
) -> None:
    deploy(1)
    found = tick(promoted_model, instance, resources)
    with store_engine.begin() as connection:
        enrol(connection, "edge-3")
    tick(promoted_model, instance, resources, found.cursor)
    assert desired(store_engine, "edge-3") == wanted(1)


def test_a_tick_that_was_killed_half_way_is_finished_by_the_next(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, devices: None
) -> None:
    deploy(1)
    with store_engine.begin() as connection:
        documents.write_cloud(connection, "edge-1", "twin", {"desired": {"models": {"digits": wanted(1)}}})
    tick(promoted_model, instance, resources)
    assert desired(store_engine, "edge-2") == wanted(1)


def test_other_wishes_and_reports_in_a_twin_stand(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, devices: None
) -> None:
    with store_engine.begin() as connection:
        documents.write_cloud(
            connection, "edge-1", "twin", {"desired": {"frames_per_second": 2, "models": {"other": {"version": 9}}}}
        )
    deploy(1)
    tick(promoted_model, instance, resources)
    with store_engine.connect() as connection:
        twin = documents.read(connection, "edge-1", "twin")
    assert twin is not None
    assert twin.value["desired"] == {
        "frames_per_second": 2,
        "models": {"other": {"version": 9}, "digits": wanted(1)},
    }


def test_a_twin_that_cannot_be_written_keeps_the_model_from_no_other_device(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, devices: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write = documents.write_cloud

    def refusing(connection: Any, scope: str, key: str, patch: dict[str, Any]) -> Any:
        if scope == "edge-1":
            raise InvalidInputError("document of more than 10000 leaves", code="document_too_large")
        return write(connection, scope, key, patch)

    monkeypatch.setattr(documents, "write_cloud", refusing)
    deploy(1)
    found = tick(promoted_model, instance, resources)
    assert found.skip_message == "version 1 is desired of 1 more devices"
    assert desired(store_engine, "edge-2") == wanted(1)


def test_an_alias_moved_by_hand_is_followed_until_the_next_deployment(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, devices: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    registry = Registry()
    for version in (1, 2):
        made = registry.register(ARTIFACTS[version], b"onnx", {})
        registry.attach_manifest(made.version, MANIFESTS[version], b"{}")
        registry.promote(made.version)
    deploy(2)
    found = tick(promoted_model, instance, resources)
    registry.promote(1)
    found = tick(promoted_model, instance, resources, found.cursor)
    assert desired(store_engine, "edge-1")["version"] == 2, "the registry is looked at now and then, not in every tick"
    monkeypatch.setattr(rollout, "_ALIAS_INTERVAL_S", 0.0)
    found = tick(promoted_model, instance, resources, found.cursor)
    assert desired(store_engine, "edge-1") == wanted(1)
    found = tick(promoted_model, instance, resources, found.cursor)
    assert desired(store_engine, "edge-1") == wanted(1)
    deploy(3)
    tick(promoted_model, instance, resources, found.cursor)
    assert desired(store_engine, "edge-1") == wanted(3)


def test_a_registry_nobody_else_wrote_to_is_not_asked(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, devices: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[Registry] = []
    monkeypatch.setattr(Registry, "champion", lambda registry: asked.append(registry))
    monkeypatch.setattr(rollout, "_ALIAS_INTERVAL_S", 0.0)
    deploy(1)
    cursor = None
    for _ in range(3):
        cursor = tick(promoted_model, instance, resources, cursor).cursor
    assert asked == []
    registry = Registry()
    registry.register(ARTIFACTS[1], b"onnx", {})
    tick(promoted_model, instance, resources, cursor)
    assert len(asked) == 1


def test_a_waiting_tick_acts_when_the_stage_is_committed(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine
) -> None:
    with store_engine.begin() as connection:
        enrol(connection, "edge-1")
    committed: list[float] = []

    def commit() -> None:
        deploy(1)
        committed.append(time.monotonic())

    timer = threading.Timer(0.5, commit)
    timer.start()
    found = tick(promoted_model, instance, resources)
    ended = time.monotonic()
    timer.join()
    assert desired(store_engine, "edge-1") == wanted(1)
    assert ended - committed[0] < 1.0
    assert json.loads(found.cursor)["target"]["version"] == 1
