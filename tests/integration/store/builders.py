"""Batches as devices send them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from primespark.core.clock import Timestamp
from primespark.core.identifiers import sha256_hex
from primespark.store import devices, gate
from primespark.sync.records import DataClass, DocumentChange, Fact, Lost, PushRequest, PushResponse

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def enrol(connection: Connection, device_id: str = "edge-1") -> str:
    """Enrol a device; its key."""
    token = devices.create_token(connection, 1, timedelta(hours=1))
    return devices.enrol(connection, token, device_id, {}, {}).key


def fact(seq: int, value: dict[str, Any] | None = None, stream: str = "telemetry", **other: Any) -> Fact:
    """A fact of second `seq`; its class is that of the stream's name unless told otherwise."""
    fields: dict[str, Any] = {"time": T0 + timedelta(seconds=seq), "boot_id": "boot"} | other
    fields["data_class"] = DataClass(other.get("data_class", stream))
    value = {"cpu_percent": float(seq)} if value is None else value
    return Fact(stream=stream, seq=seq, monotonic_ns=seq, value=value, **fields)


def lost(seq_from: int, seq_to: int, stream: str = "telemetry") -> Lost:
    return Lost(op="lost", stream=stream, seq_from=seq_from, seq_to=seq_to, reason="queue_full")


def batch(
    number: int, records: Sequence[Fact | Lost | DocumentChange], device_id: str = "edge-1", epoch: int = 1
) -> PushRequest:
    hlc = str(Timestamp(1_700_000_000_000, 0, device_id))
    return PushRequest(v=1, replica_id=device_id, epoch=epoch, batch_seq=number, hlc=hlc, records=list(records))


def push(connection: Connection, request: PushRequest) -> PushResponse:
    """Apply a batch under the digest of its content."""
    return gate.apply_batch(connection, request, sha256_hex(request.model_dump_json().encode()), T0)
