"""What becomes of OpenTelemetry's data points, and of bodies that are none."""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from primespark.cloud import otlp
from primespark.cloud.intake import Intake
from primespark.cloud.otlp_api import _from_json, _from_protobuf
from primespark.errors import InvalidInputError, TooLargeError

MOMENT = datetime(2026, 3, 28, 12, tzinfo=UTC)
TIME = {"timeUnixNano": str(int(MOMENT.timestamp()) * 10**9 + 1_500)}


def attributes(**labels: Any) -> list[dict[str, Any]]:
    return [{"key": name.replace("__", "."), "value": {"stringValue": value}} for name, value in labels.items()]


def request(*metrics: dict[str, Any], resource: Any = (), scope: str = "") -> ExportMetricsServiceRequest:
    body = {
        "resourceMetrics": [
            {
                "resource": {"attributes": list(resource)},
                "scopeMetrics": [{"scope": {"name": scope}, "metrics": list(metrics)}],
            }
        ]
    }
    return ParseDict(body, ExportMetricsServiceRequest())  # type: ignore[no-any-return]


def gauge(*points: dict[str, Any], name: str = "power_watts") -> dict[str, Any]:
    return {"name": name, "gauge": {"dataPoints": list(points)}}


def values(intake: Intake) -> dict[tuple[str, str], float | None]:
    return {
        (sample.metric, sample.labels.get("le") or sample.labels.get("quantile", "")): sample.value
        for sample in intake.samples
    }


def test_a_point_keeps_its_time_and_where_it_is_from() -> None:
    resource = attributes(service__name="oven", host__name="edge-1", site="yard", telemetry__sdk__name="x")
    point = {"asInt": "3", **TIME, "attributes": attributes(room="a")}
    (sample,) = otlp.read(request(gauge(point), resource=resource, scope="meter")).samples
    assert (sample.metric, sample.device_id, sample.source, sample.value) == ("power_watts", "edge-1", "oven", 3.0)
    assert sample.labels == {"site": "yard", "otel.scope.name": "meter", "room": "a"}
    assert sample.time == MOMENT.replace(microsecond=1)


@pytest.mark.parametrize(
    ("given_names", "device_id", "labels"),
    [
        ({"device__id": "edge-1", "host__name": "edge-2"}, "edge-1", {"host.name": "edge-2"}),
        ({"device__id": "Kitchen!", "host__name": "edge-2"}, "edge-2", {"device.id": "Kitchen!"}),
        ({"host__name": "localhost"}, "", {"host.name": "localhost"}),
        ({"host__name": "fleet"}, "", {"host.name": "fleet"}),
    ],
)
def test_a_name_of_a_machine_is_a_device_where_it_can_be_one(
    given_names: dict[str, str], device_id: str, labels: dict[str, str]
) -> None:
    read = otlp.read(request(gauge({"asDouble": 1, **TIME}), resource=attributes(**given_names)))
    (sample,) = read.samples
    assert (sample.device_id, sample.source, sample.labels) == (device_id, "otlp", labels)


def test_attributes_that_are_not_text_become_text() -> None:
    point = {
        "asDouble": 1, **TIME,
        "attributes": [
            {"key": "number", "value": {"intValue": "7"}}, {"key": "yes", "value": {"boolValue": True}},
            {"key": "list", "value": {"arrayValue": {"values": [{"stringValue": "é"}, {"doubleValue": 0.5}]}}},
            {"key": "none", "value": {}}, {"key": "bytes", "value": {"bytesValue": "AAE="}},
        ],
    }  # fmt: skip
    (sample,) = otlp.read(request(gauge(point))).samples
    assert sample.labels == {"number": "7", "yes": "true", "list": '["é", 0.5]', "none": "", "bytes": "AAE="}


def test_histograms_are_named_as_prometheus_does_and_count_what_is_below() -> None:
    point = {"count": "6", "sum": 9.5, "max": 4.0, "bucketCounts": ["1", "2", "3"], "explicitBounds": [0.5, 2]} | TIME
    intake = otlp.read(request({"name": "took", "histogram": {"dataPoints": [point]}}))
    assert values(intake) == {
        ("took_count", ""): 6.0, ("took_sum", ""): 9.5, ("took_max", ""): 4.0,
        ("took_bucket", "0.5"): 1.0, ("took_bucket", "2.0"): 3.0, ("took_bucket", "+Inf"): 6.0,
    }  # fmt: skip


