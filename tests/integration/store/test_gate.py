"""The gate's transaction, one rule at a time."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from primespark.errors import AuthenticationError, ConflictError, InvalidInputError
from primespark.store import batches, devices, gate, labels
from primespark.sync.records import DataClass, Fact, PushResponse
from tests.helpers import wait_until
from tests.integration.store.builders import T0, batch, enrol, fact, lost, push

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n rest").decode()


@pytest.fixture
def engine(store_engine: Engine) -> Engine:
    with store_engine.begin() as connection:
        enrol(connection)
    return store_engine


def rows(engine: Engine, query: str) -> list[Any]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_a_batch_is_stored_with_its_samples_marks_and_log(engine: Engine) -> None:
    values: list[dict[str, Any]] = [
        {"cpu_percent": 10.5, "cores": 4, "on": True, "name": "x", "bad name": 1.0},
        {"cpu_percent": 11.0},
    ]
    with engine.begin() as connection:
        answer = push(connection, batch(1, [fact(1, values[0]), fact(2, values[1])]))
    assert (answer.status, answer.ack_batch_seq, answer.results, answer.server_epoch) == ("applied", 1, [], 1)
    assert rows(engine, "SELECT seq, value FROM sync.fact ORDER BY seq") == [(1, values[0]), (2, values[1])]
    assert rows(
        engine,
        "SELECT metric, device_id, source, labels, seq, value FROM metrics.sample JOIN metrics.series USING (series_id)"
        " ORDER BY metric, seq",
    ) == [
        ("cores", "edge-1", "telemetry", {}, 1, 4.0),
        ("cpu_percent", "edge-1", "telemetry", {}, 1, 10.5),
        ("cpu_percent", "edge-1", "telemetry", {}, 2, 11.0),
    ]
    assert {bucket for _, bucket in rows(engine, "SELECT series_id, bucket FROM metrics.dirty")} == {T0}
    assert rows(engine, "SELECT kind, data_class, seq_from, seq_to, rows, time_from, time_to FROM sync.log") == [
        ("facts", "telemetry", 1, 2, 2, T0 + timedelta(seconds=1), T0 + timedelta(seconds=2))
    ]


def test_a_fact_of_years_to_come_is_kept_without_a_sample(engine: Engine) -> None:
    ahead = datetime(2093, 3, 1, tzinfo=UTC)
    metric = {"name": "watts", "value": 1.0}
    records = [fact(1), fact(2, time=ahead), fact(3), fact(1, metric, "metrics", time=ahead)]
    with engine.begin() as connection:
        assert push(connection, batch(1, records)).results == []
    assert rows(engine, "SELECT stream, seq FROM sync.fact ORDER BY stream, seq") == [
        ("metrics", 1), ("telemetry", 1), ("telemetry", 2), ("telemetry", 3),
    ]  # fmt: skip
    assert rows(engine, "SELECT seq FROM metrics.sample ORDER BY seq") == [(1,), (3,)]


def test_the_same_batch_gets_the_same_answer(engine: Engine) -> None:
    request = batch(1, [fact(1), fact(1), fact(2, {"x": float("nan")})])
    with engine.begin() as connection:
        first = push(connection, request)
    with engine.begin() as connection:
        second = push(connection, request)
    assert [(result.index, result.status, result.code) for result in first.results] == [
        (1, "dup", None),
        (2, "rejected", "unstorable_value"),
    ]
    assert second == first.model_copy(update={"status": "replayed"})
    assert rows(engine, "SELECT count(*) FROM sync.fact") == [(1,)]


@pytest.mark.parametrize(
    ("number", "epoch", "records", "code"),
    [
        (1, 1, [fact(9, {"other": 1})], "replica_cloned"),
        (3, 1, [fact(2)], "batch_gap"),
        (1, 2, [fact(1)], "unknown_epoch"),
        (2, 1, [fact(3)], "seq_gap"),
        (2, 1, [lost(3, 4)], "seq_gap"),
        (2, 1, [fact(2), fact(2, stream="metrics")], "seq_gap"),
    ],
)
def test_what_does_not_follow_is_refused_whole(
    engine: Engine, number: int, epoch: int, records: list[Any], code: str
) -> None:
    with engine.begin() as connection:
        push(connection, batch(1, [fact(1)]))
    with pytest.raises(ConflictError) as caught, engine.begin() as connection:
        push(connection, batch(number, records, epoch=epoch))
    assert caught.value.code == code
    assert rows(engine, "SELECT stream, seq FROM sync.fact") == [("telemetry", 1)]
    with engine.begin() as connection:
        assert push(connection, batch(2, [fact(2)])).status == "applied"


def test_a_new_epoch_begins_again(engine: Engine) -> None:
    with engine.begin() as connection:
        push(connection, batch(1, [fact(1)]))
        assert devices.begin_epoch(connection, "edge-1") == 2
    with pytest.raises(ConflictError) as caught, engine.begin() as connection:
        push(connection, batch(2, [fact(2)]))
    assert caught.value.code == "stale_epoch"
    with engine.begin() as connection:
        push(connection, batch(1, [fact(1, time=T0 + timedelta(hours=1))], epoch=2))
    assert rows(engine, "SELECT epoch, seq FROM sync.fact ORDER BY epoch") == [(1, 1), (2, 1)]


def test_lost_ranges_count_as_received_and_are_told(engine: Engine) -> None:
    with engine.begin() as connection:
        push(connection, batch(1, [fact(1), lost(2, 5), fact(6)]))
        answer = push(connection, batch(2, [lost(3, 6), lost(5, 8), fact(9)]))
    assert [(result.index, result.status) for result in answer.results] == [(0, "dup")]
    assert rows(engine, "SELECT seq_from, seq_to, reason FROM sync.lost ORDER BY seq_from") == [
        (2, 5, "queue_full"),
        (7, 8, "queue_full"),
    ]
    assert rows(engine, "SELECT seq FROM sync.watermark") == [(9,)]


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (fact(1, {"text": "a\x00b"}), "unstorable_value"),
        (fact(1, {"text": "\ud800"}), "unstorable_value"),
        (fact(1, {"number": 10**5000}), "unstorable_value"),
        (fact(1, boot_id="\x00"), "unstorable_value"),
        (fact(1, time=datetime(1, 1, 1, tzinfo=UTC)), "bad_time"),
        (fact(1, time=datetime(9999, 12, 31, tzinfo=UTC)), "bad_time"),
        (fact(1, {f"field_{n}": n for n in range(101)}), "too_many_fields"),
        (fact(1, {"name": "x"}, stream="metrics"), "bad_metric"),
        (fact(1, {"name": "x", "value": 1, "labels": {"a": 1}}, stream="metrics"), "bad_metric"),
        (fact(1, {"name": "x", "value": 1, "labels": {"a": "b" * 2000}}, stream="metrics"), "series_too_long"),
        (fact(1, {"name": "x", "value": True}, stream="metrics"), "bad_metric"),
        (fact(1, {"dataset": "d", "sample": "s", "label": "7"}, stream="labels"), "bad_label"),
        (
            fact(1, {"dataset": "d", "sample": "s", "label": "7", "image_png_base64": "!"}, stream="labels"),
            "bad_label",
        ),
    ],
)
def test_a_fact_that_will_never_be_valid_does_not_stop_its_stream(engine: Engine, bad: Any, code: str) -> None:
    with engine.begin() as connection:
        answer = gate.apply_batch(
            connection, batch(1, [bad, fact(2, {"a": 1}, bad.stream, data_class="telemetry")]), "d", T0
        )
    assert [(result.index, result.status, result.code) for result in answer.results] == [(0, "rejected", code)]
    assert rows(engine, "SELECT seq FROM sync.fact") == [(2,)]
    assert rows(engine, "SELECT seq_from, seq_to, reason FROM sync.lost") == [(1, 1, f"rejected: {code}")]


def test_a_time_in_any_zone_is_taken(engine: Engine) -> None:
    with engine.begin() as connection:
        moments = [f"2026-03-01T12:00:00{offset}" for offset in ("+23:59", "-23:59", "Z")]
        records = [_wire(seq, moment) for seq, moment in enumerate(moments, 1)]
        # Before the first moment there is and after the last, in UTC.
        records += [_wire(4, "0001-01-01T00:00:00+01:00"), _wire(5, "9999-12-31T23:59:59-01:00")]
        answer = push(connection, batch(1, records))
        stored = list(connection.execute(text("SELECT time FROM sync.fact ORDER BY seq")).scalars())
    assert stored == [datetime.fromisoformat(moment) for moment in moments]
    assert [(result.index, result.code) for result in answer.results] == [(3, "bad_time"), (4, "bad_time")]


def _wire(seq: int, time: str) -> Fact:
    sent = fact(seq, {"cpu_percent": 1.0}).model_dump(mode="json") | {"time": time}
    return Fact.model_validate_json(json.dumps(sent))


def test_numbers_too_large_to_aggregate_stay_facts_only(engine: Engine) -> None:
    with engine.begin() as connection:
        push(connection, batch(1, [fact(1, {"large": 1e200, "huge": 10**400, "fine": 1e100})]))
    assert rows(engine, "SELECT metric FROM metrics.series") == [("fine",)]
    assert rows(engine, "SELECT value->>'huge' FROM sync.fact") == [(str(10**400),)]


def test_labels_and_metrics_of_facts(engine: Engine) -> None:
    label = {"dataset": "digits", "sample": "digit-1", "label": "7", "image_png_base64": PNG}
    metric = {"name": "water_litres", "value": 3, "labels": {"meter": "m1"}, "source": "meter"}
    with engine.begin() as connection:
        push(
            connection,
            batch(
                1,
                [
                    fact(1, label, "labels"),
                    fact(1, metric, "metrics"),
                    fact(2, label | {"label": "1"}, "labels"),
                    fact(3, label | {"label": "4"}, "labels", time=T0),
                ],
            ),
        )
        stored = labels.read(connection, "digits")
    # The newest word by its own time stands, not the last one to come.
    assert [(row.sample, row.label, row.source, row.labelled_at) for row in stored] == [
        ("digit-1", "1", "edge-1", T0 + timedelta(seconds=2))
    ]
    assert stored[0].image_png == base64.b64decode(PNG)
    assert rows(engine, "SELECT metric, source, labels FROM metrics.series") == [
        ("water_litres", "meter", {"meter": "m1"})
    ]


def test_a_forgotten_device_is_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        devices.forget(connection, "edge-1")
    with pytest.raises(AuthenticationError) as caught, engine.begin() as connection:
        push(connection, batch(1, [fact(1)]))
    assert caught.value.code == "unknown_device"


def test_streams_are_bounded(engine: Engine) -> None:
    records = [fact(1, {}, data_class=DataClass.TELEMETRY).model_copy(update={"stream": f"s{n}"}) for n in range(65)]
    with pytest.raises(InvalidInputError) as caught, engine.begin() as connection:
        push(connection, batch(1, records))
    assert caught.value.code == "too_many_streams"


def test_all_other_batches_wait_for_few_statements_of_one(engine: Engine) -> None:
    records = [fact(seq, {}, stream, data_class=DataClass.TELEMETRY) for stream in "abc" for seq in (1, 2)]
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    with engine.begin() as connection:
        push(connection, batch(1, records))
    event.remove(engine, "before_cursor_execute", note)
    locked = next(index for index, statement in enumerate(statements) if "pg_advisory_xact_lock" in statement)
    # What the answer says of this cloud, and the answer.
    assert len(statements[locked + 1 :]) == 2
    ranges = rows(engine, "SELECT stream, seq_from, seq_to, rows, batch_seq FROM sync.log ORDER BY log_seq")
    assert ranges == [("a", 1, 2, 2, 1), ("b", 1, 2, 2, 1), ("c", 1, 2, 2, 1)]


def test_only_the_newest_answers_are_kept(engine: Engine) -> None:
    last = batches.KEPT_ANSWERS + 5
    with engine.begin() as connection:
        for number in range(1, last + 1):
            push(connection, batch(number, []))
        assert push(connection, batch(last, [])).status == "replayed"
    assert rows(engine, "SELECT min(batch_seq), max(batch_seq) FROM sync.batch") == [(6, last)]
    with pytest.raises(ConflictError) as caught, engine.begin() as connection:
        push(connection, batch(3, []))
    assert caught.value.code == "replica_cloned"


def test_a_batch_sent_again_while_it_is_applied_waits_and_is_replayed(engine: Engine) -> None:
    request = batch(1, [fact(1), fact(2)])

    def again() -> PushResponse:
        with engine.begin() as connection:
            return push(connection, request)

    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as connection:
            first = push(connection, request)
            second = pool.submit(again)
            wait_until(lambda: rows(engine, "SELECT 1 FROM pg_locks WHERE NOT granted"))
        assert second.result(30) == first.model_copy(update={"status": "replayed"})
    assert rows(engine, "SELECT count(*) FROM sync.fact") == [(2,)]
