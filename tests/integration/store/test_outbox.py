"""The outbox and the lease of its relay; labels and stages."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine, text

from primespark.core.clock import utc_now
from primespark.errors import UnavailableError
from primespark.store import documents, labels, outbox, pipeline, sync_log
from primespark.store.labels import Label
from tests.integration.store.builders import T0, batch, enrol, fact, lost, push


def test_the_outbox_gives_rows_with_their_identity(store_engine: Engine) -> None:
    forged = {"device_id": "other", "seq": 99, "cpu_percent": 1.0}
    with store_engine.begin() as connection:
        enrol(connection)
        at = T0 + timedelta(microseconds=1_234_567)
        push(connection, batch(1, [fact(1, forged, time=at), lost(2, 3), fact(4), fact(1, stream="metrics")]))
        documents.write_cloud(connection, "edge-1", "twin", {"desired": {"a": 1}})
        push(connection, batch(2, [fact(5)]))
        batches = outbox.read(connection, 0, 10)
    # The metric is no valid one: no batch of its own.
    assert [(entry.data_class, entry.device_id) for entry in batches] == [
        ("telemetry", "edge-1"),
        ("configurations", "edge-1"),
        ("telemetry", "edge-1"),
    ]
    identity = {"device_id": "edge-1", "epoch": 1, "stream": "telemetry"}
    ts = int(T0.timestamp()) * 1000
    assert batches[0].rows == [
        identity | {"seq": 1, "ts": ts + 1234, "cpu_percent": 1.0},
        identity | {"seq": 4, "ts": ts + 4000, "cpu_percent": 4.0},
    ]
    assert batches[1].rows == []
    with store_engine.begin() as connection:
        assert outbox.read(connection, batches[0].log_seq, 1) == [batches[1]]
        assert outbox.read(connection, batches[-1].log_seq, 10) == []


def test_the_position_never_goes_back(store_engine: Engine) -> None:
    with store_engine.begin() as connection:
        assert outbox.position(connection) == 0
        for log_seq, expected in ((5, 5), (3, 5), (9, 9)):
            outbox.advance(connection, log_seq)
            assert outbox.position(connection) == expected


def test_one_relay_at_a_time(store_engine: Engine) -> None:
    with outbox.acquire_lease(store_engine) as lease:
        assert lease.is_held()
        with pytest.raises(UnavailableError) as caught:
            outbox.acquire_lease(store_engine)
        assert caught.value.code == "lease_taken"
    assert not lease.is_held()
    _until_free(store_engine)
    with outbox.acquire_lease(store_engine) as lease, store_engine.begin() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks JOIN pg_database d ON d.oid = database"
                " WHERE locktype = 'advisory' AND datname = current_database()"
            )
        )
        assert not lease.is_held()


def test_labels_are_read_as_they_were_at_a_time(store_engine: Engine) -> None:
    def label(sample: str, name: str, seconds: int = 0) -> Label:
        return Label(sample, name, b"png", "person:ann", T0 + timedelta(seconds=seconds))

    with store_engine.begin() as connection:
        assert labels.newest_received_at(connection, "digits") is None
        labels.add(connection, "digits", [label("b", "1"), label("a", "2"), label("a", "3", seconds=-1)])
        labels.add(connection, "other", [label("x", "1")])
    with store_engine.begin() as connection:
        then = labels.newest_received_at(connection, "digits")
        labels.add(connection, "digits", [label("c", "5"), label("a", "9", seconds=-5)])
    with store_engine.begin() as connection:
        assert labels.count(connection, "digits") == 3
        assert [(row.sample, row.label) for row in labels.read(connection, "digits")] == [
            ("a", "2"),
            ("b", "1"),
            ("c", "5"),
        ]
        assert labels.read(connection, "digits", then) == [label("a", "2"), label("b", "1")]
        assert [row.sample for row in labels.page(connection, "digits", "a", 1)] == ["b"]


def test_a_label_from_a_clock_ahead_can_be_corrected(store_engine: Engine) -> None:
    def label(name: str, ahead: timedelta) -> Label:
        return Label("a", name, b"png", "edge-1", utc_now() + ahead)

    for name, ahead in (("1", timedelta(days=400)), ("2", timedelta(days=300)), ("3", timedelta())):
        with store_engine.begin() as connection:
            labels.add(connection, "digits", [label(name, ahead)])
            (found,) = labels.read(connection, "digits")
        assert found.label == name
        assert found.labelled_at <= utc_now()
    with store_engine.begin() as connection:
        labels.add(connection, "digits", [label("4", timedelta(seconds=30))])
        labels.add(connection, "digits", [label("5", timedelta())])
        (found,) = labels.read(connection, "digits")
    assert found.label == "4"


def test_stages_hand_over(store_engine: Engine) -> None:
    with store_engine.begin() as connection:
        assert pipeline.load_stage(connection, "run-1", "training") is None
        assert pipeline.latest(connection, "training") is None
        pipeline.save_stage(connection, "run-1", "training", {"version": 1})
    with store_engine.begin() as connection:
        pipeline.save_stage(connection, "run-2", "training", {"version": 2})
        assert pipeline.latest(connection, "training") == {"version": 2}
    with store_engine.begin() as connection:
        pipeline.save_stage(connection, "run-1", "training", {"version": 3})
        assert pipeline.load_stage(connection, "run-1", "training") == {"version": 3}
        assert pipeline.latest(connection, "training") == {"version": 3}


def test_a_summary_tells_ranges_by_class(store_engine: Engine) -> None:
    with store_engine.begin() as connection:
        assert sync_log.summarise(connection, 0, 10) == sync_log.LogSummary(0, {})
        for device_id in ("edge-2", "edge-1"):
            enrol(connection, device_id)
            push(connection, batch(1, [fact(1), fact(2), fact(1, {}, "inference_results")], device_id))
        first = sync_log.summarise(connection, 0, 2)
        rest = sync_log.summarise(connection, first.next_cursor, 10)
    second = timedelta(seconds=1)
    telemetry = first.classes["telemetry"]
    assert (telemetry.devices, telemetry.batches, telemetry.rows) == (("edge-2",), 1, 2)
    assert (telemetry.time_from, telemetry.time_to) == (T0 + second, T0 + 2 * second)
    assert first.classes["inference_results"].rows == 1
    assert rest.classes["telemetry"].devices == ("edge-1",)
    assert telemetry.log_to < rest.classes["telemetry"].log_from <= rest.next_cursor


def _until_free(engine: Engine) -> None:
    """The server ends a closed session in its own time."""
    with engine.connect() as connection:
        held = text(
            "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database"
            " WHERE locktype = 'advisory' AND datname = current_database()"
        )
        while connection.execute(held).scalar_one():
            connection.rollback()
