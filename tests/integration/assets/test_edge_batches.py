"""Edge data in Dagster's history, on a real store and an ephemeral instance, through several ticks."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import dagster as dg
from sqlalchemy import Engine

from primespark.store import documents
from primespark_assets.sync import sensors as sync_sensors
from primespark_assets.sync.sensors import edge_batches
from tests.integration.assets.drive import materializations, store_events, tick
from tests.integration.store.builders import batch, enrol, fact, push

Resources = dict[str, Any]


def send(engine: Engine, number: int, seqs: range, stream: str = "telemetry", device: str = "edge-1") -> None:
    value = {"cpu_percent": 1.0} if stream == "telemetry" else {"model": "coco-ssd", "predictions": []}
    with engine.begin() as connection:
        push(connection, batch(number, [fact(seq, value, stream) for seq in seqs], device))


def test_many_batches_of_a_tick_are_one_event_per_class(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, devices: None
) -> None:
    send(store_engine, 1, range(1, 4))
    send(store_engine, 2, range(4, 6))
    send(store_engine, 1, range(1, 3), device="edge-2")
    send(store_engine, 2, range(1, 2), "inference_results", device="edge-2")
    found = tick(edge_batches, instance, resources)
    store_events(instance, found)
    assert not found.run_requests
    (telemetry,) = materializations(instance, "edge", "telemetry")
    assert (telemetry["batches"], telemetry["rows"], telemetry["devices"]) == (3, 7, ["edge-1", "edge-2"])
    assert telemetry["log_to"] >= telemetry["log_from"] > 0
    assert telemetry["time_to"] - telemetry["time_from"] == 4.0
    (results,) = materializations(instance, "edge", "inference_results")
    assert (results["batches"], results["rows"], results["devices"]) == (1, 1, ["edge-2"])
    assert materializations(instance, "edge", "labels") == []


def test_ticks_follow_each_other_without_gap_and_without_overlap(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, devices: None
) -> None:
    cursor = None
    for number in range(1, 6):
        send(store_engine, number, range(number, number + 1))
        found = tick(edge_batches, instance, resources, cursor)
        store_events(instance, found)
        cursor = found.cursor
    events = materializations(instance, "edge", "telemetry")
    assert [event["rows"] for event in events] == [1] * 5
    assert all(before["log_to"] < after["log_from"] for before, after in itertools.pairwise(events))
    quiet = tick(edge_batches, instance, resources, cursor)
    assert (quiet.asset_events, quiet.cursor, quiet.skip_message) == ([], cursor, "nothing came in")


def test_a_daemon_killed_before_it_stored_the_cursor_records_nothing_twice(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, devices: None
) -> None:
    send(store_engine, 1, range(1, 4))
    send(store_engine, 1, range(1, 3), "inference_results", "edge-2")
    first = tick(edge_batches, instance, resources)
    # One of the two events was stored, then the daemon was killed; the cursor is the old one, and more came in.
    instance.report_runless_asset_event(first.asset_events[0])
    send(store_engine, 2, range(4, 6))
    second = tick(edge_batches, instance, resources)
    store_events(instance, second)
    third = tick(edge_batches, instance, resources, second.cursor)
    assert third.asset_events == []
    assert [event["rows"] for event in materializations(instance, "edge", "telemetry")] == [3, 2]
    assert [event["rows"] for event in materializations(instance, "edge", "inference_results")] == [2]


def test_a_resent_batch_is_no_news(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, devices: None
) -> None:
    send(store_engine, 1, range(1, 4))
    found = tick(edge_batches, instance, resources)
    store_events(instance, found)
    send(store_engine, 1, range(1, 4))
    assert tick(edge_batches, instance, resources, found.cursor).asset_events == []


def test_a_batch_of_many_streams_is_one_batch(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, devices: None
) -> None:
    streams = [f"camera-{number}" for number in range(5)]
    with store_engine.begin() as connection:
        for number in (1, 2):
            facts = [fact(number, {"n": 1}, stream, data_class="inference_results") for stream in streams]
            push(connection, batch(number, facts))
    found = tick(edge_batches, instance, resources)
    store_events(instance, found)
    (results,) = materializations(instance, "edge", "inference_results")
    assert (results["batches"], results["rows"], results["devices"]) == (2, 10, ["edge-1"])


def test_batches_counted_over_all_ticks_are_those_applied_whatever_is_killed(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, devices: None, monkeypatch: Any
) -> None:
    # Pages that end in the middle of a batch, and a daemon that dies after each number of stored events in turn.
    monkeypatch.setattr(sync_sensors, "_MAX_LOG_ROWS_PER_TICK", 2)
    # Now and then the code server is another one, which does not know what the one before it answered.
    cursor, applied, killed_after, is_another = None, 0, itertools.cycle((0, 1, 2, 3)), itertools.cycle((0, 0, 1))
    for number in range(1, 25):
        facts = [fact(number, {"cpu_percent": 1.0}, f"board-{n}", data_class="telemetry") for n in range(3)]
        facts.append(fact(number, {"n": 1}, "inference_results"))
        with store_engine.begin() as connection:
            push(connection, batch(number, facts))
        applied += 1
        if next(is_another):
            monkeypatch.setattr(sync_sensors, "_answered", None)
        found = tick(edge_batches, instance, resources, cursor)
        survivors = next(killed_after)
        for event in found.asset_events[:survivors]:
            instance.report_runless_asset_event(event)
        if survivors >= len(found.asset_events):
            cursor = found.cursor
    while (found := tick(edge_batches, instance, resources, cursor)).cursor != cursor:
        store_events(instance, found)
        cursor = found.cursor
    for name, per_batch in (("telemetry", 3), ("inference_results", 1)):
        events = materializations(instance, "edge", name)
        assert sum(event["batches"] for event in events) == applied
        assert sum(event["rows"] for event in events) == applied * per_batch
        assert all(before["log_to"] < after["log_from"] for before, after in itertools.pairwise(events))


def test_what_the_tick_before_answered_is_not_looked_up(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, devices: None, monkeypatch: Any
) -> None:
    send(store_engine, 1, range(1, 4))
    first = tick(edge_batches, instance, resources)
    store_events(instance, first)
    send(store_engine, 2, range(4, 6))
    monkeypatch.setattr(instance, "get_latest_materialization_event", None)
    store_events(instance, tick(edge_batches, instance, resources, first.cursor))
    assert [event["rows"] for event in materializations(instance, "edge", "telemetry")] == [3, 2]


def test_changed_documents_are_one_event_of_a_tick(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, devices: None
) -> None:
    cursor = None
    for number in (1, 2):
        with store_engine.begin() as connection:
            for scope in ("edge-1", "fleet"):
                documents.write_cloud(connection, scope, "twin", {"desired": {"x": number}})
            documents.write_cloud(connection, "edge-1", "twin", {"desired": {"y": number}})
        found = tick(edge_batches, instance, resources, cursor)
        store_events(instance, found)
        cursor = found.cursor
    events = materializations(instance, "edge", "configurations")
    assert [(event["rows"], event["documents"], event["devices"]) for event in events] == [
        (3, 2, ["edge-1", "fleet"])
    ] * 2
    assert "batches" not in events[0]
    assert events[0]["log_to"] < events[1]["log_from"]
    assert tick(edge_batches, instance, resources, cursor).asset_events == []


def test_a_waiting_tick_ends_with_a_commit(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine
) -> None:
    with store_engine.begin() as connection:
        enrol(connection, "edge-1")
    committed: list[float] = []

    def commit() -> None:
        send(store_engine, 1, range(1, 4))
        committed.append(time.monotonic())

    timer = threading.Timer(0.5, commit)
    timer.start()
    found = tick(edge_batches, instance, resources)
    ended = time.monotonic()
    timer.join()
    assert len(found.asset_events) == 1
    assert ended - committed[0] < 1.0
