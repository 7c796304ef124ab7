"""Metrics as OpenTelemetry sends them, as samples of series."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from types import MappingProxyType
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import DataPointFlags, Metric
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from primespark.cloud.intake import Intake, check_count, check_lengths, check_metric, is_device, moment
from primespark.errors import InvalidInputError
from primespark.store.samples import Sample

_SOURCE = "otlp"
# Of those that can be a device's id, the first is.
_DEVICE_ATTRIBUTES = ("device.id", "host.name")
# It says what sends, not what is measured.
_SENDER = "telemetry."
_SCOPE = "otel.scope.name"
# A point is stored whole or not at all, so it cannot have a sample for each bit of a body.
_MAX_PARTS = 512
# Name of a series after the metric's, labels beside the point's, value.
_Part = tuple[str, Mapping[str, str], float]
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Origin:
    """What the points of a resource and a scope share."""

    device_id: str
    source: str
    labels: Mapping[str, str]


def read(request: ExportMetricsServiceRequest) -> Intake:
    """The samples of a request, and how many data points cannot be stored.

    Raises:
        TooLargeError: Code `too_many_values`.
    """
    intake = Intake()
    check_count(sum(map(_count, request.resource_metrics)))
    for resource_metrics in request.resource_metrics:
        try:
            origin = _origin(resource_metrics.resource)
        except InvalidInputError as error:
            intake.refuse(error.message, _count(resource_metrics))
            continue
        for scope_metrics in resource_metrics.scope_metrics:
            try:
                scoped = _within(origin, scope_metrics.scope)
            except InvalidInputError as error:
                intake.refuse(error.message, sum(len(_points(metric)) for metric in scope_metrics.metrics))
                continue
            for metric in scope_metrics.metrics:
                _take(intake, scoped, metric)
    return intake


def _count(resource_metrics: Any) -> int:
    return sum(len(_points(metric)) for scope in resource_metrics.scope_metrics for metric in scope.metrics)


def _points(metric: Metric) -> Any:
    kind = metric.WhichOneof("data")
    return getattr(metric, kind).data_points if kind else ()


def _origin(resource: Resource) -> _Origin:
    labels = {name: value for name, value in _labels(resource.attributes).items() if not name.startswith(_SENDER)}
    source = labels.pop("service.name", _SOURCE)
    found = next((name for name in _DEVICE_ATTRIBUTES if is_device(labels.get(name, ""))), None)
    device_id = labels.pop(found) if found else ""
    check_lengths(source, labels)
    return _Origin(device_id, source, labels)


def _within(origin: _Origin, scope: InstrumentationScope) -> _Origin:
    if not scope.name:
        return origin
    labels = {**origin.labels, _SCOPE: scope.name}
    check_lengths(origin.source, labels)
    return _Origin(origin.device_id, origin.source, labels)


def _take(intake: Intake, origin: _Origin, metric: Metric) -> None:
    points = _points(metric)
    try:
        check_metric(metric.name)
    except InvalidInputError as error:
        intake.refuse(error.message, len(points))
        return
    read_parts = _READERS.get(metric.WhichOneof("data") or "", _number)
    for point in points:
        # It says that there is nothing to say.
        if point.flags & DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK:
            intake.skipped += 1
            continue
        try:
            taken = _samples(origin, metric.name, point, read_parts(point))
        except InvalidInputError as error:
            intake.refuse(f"{metric.name}: {error.message}")
        else:
            intake.add(taken)


def _samples(origin: _Origin, metric: str, point: Any, parts: Iterable[_Part]) -> list[Sample]:
    if not point.time_unix_nano:
        raise InvalidInputError("a data point without a time", remedy="set the clock", code="bad_time")
    labels = {**origin.labels, **_labels(point.attributes)}
    check_lengths(origin.source, labels)
    time = moment(point.time_unix_nano)
    return [
        Sample(f"{metric}{suffix}", origin.device_id, origin.source, {**labels, **further}, time, 0, value)
        for suffix, further, value in parts
    ]


def _number(point: Any) -> list[_Part]:
    kind = point.WhichOneof("value")
    if kind is None:
        raise InvalidInputError("a data point without a value", remedy="send one")
    return [("", _NONE, float(getattr(point, kind)))]


def _totals(point: Any) -> list[_Part]:
    """What histograms of both kinds tell of all their values."""
    parts: list[_Part] = [("_count", _NONE, float(point.count))]
    return parts + [(f"_{name}", _NONE, getattr(point, name)) for name in ("sum", "min", "max") if point.HasField(name)]


def _histogram(point: Any) -> list[_Part]:
    bounds, counts = list(point.explicit_bounds), list(point.bucket_counts)
    if not counts and not bounds:
        return _totals(point)
    is_rising = all(low < high for low, high in zip([-inf, *bounds], [*bounds, inf], strict=True))
    if len(counts) != len(bounds) + 1 or len(counts) > _MAX_PARTS or not is_rising:
        raise InvalidInputError(
            f"not one bucket more than rising bounds, or more than {_MAX_PARTS}", remedy="send fewer buckets"
        )
    buckets: list[_Part] = [
        ("_bucket", {"le": _number_text(bound)}, float(below))
        for bound, below in zip([*bounds, inf], accumulate(counts), strict=True)
    ]
    return _totals(point) + buckets


def _summary(point: Any) -> list[_Part]:
    if len(point.quantile_values) > _MAX_PARTS:
        raise InvalidInputError(f"more than {_MAX_PARTS} quantiles", remedy="send fewer")
    quantiles: list[_Part] = [
        ("", {"quantile": _number_text(part.quantile)}, part.value) for part in point.quantile_values
    ]
    return [("_count", _NONE, float(point.count)), ("_sum", _NONE, point.sum), *quantiles]


_READERS: Mapping[str, Callable[[Any], list[_Part]]] = MappingProxyType(
    {
        "gauge": _number, "sum": _number, "histogram": _histogram, "exponential_histogram": _totals,
        "summary": _summary,
    }
)  # fmt: skip


def _number_text(number: float) -> str:
    """As Prometheus writes numbers in labels."""
    return "+Inf" if number == inf else repr(number)


def _labels(attributes: Iterable[KeyValue]) -> dict[str, str]:
    return {attribute.key: _text(attribute.value) for attribute in attributes}


def _text(value: AnyValue) -> str:
    """An attribute's value as text, JSON where it is neither text nor empty."""
    plain = _plain(value)
    return plain if isinstance(plain, str) else "" if plain is None else json.dumps(plain, ensure_ascii=False)


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: _plain(item.value) for item in value.kvlist_value.values}
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    return getattr(value, kind) if kind else None
