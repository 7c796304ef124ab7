"""What goes out: keys, headers and bodies of the messages for results, late records and dead letters."""

from __future__ import annotations

import json

from primespark.windows.engine import Output
from primespark.windows.records import Batch
from primespark.windows.results import LateRecord, ResultKind, WindowResult
from streams.sink import DeadLetter, Outgoing, to_messages
from tests.unit.windows.histories import make_rule

JSON = ("content-type", b"application/json")


def test_a_result_is_keyed_by_its_window_so_that_a_replay_replaces_it() -> None:
    result = WindowResult("r", ("a", "b"), 0, 60_000, 1.5, 3, ResultKind.FINAL, 1)
    outgoing = Outgoing()
    outgoing.extend(Output([result]), lambda rule_id: f"target-of-{rule_id}")
    (message,) = to_messages(outgoing)
    topic, key, value, headers = message
    assert (topic, key, headers) == ("target-of-r", b"r|a,b|0|60000", [JSON])
    assert json.loads(value) == result.to_message()


def test_a_late_record_goes_out_as_it_was_keyed_by_where_it_stood() -> None:
    row = {"device_id": "a", "ts": 1, "text": "\u20ac\ud800"}
    late = LateRecord.of(make_rule(), Batch("in", 2, 7, [{}, row]), 1)
    outgoing = Outgoing()
    outgoing.extend(Output(late=[late]), str)
    assert len(outgoing) == 1
    ((topic, key, value, headers),) = to_messages(outgoing)
    assert (topic, key, headers) == ("out.late", b"r|in|2|7|1", [JSON])
    assert json.loads(value) == row


def test_a_dead_letter_carries_its_bytes_and_the_reason() -> None:
    outgoing = Outgoing(dead=[DeadLetter("in", 2, 7, b"\xff\0", "malformed", "not JSON")])
    ((topic, key, value, headers),) = to_messages(outgoing)
    assert (topic, key, value) == ("edge.dead-letter", b"in|2|7", b"\xff\0")
    assert dict(headers) == {
        "code": b"malformed", "reason": b"not JSON", "source-topic": b"in", "source-partition": b"2",
        "source-offset": b"7", "source-bytes": b"2",
    }  # fmt: skip


def test_a_dead_letter_fits_into_a_message_whatever_its_size() -> None:
    outgoing = Outgoing(dead=[DeadLetter("in", 0, 0, b"x" * 2_000_000, "too_large", "large")])
    ((_topic, _key, value, headers),) = to_messages(outgoing)
    assert len(value) == 900_000
    assert dict(headers)["source-bytes"] == b"2000000"
