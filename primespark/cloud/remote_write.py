"""Prometheus' remote write, version 1: its messages, and what they hold as samples of series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cramjam
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from primespark.cloud.intake import Intake, check_count, check_lengths, check_metric, is_device, moment
from primespark.errors import InvalidInputError, MalformedError, TooLargeError
from primespark.store.samples import Sample

SNAPPY = "snappy"
_PACKAGE = "prometheus"
# Of a series of no job; a job of that name would be taken for the same.
_SOURCE = "remote_write"
_NATIVE_HISTOGRAM = "a native histogram; send_native_histograms is off where nothing is set"
_ONE, _MANY = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.LABEL_REPEATED
_TEXT, _BYTES, _MESSAGE = (
    FieldDescriptorProto.TYPE_STRING,
    FieldDescriptorProto.TYPE_BYTES,
    FieldDescriptorProto.TYPE_MESSAGE,
)
_DOUBLE, _INTEGER = FieldDescriptorProto.TYPE_DOUBLE, FieldDescriptorProto.TYPE_INT64
# Fields that are not here, such as exemplars, are passed over.
_MESSAGES: dict[str, list[dict[str, Any]]] = {
    "Label": [
        {"name": "name", "number": 1, "label": _ONE, "type": _TEXT},
        {"name": "value", "number": 2, "label": _ONE, "type": _TEXT},
    ],
    "Sample": [
        {"name": "value", "number": 1, "label": _ONE, "type": _DOUBLE},
        {"name": "timestamp", "number": 2, "label": _ONE, "type": _INTEGER},
    ],
    "TimeSeries": [
        {"name": "labels", "number": 1, "label": _MANY, "type": _MESSAGE, "type_name": f".{_PACKAGE}.Label"},
        {"name": "samples", "number": 2, "label": _MANY, "type": _MESSAGE, "type_name": f".{_PACKAGE}.Sample"},
        # Counted and not read.
        {"name": "histograms", "number": 4, "label": _MANY, "type": _BYTES},
    ],
    "WriteRequest": [
        {"name": "timeseries", "number": 1, "label": _MANY, "type": _MESSAGE, "type_name": f".{_PACKAGE}.TimeSeries"},
        # A request may have nothing else. It is not read.
        {"name": "metadata", "number": 3, "label": _MANY, "type": _BYTES},
    ],
}  # fmt: skip


def _message_class(name: str) -> Any:
    file = FileDescriptorProto(name="remote_write.proto", package=_PACKAGE, syntax="proto3")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for field in fields:
            described.field.add(**field)
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


_WriteRequest = _message_class("WriteRequest")


def unpack(body: bytes, max_bytes: int) -> bytes:
    """The content of one block of snappy, which says how long it is before it is unpacked.

    Raises:
        TooLargeError: More than `max_bytes`.
        MalformedError: Code `bad_encoding`.
    """
    try:
        if cramjam.snappy.decompress_raw_len(body) > max_bytes:
            raise TooLargeError(f"unpacks to more than {max_bytes} bytes", remedy="send less at once")
        return bytes(cramjam.snappy.decompress_raw(body))
    except cramjam.DecompressionError:
        raise MalformedError("not a block of snappy", code="bad_encoding") from None


def read(body: bytes) -> Intake:
    """The samples of a request, how many cannot be stored, and how many say nothing.

    Raises:
        MalformedError: Not a request.
        TooLargeError: Code `too_many_values`.
    """
    request = _parse(body)
    intake = Intake()
    check_count(len(request.timeseries))
    check_count(sum(map(_count, request.timeseries)))
    for series in request.timeseries:
        try:
            metric, device_id, source, labels = _identity(series.labels)
        except InvalidInputError as error:
            intake.refuse(error.message, _count(series))
            continue
        intake.refuse(f"{metric}: {_NATIVE_HISTOGRAM}", len(series.histograms))
        for sample in series.samples:
            # Prometheus marks with one of these that a series has ended.
            if math.isnan(sample.value):
                intake.skipped += 1
                continue
            time = moment(sample.timestamp * 1_000_000)
            intake.add([Sample(metric, device_id, source, labels, time, 0, sample.value)])
    return intake


def _parse(body: bytes) -> Any:
    request = _WriteRequest()
    try:
        request.ParseFromString(body)
    except DecodeError:
        raise _not_a_request() from None
    # Other bytes, a request of version 2 among them, are often fields that this version does not have.
    if body and not request.timeseries and not request.metadata:
        raise _not_a_request()
    return request


def _not_a_request() -> MalformedError:
    return MalformedError("not a WriteRequest", remedy="send one of remote write 1.0")


def _count(series: Any) -> int:
    return len(series.samples) + len(series.histograms)


def _identity(pairs: Sequence[Any]) -> tuple[str, str, str, dict[str, str]]:
    """Metric, device, source and labels of a series.

    Raises:
        InvalidInputError: It has no name that questions could name, or labels that are too long or ambiguous.
    """
    named = {pair.name: pair.value for pair in pairs}
    if len(named) < len(pairs) or "" in named:
        raise InvalidInputError("a label without a name, or two of one name", remedy="name each once")
    # To Prometheus, empty is as good as absent.
    labels = {name: value for name, value in named.items() if value}
    metric, source = labels.pop("__name__", ""), labels.pop("job", _SOURCE)
    check_metric(metric)
    device_id = labels.get("device_id", "")
    instance = labels.get("instance", "")
    if is_device(device_id):
        del labels["device_id"]
    elif is_device(host := instance.partition(":")[0]):
        device_id = host
        # A port tells apart what one machine has several of.
        if host == instance:
            del labels["instance"]
    else:
        device_id = ""
    check_lengths(source, labels)
    return metric, device_id, source, labels
