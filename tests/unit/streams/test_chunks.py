"""However many messages come at once, what the worker says of them is the same."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from itertools import pairwise
from typing import Any
from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st

from primespark.core.encoding import compress
from primespark.windows.engine import WindowEngine
from streams import decode, worker
from streams.contracts import Incoming
from streams.sink import Outgoing, to_messages
from streams.worker import StreamWorker
from tests.helpers import rounds
from tests.unit.streams.test_worker import HERE, TOPIC, Log, Message
from tests.unit.windows.histories import make_rule

LINES = ("content-type", b"application/x-ndjson+zstd")
RULES = [
    make_rule({"watermark_scope": "key", "allowed_lateness_seconds": 0, "idle_timeout_seconds": None}),
    make_rule(
        {"window_type": "sliding", "slide_seconds": 5, "allowed_lateness_seconds": 4, "idle_timeout_seconds": None},
        rule_id="s", aggregation_function="max", group_by=["device_id"],
    ),
    make_rule(
        {"window_type": "session", "session_gap_seconds": 3, "idle_timeout_seconds": None},
        rule_id="t", value_field=None, aggregation_function="count",
    ),
]  # fmt: skip

_rows = st.fixed_dictionaries(
    {
        "device_id": st.sampled_from(["a", "b", "c"]),
        "ts": st.integers(0, 60_000) | st.sampled_from([0, 10_000, "soon"]),
        "cpu_percent": st.integers(-5, 5) | st.sampled_from([0.5, None, True, 10**400]),
    }
)
_poison = st.sampled_from(
    [None, b"", b"{", b"[1]", b'{"ts": NaN}', b"{},{}", b'{"a":[1', b'2],"b":3}', b"{}{}", b'"', b"}"]
)


@st.composite
def logs(draw: st.DrawFn) -> list[Message]:
    """A partition with gaps of its own, messages published twice and some that nobody can read."""
    records = []
    offset = 0
    for _ in range(draw(st.integers(1, 25))):
        headers = []
        if draw(st.booleans()):
            headers.append(("log_seq", str(draw(st.integers(0, 20))).encode()))
        kind = draw(st.sampled_from(["row", "row", "rows", "poison"]))
        value: bytes | None
        if kind == "row":
            value = json.dumps(draw(_rows)).encode()
        elif kind == "rows":
            headers.append(LINES)
            value = compress("\n".join(map(json.dumps, draw(st.lists(_rows, max_size=9)))).encode())
        else:
            value = draw(_poison)
        records.append(Message(offset, value, headers))
        offset += draw(st.sampled_from([1, 1, 1, 3]))
    # Later than all of them, so that every window is said.
    ends = [json.dumps({"device_id": device, "ts": 200_000, "cpu_percent": 1}) for device in "abc"]
    return [*records, Message(offset, compress("\n".join(ends).encode()), [LINES])]


@st.composite
def reads(draw: st.DrawFn) -> tuple[list[Message], list[list[Message]]]:
    """A log, and how it is read: in chunks, after some of which it is read again from further back."""
    records = draw(logs())
    chunks = []
    position = 0
    while position < len(records):
        size = draw(st.integers(1, len(records)))
        chunks.append(records[position : position + size])
        position += size
        if draw(st.integers(0, 4)) == 0:
            back = draw(st.integers(0, min(position, len(records)) - 1))
            chunks.append(records[back:position])
    return records, chunks


class Ends(Log):
    """Keeps what is delivered as it would be published, and knows which offsets there are."""

    def __init__(self, records: list[Message]) -> None:
        super().__init__()
        self._offsets = [record.offset for record in records]
        self.published: list[Any] = []

    async def first_offset_from(self, topic: str, partition: int, offset: int) -> int | None:
        return next((one for one in self._offsets if one >= offset), None)

    async def deliver(self, outgoing: Outgoing) -> None:
        self.published += to_messages(outgoing)


async def said(records: list[Message], chunks: list[list[Message]], fewest_columns: int) -> tuple[Any, ...]:
    """All a worker says of chunks, and the fence it leaves."""
    ends = Ends(records)
    engine = WindowEngine(RULES, fewest_columns=fewest_columns)
    running = StreamWorker(engine, ends, ends, ends)
    await running.assigned([HERE])
    for chunk in chunks:
        await running.take(Incoming(TOPIC, 0, chunk, 1))
    counts = replace(running.statistics, snapshots=0, snapshot_bytes=0, snapshot_at=None)
    counters = {rule: repr(skipped) for rule, skipped in engine.counters.items()}
    duplicates = engine.duplicates
    await running.close()
    fence = {name: ends.snapshots[HERE][name] for name in ("next_offset", "log_seq")}
    return ends.published, fence, ends.committed, ends.sought, counts, counters, duplicates


@settings(max_examples=rounds(60, 2000))
@given(read=reads(), rows_at_once=st.sampled_from([1, 3, 4_000]), fewest_columns=st.sampled_from([1, 8, 64]))
@example(
    # Each is no record, but put together they would be as many as they are.
    read=((trick := [Message(at, value) for at, value in enumerate([b'{"a":[1', b"2]}", b"{},{}"])]), [trick]),
    rows_at_once=4_000,
    fewest_columns=1,
)
def test_chunks_of_any_size_say_what_their_messages_say_one_by_one(
    read: tuple[list[Message], list[list[Message]]], rows_at_once: int, fewest_columns: int
) -> None:
    records, chunks = read
    singly = [[record] for chunk in chunks for record in chunk]
    with mock.patch.object(worker, "steady_ms", return_value=5_000):
        one_by_one = asyncio.run(said(records, singly, 10**9))
        with mock.patch.object(decode, "_ROWS_AT_ONCE", rows_at_once):
            assert asyncio.run(said(records, chunks, fewest_columns)) == one_by_one
    published, fence, _committed, sought, *_ = one_by_one
    assert not sought
    assert fence["next_offset"] == records[-1].offset + 1
    dead = [key for topic, key, *_ in published if topic == "edge.dead-letter"]
    assert len(dead) == len(set(dead))


async def test_a_large_chunk_lets_others_run_in_between() -> None:
    row = json.dumps({"device_id": "a", "ts": 0, "cpu_percent": 1.0}).encode()
    records = [Message(offset, row) for offset in range(10_000)]
    ends = Ends(records)
    running = StreamWorker(WindowEngine(RULES), ends, ends, ends)
    await running.assigned([HERE])
    seen: list[int] = []

    async def watch() -> None:
        while True:
            seen.append(running.statistics.messages)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    await running.take(Incoming(TOPIC, 0, records, 1))
    watching.cancel()
    assert running.statistics.messages == 10_000
    assert max(after - before for before, after in pairwise(seen)) <= 5_000
    await running.close()


async def test_a_rebalance_in_the_middle_of_a_chunk_ends_it() -> None:
    records = [Message(offset, b"{}") for offset in range(9)]
    ends = Ends(records)
    running = StreamWorker(WindowEngine(RULES), ends, ends, ends)
    await running.assigned([HERE])
    await running.loaded()
    with mock.patch.object(decode, "_ROWS_AT_ONCE", 3):
        taking = asyncio.create_task(running.take(Incoming(TOPIC, 0, records, 1)))
        await asyncio.sleep(0)
        assert running.statistics.messages == 3
        await running.revoked()
        ends.generation_id = 2
        await running.assigned([HERE])
        await taking
    assert running.statistics.messages == running.engine.next_offset(*HERE) == 3
    await running.close()
