"""The worker process on both brokers: what it computes, what it refuses, how it stops and goes on."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from primespark.core.encoding import compress
from tests.helpers import wait_until
from tests.integration.streams.stage import DEVICES, START_MS, Sent, Stage, averages, equals, recording, singles
from tests.unit.streams.arrow_tables import stream

# Where the broker makes no difference, the real one is for the proofs.
mostly_embedded = pytest.mark.parametrize(
    "broker", ["embedded_broker", pytest.param("apache_kafka", marks=pytest.mark.prove(only=True))], indirect=True
)


def test_windows_equal_a_recomputation_and_the_worker_stops_with_status_0(stage: Stage) -> None:
    rows = recording(DEVICES, minutes=30)
    stage.publish(singles(rows))
    worker = stage.start()
    wait_until(lambda: equals(stage, averages(rows)), 30)
    assert {revision for _value, _count, revision in stage.windows().values()} == {1}
    status, took_s = worker.stop()
    assert status == 0
    assert took_s < 4
    published = {}
    for record in stage.read(stage.target):
        result = json.loads(record.value)
        assert record.key.decode().startswith(f"{stage.name}|{result['group'][0]}|{result['window_start']}|")
        published[result["group"][0], result["window_start"]] = (result["value"], result["count"], result["revision"])
    assert published == stage.windows()


def test_a_worker_started_again_goes_on_where_the_last_one_stopped(stage: Stage) -> None:
    rows = recording(DEVICES, minutes=10)
    half = len(rows) // 2 + 7
    stage.publish(singles(rows[:half]))
    worker = stage.start()
    wait_until(lambda: len(stage.windows()) >= 24, 30)
    assert worker.stop()[0] == 0
    stage.publish(singles(rows[half:]))
    worker = stage.start()
    wait_until(lambda: equals(stage, averages(rows)), 30)
    assert worker.counter("events") <= len(rows) - half
    assert worker.stop()[0] == 0


@mostly_embedded
def test_batches_and_single_records_are_the_same(stage: Stage) -> None:
    rows = recording(DEVICES, minutes=5)
    batches = []
    for number, device in enumerate(DEVICES):
        own = [row for row in rows if row["device_id"] == device]
        if number < 3:
            kind, value = b"application/x-ndjson+zstd", compress("\n".join(map(json.dumps, own)).encode())
        else:
            kind, value = b"application/vnd.apache.arrow.stream", stream(pa.Table.from_pylist(own), "lz4")
        headers = (("content-type", kind), ("log_seq", str(number + 1).encode()))
        batches.append(Sent(value, number % 3, headers))
    stage.publish(batches)
    stage.start()
    wait_until(lambda: equals(stage, averages(rows)), 30)


def test_a_message_that_cannot_be_read_goes_to_the_dead_letters_and_stops_nothing(stage: Stage) -> None:
    rows = recording(["a"], minutes=2)
    poison = Sent(b'{"device_id": "a", ' + stage.name.encode(), 0, (("content-type", b"application/json"),))
    stage.publish([poison, *singles(rows)])
    worker = stage.start()
    wait_until(lambda: equals(stage, averages(rows)), 30)
    letters = [record for record in stage.read("edge.dead-letter") if record.value == poison.value]
    assert len(letters) == 1
    headers = {name: value.decode() for name, value in letters[0].headers}
    assert headers["code"] == "malformed"
    assert (headers["source-topic"], headers["source-partition"], headers["source-offset"]) == (stage.source, "0", "0")
    assert worker.counter("poison") == 1


@mostly_embedded
def test_what_the_relay_publishes_twice_is_counted_once(stage: Stage) -> None:
    rows = recording(["a"], minutes=3)
    messages = [Sent.row(row, 0, log_seq=number) for number, row in enumerate(rows, 1)]
    again = messages[5:20]
    stage.publish([*messages[:20], *again, *messages[20:]])
    worker = stage.start()
    wait_until(lambda: equals(stage, averages(rows)), 30)
    assert worker.counter("duplicates") == len(again)


@mostly_embedded
def test_a_record_after_its_window_was_forgotten_goes_to_the_late_topic(stage: Stage) -> None:
    stage.write_rules({"allowed_lateness_seconds": 60}, aggregation_function="avg", value_field="cpu_percent")
    rows = recording(["a"], minutes=5)
    late = {"device_id": "a", "ts": START_MS + 1, "cpu_percent": 99.0}
    stage.publish(singles([*rows, late]))
    worker = stage.start()
    wait_until(lambda: equals(stage, averages(rows)) and worker.counter("late_dropped") == 1, 30)
    wait_until(lambda: [json.loads(record.value) for record in stage.read(f"{stage.target}.late")] == [late])


@mostly_embedded
def test_a_record_within_the_lateness_revises_its_window(stage: Stage) -> None:
    rows = recording(["a"], minutes=5)
    stage.publish(singles(rows))
    stage.start()
    wait_until(lambda: equals(stage, averages(rows)), 30)
    late = {"device_id": "a", "ts": START_MS + 1, "cpu_percent": 99.0}
    stage.publish(singles([late]))
    wait_until(lambda: equals(stage, averages([*rows, late])))
    assert stage.windows()["a", START_MS][2] == 2


@mostly_embedded
def test_a_broken_connection_to_the_store_delays_results_and_loses_none(stage: Stage, postgres_url: str) -> None:
    worker = stage.start_ready()
    engine = create_engine(postgres_url, poolclass=NullPool)
    rows = recording(DEVICES, minutes=5)
    waiting = text("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
    with engine.connect() as holder, engine.connect() as observer:
        holder.execute(text("LOCK TABLE metrics.window_result IN ACCESS EXCLUSIVE MODE"))
        stage.publish(singles(rows))
        wait_until(lambda: observer.execute(waiting).all())
        for (process_id,) in observer.execute(waiting).all():
            observer.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": process_id})
        wait_until(lambda: worker.counter("delivery_failures") >= 1)
        assert not worker.is_ready
        holder.rollback()
    wait_until(lambda: equals(stage, averages(rows)), 20)
    wait_until(lambda: worker.is_ready)
