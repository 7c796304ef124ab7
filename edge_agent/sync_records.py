"""Records as the specification's sync engine takes them: each describes one thing that changes, by version and hash."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self
from uuid import uuid4

from primespark.core.clock import to_rfc3339, utc_now


class DataType(StrEnum):
    """What a record describes; the order is that in which records go."""

    CONFIGURATIONS = "configurations"
    MODELS = "models"
    INFERENCE_RESULTS = "inference_results"
    METRICS = "metrics"
    TELEMETRY = "telemetry"


class SyncDirection(StrEnum):
    """Who tells whom."""

    EDGE_TO_CLOUD = "edge_to_cloud"
    CLOUD_TO_EDGE = "cloud_to_edge"
    BIDIRECTIONAL = "bidirectional"


class SyncStatus(StrEnum):
    """`pending`: on disk, the other side has not answered yet; `conflict`: other versions stand than those given."""

    COMPLETED = "completed"
    PENDING = "pending"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class SyncRecord:
    """One version of a thing.

    Attributes:
        record_id: Of the thing, among those of its type.
        data_type: What it is.
        source: Where this version is from, as the caller names it.
        destination: Where it is to go.
        data_hash: Of its content.
        version: Higher than every one before.
        timestamp: When it came to be; one without a zone is local time.
        size_bytes: Of its content.
        data: The content, where it is small JSON; else it travels as a fact or a blob, and this describes it.
    """

    record_id: str
    data_type: DataType
    source: str
    destination: str
    data_hash: str
    version: int
    timestamp: datetime
    size_bytes: int
    data: Any = None

    def to_json(self) -> dict[str, Any]:
        """As it travels."""
        moment = self.timestamp
        if moment.tzinfo is None:
            warnings.warn(f"{self.record_id}: a time without a zone is taken as local", stacklevel=2)
        return {
            "record_id": self.record_id, "data_type": self.data_type.value, "source": self.source,
            "destination": self.destination, "data_hash": self.data_hash, "version": self.version,
            "timestamp": to_rfc3339(moment), "size_bytes": self.size_bytes, "data": self.data,
        }  # fmt: skip

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Self:
        """What `to_json` made; KeyError, TypeError or ValueError for anything else."""
        if not isinstance(given["version"], int) or not isinstance(given["record_id"], str):
            raise TypeError("not a record")
        moment = datetime.fromisoformat(given["timestamp"]).astimezone(UTC)
        return cls(**{**given, "data_type": DataType(given["data_type"]), "timestamp": moment})


@dataclass(frozen=True, slots=True)
class TrackedVersion:
    """What is known of a record: what stands here, its version vector, and whether the cloud lacks it."""

    record: SyncRecord
    vv: dict[str, int]
    is_pending: bool


def is_waited_for(record: SyncRecord, known: TrackedVersion | None) -> bool:
    """Whether a version has not come yet to where it is to go."""
    return known is None or known.is_pending or known.record.version < record.version


@dataclass(frozen=True, slots=True)
class SyncOperation:
    """One call of `sync_data`.

    Attributes:
        status: See `SyncStatus`.
        records: What stands on the device now, of those asked for.
        pending: Ids that the other side has not answered for.
        conflicts: Ids of which another version stands.
    """

    direction: SyncDirection
    status: SyncStatus
    records: tuple[SyncRecord, ...]
    pending: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    operation_id: str = field(default_factory=lambda: str(uuid4()))
    ended_at: datetime = field(default_factory=utc_now)

    @classmethod
    def of(
        cls, direction: SyncDirection, records: Sequence[SyncRecord], standing: Sequence[TrackedVersion | None]
    ) -> Self:
        """What became of `records`, of each of which the other sequence has what stands."""
        pairs = list(zip(records, standing, strict=True))
        pending = tuple(record.record_id for record, known in pairs if is_waited_for(record, known))
        conflicts = tuple(record.record_id for record, known in pairs if known and _differ(record, known.record))
        # Who asks for what the cloud has is glad of a newer one.
        conflicts = () if direction is SyncDirection.CLOUD_TO_EDGE else conflicts
        status = SyncStatus.PENDING if pending else SyncStatus.CONFLICT if conflicts else SyncStatus.COMPLETED
        return cls(direction, status, tuple(known.record for known in standing if known), pending, conflicts)


def _differ(given: SyncRecord, stands: SyncRecord) -> bool:
    return (given.version, given.data_hash) != (stands.version, stands.data_hash)
