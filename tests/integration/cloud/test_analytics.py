"""Measurements and questions about them over HTTP."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from primespark.store import retention, rollups
from primespark.store.edition import Edition
from tests.integration.cloud.test_gate import Gate, gate

__all__ = ["gate"]
T0 = datetime(2026, 3, 28, tzinfo=UTC)
DAY = ["2026-03-28T00:00:00Z", "2026-03-30T00:00:00Z"]


async def put(gate: Gate, *metrics: dict[str, Any]) -> None:
    answer = await gate.client.post("/api/v1/analytics/insert", json={"metrics": list(metrics)}, headers=gate.admin)
    assert answer.status_code == 200, answer.text


def metric(hour: float, value: float | None, **other: Any) -> dict[str, Any]:
    time = (T0 + timedelta(hours=hour)).isoformat()
    return {"metric_name": "power_watts", "value": value, "time": time, "device_id": "edge-1", "labels": {}} | other


async def ask(gate: Gate, **query: Any) -> Any:
    given = {"metric_name": "power_watts", "aggregation": "sum", "time_range": DAY} | query
    return await gate.client.post("/api/v1/analytics/query", json=given, headers=gate.admin)


async def test_several_aggregations_by_day_of_a_time_zone_and_by_label(gate: Gate) -> None:
    await put(
        gate, metric(22, 1.0, labels={"room": "a"}), metric(23.5, 2.0, labels={"room": "a"}),
        metric(30, 4.0, labels={"room": "a"}), metric(30, 100.0, labels={"room": "b"}), metric(30, 7.0, device_id="x"),
    )  # fmt: skip
    answer = await ask(
        gate, aggregation=["sum", "count", "percentile"], percentile=50,
        granularity={"unit": "day", "tz": "Europe/Berlin"}, group_by=["labels.room"],
        filters=[["labels.room", "in", ["a", "c"]], ["device_id", "=", "edge-1"], ["labels.floor", "exists", False]],
    )  # fmt: skip
    assert answer.json() == {
        "series": [
            {
                "group": {"labels.room": "a"},
                "points": [
                    ["2026-03-27T23:00:00.000000Z", 1.0, 1, 1.0],
                    # Summer time began on that day.
                    ["2026-03-28T23:00:00.000000Z", 6.0, 2, 3.0],
                ],
            }
        ],
        "next_cursor": None,
    }


async def test_an_answer_says_from_where_it_was_read(gate: Gate, timescaledb_edition: Edition) -> None:
    await put(gate, *(metric(hour, float(hour)) for hour in range(48)))
    with gate.cloud.engine.begin() as connection:
        rollups.refresh_hours(connection, T0, T0 + timedelta(hours=47))
    answer = await ask(
        gate, granularity=None, explain=True, time_range=["2026-03-28T00:30:00Z", "2026-03-30T00:00:00Z"]
    )
    assert answer.json()["explain"] == {
        "daily_rollup": [["2026-03-29T00:00:00.000000Z", "2026-03-30T00:00:00.000000Z"]],
        "hourly_rollup": [["2026-03-28T01:00:00.000000Z", "2026-03-29T00:00:00.000000Z"]],
        "samples": [["2026-03-28T00:30:00.000000Z", "2026-03-28T01:00:00.000000Z"]],
        "hours_read_from_samples": 1,
        "exact": True,
        "cached": False,
        "timescaledb": timescaledb_edition,
    }
    assert answer.json()["series"][0]["points"] == [["2026-03-28T00:30:00.000000Z", float(sum(range(1, 48)))]]


async def test_pages_and_order(gate: Gate) -> None:
    await put(gate, *(metric(hour, float(hour), device_id=device) for hour in range(3) for device in "ab"))
    found, cursor = [], None
    for _ in range(4):
        answer = (
            await ask(gate, granularity="hour", group_by=["device_id"], order="desc", limit=2, cursor=cursor)
        ).json()
        found += [(one["group"]["device_id"], value) for one in answer["series"] for _, value in one["points"]]
        cursor = answer["next_cursor"]
        if cursor is None:
            break
    assert found == [("a", 2.0), ("a", 1.0), ("a", 0.0), ("b", 2.0), ("b", 1.0), ("b", 0.0)]


async def test_several_metrics_are_told_apart(gate: Gate) -> None:
    await put(gate, metric(0, 1.0), metric(0, 2.0, metric_name="volts"))
    answer = await ask(gate, metric_name=["volts", "power_watts"], granularity={"every_s": 86_400})
    assert [(one["group"], one["points"][0][1]) for one in answer.json()["series"]] == [
        ({"metric_name": "power_watts"}, 1.0), ({"metric_name": "volts"}, 2.0),
    ]  # fmt: skip


async def test_empty_buckets_are_filled(gate: Gate) -> None:
    await put(gate, metric(1, 1.0), metric(3, 3.0))
    span = ["2026-03-28T00:00:00Z", "2026-03-28T05:00:00Z"]
    for fill, expected in {
        "null": [None, 1.0, None, 3.0, None], "linear": [None, 1.0, 2.0, 3.0, None], "none": [1.0, 3.0],
    }.items():  # fmt: skip
        answer = await ask(gate, granularity="hour", time_range=span, fill=fill)
        assert [value for _, value in answer.json()["series"][0]["points"]] == expected


async def test_a_value_may_be_missing_and_a_time_too_old_or_too_far_ahead(gate: Gate) -> None:
    await put(gate, metric(0, 1.0), metric(0.5, None, quality="sensor_failed"))
    answer = await ask(gate, aggregation=["count", "sum"], granularity="hour")
    assert [point[1:] for point in answer.json()["series"][0]["points"]] == [[1, 1.0]]
    ahead = (datetime.now(UTC) + timedelta(days=32)).isoformat()
    for bad, code in ((metric(1, None), "missing_value"), (metric(1, 1.0) | {"time": ahead}, "time_ahead")):
        refused = await gate.client.post("/api/v1/analytics/insert", json={"metrics": [bad]}, headers=gate.admin)
        assert (refused.status_code, refused.json()["code"]) == (422, code)
    with gate.cloud.engine.begin() as connection:
        retention.begin_later(connection, "standard", T0 + timedelta(days=1))
    metrics = {"metrics": [metric(2, 1.0), metric(30, 1.0)]}
    answer = await gate.client.post("/api/v1/analytics/insert", json=metrics, headers=gate.admin)
    assert answer.json() == {"inserted": 1, "duplicates": 0, "beyond_retention": 1}


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"aggregation": "median"}, 422, None), ({"aggregation": []}, 422, None), ({"granularity": "year"}, 422, None),
        ({"granularity": {"every_s": 0}}, 422, None), ({"granularity": {"every_s": 1e-9}}, 422, "bad_granularity"),
        ({"granularity": {"unit": "day", "tz": "Mars/Olympus"}}, 422, "unknown_time_zone"),
        ({"granularity": {"unit": "day", "tz": "../../etc/passwd"}}, 422, "unknown_time_zone"),
        ({"granularity": {"unit": "day", "every_s": 1}}, 422, None), ({"time_range": DAY[::-1]}, 422, "bad_time_range"),
        ({"time_range": ["2026-03-28T00:00:00", "2026-03-29T00:00:00"]}, 422, None), ({"limit": 0}, 422, None),
        ({"filters": [["device_id", "~", "x"]]}, 422, "bad_filter"), ({"filters": [["device_id", "="]]}, 422, None),
        ({"filters": [["value", "=", "x"]]}, 422, "unknown_field"), ({"cursor": "x"}, 422, "bad_cursor"),
        ({"percentile": 5}, 422, "bad_percentile"), ({"aggregation": "percentile"}, 422, "bad_percentile"),
        ({"aggregation": "percentile", "percentile": 101}, 422, None), ({"group_by": ["x"]}, 422, "unknown_field"),
        ({"granularity": "second", "fill": "zero", "time_range": ["2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"]}, 422,
         "too_many_points"),
    ],
)  # fmt: skip
async def test_a_bad_question_is_told_so(gate: Gate, query: dict[str, Any], status: int, code: str | None) -> None:
    await put(gate, metric(1, 1.0))
    answer = await ask(gate, **query)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    if code is not None:
        assert answer.json()["code"] == code


async def test_the_latest_of_each_device(gate: Gate) -> None:
    await put(gate, *(metric(hour, float(hour), device_id=device) for hour in (5, 3) for device in "ab"))

    async def latest(**asked: Any) -> Any:
        given = {"metric_name": "power_watts", "group_by": ["device_id"], "limit": 1} | asked
        return await gate.client.post("/api/v1/analytics/latest", json=given, headers=gate.admin)

    first = (await latest()).json()
    assert first["series"] == [{"group": {"device_id": "a"}, "points": [["2026-03-28T05:00:00.000000Z", 5.0]]}]
    rest = (await latest(cursor=first["next_cursor"])).json()
    assert [one["group"]["device_id"] for one in rest["series"]] == ["b"]
    assert rest["next_cursor"] is None
    assert (await latest(metric_name="unknown")).json() == {"series": [], "next_cursor": None}
    refused = await latest(filters=[["device_id", "~", "a"]])
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_filter")


async def summary(gate: Gate, **parameters: Any) -> Any:
    return await gate.client.get("/api/v1/analytics/summary", params=parameters, headers=gate.admin)


async def test_a_summary_says_what_there_is_of_each_metric_and_device(gate: Gate) -> None:
    await put(gate, *(metric(hour, float(hour)) for hour in (0, 1, 2, 20, 21)), metric(5, 7.0, device_id="x"))
    day = {"start": DAY[0], "end": DAY[1]}
    answer = (await summary(gate, **day, limit=1)).json()
    assert answer == {
        "time_range": ["2026-03-28T00:00:00.000000Z", "2026-03-30T00:00:00.000000Z"],
        "times_by_hour_before": None,
        "items": [
            {
                "metric_name": "power_watts", "device_id": "edge-1", "n": 5,
                "first_time": "2026-03-28T00:00:00.000000Z", "last_time": "2026-03-28T21:00:00.000000Z",
                "last_value": 21.0, "min": 0.0, "max": 21.0, "avg": 8.8, "p95": pytest.approx(20.8),
                "rate_per_s": pytest.approx(4 / 75_600),
                "gaps": {"n": 1, "longest_s": 64_800.0, "total_s": 64_800.0},
            }
        ],
        "next_cursor": answer["next_cursor"],
    }  # fmt: skip
    (rest,) = (await summary(gate, **day, cursor=answer["next_cursor"])).json()["items"]
    assert (rest["device_id"], rest["n"], rest["rate_per_s"]) == ("x", 1, None)
    assert (await summary(gate)).json()["items"] == []


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"start": DAY[1], "end": DAY[0]}, "bad_time_range"),
        ({"start": "2026-03-28T00:00:00"}, "invalid_input"),
        ({"cursor": "x"}, "bad_cursor"),
        ({"limit": 0}, "invalid_input"),
    ],
)
async def test_a_summary_that_cannot_be_is_refused(gate: Gate, parameters: dict[str, Any], code: str) -> None:
    answer = await summary(gate, **parameters)
    assert (answer.status_code, answer.json()["code"]) == (422, code)


async def test_an_answer_is_a_table_where_that_is_accepted(gate: Gate) -> None:
    await put(gate, *(metric(hour, hour + 0.5, device_id=device) for device in ("-x", "b") for hour in range(2)))
    query = {
        "metric_name": "power_watts", "aggregation": ["avg", "count"], "time_range": DAY, "granularity": "hour",
        "group_by": ["device_id"], "limit": 3,
    }  # fmt: skip

    async def exported(accepted: str, **changes: Any) -> Any:
        headers = gate.admin | {"Accept": accepted}
        return await gate.client.post("/api/v1/analytics/query", json=query | changes, headers=headers)

    text = await exported("text/csv")
    assert text.headers["content-type"] == "text/csv; charset=utf-8"
    assert text.text.splitlines() == [
        "device_id,time,avg,count",
        "'-x,2026-03-28T00:00:00.000000Z,0.5,1",
        "'-x,2026-03-28T01:00:00.000000Z,1.5,1",
        "b,2026-03-28T00:00:00.000000Z,0.5,1",
    ]
    rest = await exported("application/vnd.apache.parquet", cursor=text.headers["next-cursor"])
    assert rest.headers["content-type"] == "application/vnd.apache.parquet"
    assert "next-cursor" not in rest.headers
    frame = pd.read_parquet(io.BytesIO(rest.content))
    assert frame.to_dict("list") == {
        "device_id": ["b"], "time": [pd.Timestamp("2026-03-28T01:00:00Z")], "avg": [1.5], "count": [1],
    }  # fmt: skip
    streamed = pa.ipc.open_stream((await exported("application/vnd.apache.arrow.stream")).content).read_all()
    assert streamed.column("avg").to_pylist() == [0.5, 1.5, 0.5]
    refused = await exported("image/png")
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")