def test_of_exponential_histograms_and_summaries_the_totals_are_kept() -> None:
    exponential = {"count": "6", "sum": 9.5, "min": 0.5, "scale": 3, "positive": {"bucketCounts": ["6"]}} | TIME
    summary = {"count": "2", "sum": 3.0, "quantileValues": [{"quantile": 0.5, "value": 1.5}]} | TIME
    intake = otlp.read(
        request(
            {"name": "took", "exponentialHistogram": {"dataPoints": [exponential]}},
            {"name": "slept", "summary": {"dataPoints": [summary]}},
        )
    )
    assert values(intake) == {
        ("took_count", ""): 6.0, ("took_sum", ""): 9.5, ("took_min", ""): 0.5,
        ("slept_count", ""): 2.0, ("slept_sum", ""): 3.0, ("slept", "0.5"): 1.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    "metric",
    [
        gauge({"asDouble": "NaN", **TIME}),
        gauge({"asDouble": "Infinity", **TIME}),
        gauge({"asDouble": 1e200, **TIME}),
        gauge({"asDouble": 1}),
        gauge({"asDouble": 1, "timeUnixNano": str(2**64 - 1)} | {"attributes": attributes(a="x" * 1025)}),
        gauge(TIME),
        gauge({"asDouble": 1, **TIME}, name="no name"),
        gauge({"asDouble": 1, **TIME}, name="x" * 129),
        gauge({"asDouble": 1, **TIME, "attributes": attributes(a="\x00")}),
        gauge({"asDouble": 1, **TIME, "attributes": attributes(**{f"a{n}": "" for n in range(65)})}),
        {"name": "took", "histogram": {"dataPoints": [{"bucketCounts": ["1"], "explicitBounds": [1, 2], **TIME}]}},
        {"name": "took", "histogram": {"dataPoints": [{"bucketCounts": ["1"] * 3, "explicitBounds": [2, 1], **TIME}]}},
        {"name": "took", "histogram": {"dataPoints": [{"bucketCounts": ["1"] * 2, "explicitBounds": ["NaN"], **TIME}]}},
        {"name": "slept", "summary": {"dataPoints": [{"quantileValues": [{"value": "NaN"}], **TIME}]}},
    ],
)  # fmt: skip
def test_a_point_that_cannot_be_stored_is_refused_whole_and_the_next_is_not(metric: dict[str, Any]) -> None:
    intake = otlp.read(request(metric, gauge({"asDouble": 2, **TIME}, name="next")))
    assert [sample.metric for sample in intake.samples] == ["next"]
    assert intake.refused == 1
    assert intake.reason


def test_all_points_of_a_resource_that_cannot_be_stored_are_counted() -> None:
    metric = gauge(*({"asDouble": number, **TIME} for number in range(5)))
    for resource in (attributes(service__name="x" * 129), attributes(site="x" * 2000)):
        intake = otlp.read(request(metric, resource=resource))
        assert (intake.samples, intake.refused) == ([], 5)
    assert otlp.read(request(metric, scope="x" * 2000)).refused == 5


def test_a_point_without_a_recorded_value_is_neither_stored_nor_refused() -> None:
    intake = otlp.read(request(gauge({"flags": 1, **TIME})))
    assert (intake.samples, intake.refused, intake.skipped) == ([], 0, 1)


def test_a_body_that_would_be_much_work_is_refused_without_it() -> None:
    long = "x" * 1_000_000
    asked = request(resource=attributes(site=long))
    points = {"name": long, "histogram": {"dataPoints": [{"bucketCounts": ["1"], **TIME}] * 10_000}}
    asked.MergeFrom(request(points, resource=attributes(site="yard")))
    # In each of these a text of a megabyte would be read once for each point, or scope, that shares it.
    for _ in range(5_000):
        asked.resource_metrics[0].scope_metrics.add().metrics.add().gauge.data_points.add()
    started = time.process_time()
    assert otlp.read(asked).refused == 15_000
    assert time.process_time() - started < 1


def test_a_request_has_a_bounded_number_of_points() -> None:
    asked = request(gauge())
    points = asked.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points
    for _ in range(50_001):
        points.add()
    with pytest.raises(TooLargeError):
        otlp.read(asked)


VALID = request(
    gauge({"asDouble": 1.5, **TIME, "attributes": attributes(room="a")}),
    {"name": "took", "histogram": {"dataPoints": [{"count": "1", "bucketCounts": ["1"], **TIME}]}},
    resource=attributes(service__name="oven"),
).SerializeToString()


@given(st.binary(max_size=200) | st.tuples(st.integers(0, len(VALID)), st.binary(max_size=8)).map(
    lambda cut: VALID[: cut[0]] + cut[1] + VALID[cut[0] + 1 :]
))  # fmt: skip
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        intake = otlp.read(_from_protobuf(body))
    except InvalidInputError:
        return
    assert all(sample.value is not None and math.isfinite(sample.value) for sample in intake.samples)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["resourceMetrics", "scopeMetrics", "metrics", "gauge", "sum", "dataPoints", "asDouble", "name",
                         "timeUnixNano", "attributes", "key", "value", "kvlistValue", "x"]), inner, max_size=4,
    ),
)  # fmt: skip


@given(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40))
def test_any_json_is_read_or_refused(body: bytes) -> None:
    try:
        otlp.read(_from_json(body))
    except InvalidInputError:
        return


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"resourceMetrics":' * 50, b'{"a":' * 99_999 + b"1" + b"}" * 99_999]
)
def test_deep_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInputError):
        _from_json(body)
