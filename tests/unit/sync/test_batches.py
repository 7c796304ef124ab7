"""Batches are read alike by what is fast and by what says what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from primespark.sync.batches import read_batch
from primespark.sync.records import PushRequest

_HLC = "1790000000000-0000-edge-1"
_FACT = {
    "data_class": "telemetry", "op": "append", "stream": "telemetry", "seq": 1, "time": "2026-03-01T12:00:00.000000Z",
    "boot_id": "boot", "monotonic_ns": 5, "quality": "clock_repaired", "value": {"a": [1, 2.5, None, "x"], "b": {}},
}  # fmt: skip
_LOST = {"op": "lost", "stream": "telemetry", "seq_from": 1, "seq_to": 4, "reason": "queue_full"}
_DOCUMENT = {
    "data_class": "configurations", "scope": "edge-1", "key": "twin", "op": "put", "vv": {"edge-1": 1}, "hlc": _HLC,
    "leaf_hlc": {"/reported": _HLC}, "value": {"reported": {"x": 1}},
}  # fmt: skip
_HEAD = {"v": 1, "replica_id": "edge-1", "epoch": 1, "batch_seq": 1, "hlc": _HLC}
_NAMES = sorted({*_FACT, *_LOST, *_DOCUMENT, "other"})
# What is another type than it should be, out of range, or just not what is written there.
_odd = st.sampled_from(
    [None, True, 0, -1, 1, 1.0, 2.5, 2**63, 10**30, float("nan"), float("inf"), "", "1", "append", "lost", "put", "del",
     "telemetry", "configurations", "commands", "2026-03-01", "2026-03-01T12:00:00+23:59", 1_790_000_000, "x" * 300,
     [], [1], {}, {"edge-1": 0}, {"a": float("nan")}, {"/x": "no"}, "\ud800", "a\nb"]
)  # fmt: skip


@st.composite
def _records(draw: st.DrawFn) -> Any:
    record: Any = dict(draw(st.sampled_from([_FACT, _LOST, _DOCUMENT])))
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(_NAMES))
        if draw(st.booleans()):
            record[name] = draw(_odd)
        else:
            record.pop(name, None)
    return record if draw(st.integers(0, 20)) else draw(_odd)


def _outcome(read: Any, body: bytes) -> Any:
    try:
        return read(body).model_dump()
    except ValidationError as error:
        return error.errors(include_url=False)


@settings(max_examples=600, deadline=None)
@given(
    st.lists(_records(), max_size=3), st.dictionaries(st.sampled_from([*_HEAD, "records", "other"]), _odd, max_size=1)
)
def test_both_read_and_refuse_the_same(records: list[Any], head: dict[str, Any]) -> None:
    body = json.dumps(_HEAD | {"records": records} | head).encode()
    # As text, for NaN is not itself.
    assert repr(_outcome(read_batch, body)) == repr(_outcome(PushRequest.model_validate_json, body))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"1", b"\xff", b'{"v":1', b"{}" * 2, json.dumps(_HEAD | {"records": [_LOST] * 5001}).encode()],
)
def test_what_is_no_batch_is_refused_alike(body: bytes) -> None:
    found = _outcome(read_batch, body)
    assert isinstance(found, list)
    assert repr(found) == repr(_outcome(PushRequest.model_validate_json, body))


def test_a_name_that_comes_twice_counts_once_and_alike() -> None:
    fact = json.dumps(_FACT)[:-1]
    for twice in ('"op": "lost"', '"op": "append"', '"seq": 7', '"data_class": "configurations"'):
        body = json.dumps(_HEAD).encode()[:-1] + f', "records": [{fact}, {twice}}}]}}'.encode()
        assert _outcome(read_batch, body) == _outcome(PushRequest.model_validate_json, body)
