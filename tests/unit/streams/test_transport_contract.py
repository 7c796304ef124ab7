"""What the worker relies on in Faust beyond its public names; a new release that changes it fails here first."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from primespark.core.settings import Settings
from streams import transport

pytest.importorskip("faust", reason="no wheel for this machine: run on x86-64")

from aiokafka.structs import ConsumerRecord
from faust.tables import TableManager
from faust.transport.consumer import Consumer
from faust.types import TP

from streams.app import build_app
from streams.transport import ChunkConsumer, chunks


def record(offset: int, value: bytes | None = b"{}", partition: int = 0) -> Any:
    """As aiokafka makes it."""
    return ConsumerRecord("in", partition, offset, 1_000, 0, None, value, None, -1, 2, [])


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PRIMESPARK_HOME", str(tmp_path))
    return build_app(Settings.model_validate({"cloud": {"kafka": {"bootstrap_servers": "127.0.0.1:9"}}}))


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        (Consumer._to_message, ["self", "tp", "record"]),
        (Consumer._getmany, ["self", "active_partitions", "timeout"]),
        (Consumer._commit, ["self", "offsets"]),
        (Consumer.seek, ["self", "partition", "offset"]),
        (TableManager._update_channels, ["self"]),
    ],
)
def test_the_methods_have_the_signatures_they_are_called_with(
    method: Callable[..., Any], parameters: list[str]
) -> None:
    found = list(inspect.signature(method).parameters)
    assert found == parameters, f"Faust changed {method.__qualname__}: see streams/transport.py and streams/app.py"


async def test_what_was_read_of_a_partition_at_once_is_one_message(app: Any) -> None:
    here, there = TP("in", 0), TP("in", 1)
    read = {here: [record(3), record(4), record(7)], there: [record(0, partition=1)]}

    class Reading(ChunkConsumer):
        """Reads from memory."""

        async def _getmany(self, active_partitions: Any, timeout: float) -> Any:
            return read

        def highwater(self, tp: Any) -> int:
            return 8

    app.transport.Consumer = Reading
    app.consumer_generation_id = 5
    consumer = app.consumer
    consumer._set_active_tps({here, there})
    found = {tp: message async for tp, message in consumer.getmany(timeout=0)}
    hint = "Faust hands records over in another way: see streams/transport.py"
    assert set(found) == {here, there}, hint
    message = found[here]
    assert message.value == read[here], hint
    assert (message.topic, message.partition, message.offset, message.generation_id) == ("in", 0, 7, 5), hint


async def test_a_chunk_reaches_the_agent_as_it_is(app: Any) -> None:
    topic = app.topic("in", key_type=bytes, key_serializer="raw", value_type=bytes, value_serializer="raw", acks=False)
    records = [record(0), record(1)]
    message = app.consumer._to_message(TP("in", 0), records)
    event = await topic.decode(message, propagate=True)
    assert event.message.value is records, "Faust decodes raw values: see streams/transport.py"


def test_chunks_are_bounded_in_bytes_and_hold_one_record_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_MAX_CHUNK_BYTES", 10)
    sizes = [4, 6, 1, 30, 30, 0, 0, 2, 9]
    records = [record(offset, b"x" * size or None) for offset, size in enumerate(sizes)]
    pieces = list(chunks(records))
    assert [one for piece in pieces for one in piece] == records
    assert [[len(one.value or b"") for one in piece] for piece in pieces] == [[4, 6], [1], [30], [30], [0, 0, 2], [9]]
