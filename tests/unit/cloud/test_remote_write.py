"""What becomes of Prometheus' samples, written here byte by byte, and of bodies that hold none."""

from __future__ import annotations

import math
import struct
import time
from datetime import UTC, datetime

import cramjam
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from primespark.cloud import remote_write
from primespark.cloud.intake import Intake
from primespark.errors import InvalidInputError, TooLargeError

MOMENT = datetime(2026, 3, 28, 12, 0, 0, 250_000, UTC)
MS = int(MOMENT.timestamp() * 1000)
STALE = struct.pack("<Q", 0x7FF0000000000002)
NAME = "power_watts"


def varint(number: int) -> bytes:
    """As protobuf and snappy have it; negative numbers in 64 bits."""
    number &= 2**64 - 1
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def nested(number: int, content: bytes) -> bytes:
    """A field with bytes in it."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def label(name: str, value: str) -> bytes:
    return nested(1, nested(1, name.encode()) + nested(2, value.encode()))


def sample(value: float | bytes, at_ms: int = MS) -> bytes:
    """One value, or the bits of one."""
    bits = value if isinstance(value, bytes) else struct.pack("<d", value)
    return nested(2, varint(1 << 3 | 1) + bits + varint(2 << 3) + varint(at_ms))


def series(labels: dict[str, str], *samples: bytes) -> bytes:
    return nested(1, b"".join(label(*pair) for pair in sorted(labels.items())) + b"".join(samples))


def named(**labels: str) -> dict[str, str]:
    return {"__name__": NAME, **labels}


def packed(request: bytes) -> bytes:
    """As a block of snappy, in pieces of its shortest form."""
    pieces = (request[start : start + 60] for start in range(0, len(request), 60))
    return varint(len(request)) + b"".join(bytes([len(piece) - 1 << 2]) + piece for piece in pieces)


VALID = series(named(job="oven", instance="edge-1:9100", room="a"), sample(1.5), sample(2.5, MS + 15_000))


def test_a_sample_keeps_its_time_and_where_it_is_from() -> None:
    first, second = remote_write.read(VALID).samples
    assert (first.metric, first.device_id, first.source, first.value) == (NAME, "edge-1", "oven", 1.5)
    assert first.labels == {"room": "a", "instance": "edge-1:9100"}
    assert first.time == MOMENT
    assert (second.value, (second.time - first.time).total_seconds()) == (2.5, 15)


@pytest.mark.parametrize(
    ("given_labels", "device_id", "source", "labels"),
    [
        ({}, "", "remote_write", {}),
        ({"instance": "edge-1"}, "edge-1", "remote_write", {}),
        ({"instance": "edge-1:80"}, "edge-1", "remote_write", {"instance": "edge-1:80"}),
        ({"instance": "localhost:80"}, "", "remote_write", {"instance": "localhost:80"}),
        ({"instance": "10.0.0.7:80"}, "", "remote_write", {"instance": "10.0.0.7:80"}),
        ({"instance": "[::1]:80"}, "", "remote_write", {"instance": "[::1]:80"}),
        ({"instance": "fleet"}, "", "remote_write", {"instance": "fleet"}),
        ({"instance": "cloud-1:80", "device_id": "edge-2"}, "edge-2", "remote_write", {"instance": "cloud-1:80"}),
        ({"instance": "edge-1", "device_id": "No!"}, "edge-1", "remote_write", {"device_id": "No!"}),
        ({"device_id": "No!", "job": "oven"}, "", "oven", {"device_id": "No!"}),
        ({"job": "", "room": "", "le": "+Inf"}, "", "remote_write", {"le": "+Inf"}),
    ],
)
def test_job_and_instance_are_source_and_device(
    given_labels: dict[str, str], device_id: str, source: str, labels: dict[str, str]
) -> None:
    (read,) = remote_write.read(series(named(**given_labels), sample(1.0))).samples
    assert (read.metric, read.device_id, read.source, read.labels) == (NAME, device_id, source, labels)


LABELS = st.dictionaries(
    st.sampled_from(["job", "instance", "room"]), st.sampled_from(["x", "x:1", "x:2", "y", "localhost:1", "10.0.0.7"])
)


@given(LABELS, LABELS)
def test_of_two_series_none_is_taken_for_the_other(first: dict[str, str], second: dict[str, str]) -> None:
    one, other = (remote_write.read(series(named(**labels), sample(1.0))).samples for labels in (first, second))
    assert (one == other) == (first == second)


def test_not_a_number_and_the_end_of_a_series_are_skipped_and_all_else_is_stored() -> None:
    intake = remote_write.read(series(named(), sample(STALE), sample(1.0), sample(math.nan), sample(-0.0, MS + 1)))
    assert [read.value for read in intake.samples] == [1.0, 0.0]
    assert (intake.skipped, intake.refused, intake.reason) == (2, 0, "")


@pytest.mark.parametrize(
    "bad",
    [
        series(named(), sample(math.inf)),
        series(named(), sample(-math.inf)),
        series(named(), sample(1e141)),
        series(named(), sample(1.0, 2**63 - 1)),
        series(named(), sample(1.0, -(2**63))),
        series(named(), sample(1.0, -1)),
        series({"job": "oven"}, sample(1.0)),
        series({"__name__": "no name"}, sample(1.0)),
        series({"__name__": "x" * 129}, sample(1.0)),
        series(named(job="x" * 129), sample(1.0)),
        series(named(room="x" * 1025), sample(1.0)),
        series(named(room="\x00"), sample(1.0)),
        series(named(**{f"a{n}": "x" for n in range(65)}), sample(1.0)),
        series(named(**{"": "x"}), sample(1.0)),
        nested(1, label("__name__", NAME) * 2 + sample(1.0)),
        nested(1, label("__name__", NAME) + nested(4, b"\x08\x01")),
    ],
)
def test_what_cannot_be_stored_is_refused_and_the_next_is_not(bad: bytes) -> None:
    intake = remote_write.read(bad + series({"__name__": "next"}, sample(2.0)))
    assert [read.metric for read in intake.samples] == ["next"]
    assert intake.refused == 1
    assert intake.reason


def test_a_request_of_version_two_is_not_taken_for_one_without_samples() -> None:
    with pytest.raises(InvalidInputError):
        remote_write.read(nested(4, b"power_watts") + nested(5, b""))


def test_metadata_exemplars_and_series_without_samples_are_passed_over() -> None:
    exemplar = nested(3, label("trace_id", "7") + varint(2 << 3 | 1) + struct.pack("<d", 1.0))
    metadata = nested(3, varint(1 << 3) + varint(1) + nested(2, b"power_watts") + nested(4, b"what it draws"))
    request = series(named(), sample(1.0), exemplar) + series(named(room="a")) + nested(1, b"") + metadata
    intake = remote_write.read(request)
    assert (len(intake.samples), intake.refused, intake.skipped) == (1, 0, 0)
    assert remote_write.read(metadata) == Intake()


@pytest.mark.parametrize("request_bytes", [nested(1, b"") * 50_001, series(named(), *[sample(1.0)] * 50_001)])
def test_a_request_has_a_bounded_number_of_series_and_samples(request_bytes: bytes) -> None:
    with pytest.raises(TooLargeError):
        remote_write.read(request_bytes)


def test_a_body_that_would_be_much_work_is_refused_without_it() -> None:
    long = series(named(room="x" * 1_000_000), *[sample(1.0)] * 20_000)
    long += series({"__name__": "x" * 1_000_000}, *[sample(1.0)] * 20_000)
    started = time.process_time()
    assert remote_write.read(long).refused == 40_000
    assert remote_write.read(nested(1, nested(1, b"") * 1_000_000 + sample(1.0))).refused == 1
    assert time.process_time() - started < 3


@given(st.binary(max_size=2000))
def test_what_is_packed_unpacks(content: bytes) -> None:
    assert remote_write.unpack(packed(content), len(content)) == content


def test_what_says_that_it_is_too_long_is_not_unpacked() -> None:
    with pytest.raises(TooLargeError):
        remote_write.unpack(packed(bytes(1000)), 999)
    # Four gigabytes, it says, in six bytes.
    with pytest.raises(TooLargeError):
        remote_write.unpack(varint(2**32 - 1) + b"\x00", 4_000_000)


def cuts(whole: bytes) -> st.SearchStrategy[bytes]:
    """Of these bytes, with others in their midst."""
    return st.tuples(st.integers(0, len(whole)), st.binary(max_size=8), st.integers(0, 8)).map(
        lambda cut: whole[: cut[0]] + cut[1] + whole[cut[0] + cut[2] :]
    )


@given(st.binary(max_size=100) | cuts(VALID))
@example(b"")
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        intake = remote_write.read(body)
    except InvalidInputError:
        return
    assert all(read.value is not None and math.isfinite(read.value) for read in intake.samples)


@given(st.binary(max_size=100) | cuts(packed(VALID)) | cuts(bytes(cramjam.snappy.compress_raw(VALID * 4))))
@example(b"")
def test_any_bytes_unpack_or_are_refused(body: bytes) -> None:
    try:
        content = remote_write.unpack(body, 1000)
    except InvalidInputError:
        return
    assert len(content) <= 1000
