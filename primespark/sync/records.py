"""What travels between a device and its cloud: facts, lost ranges, documents, and the messages that carry them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)

from primespark.core.identifiers import DeviceId, GroupName
from primespark.errors import InvalidInputError

PROTOCOL_VERSION = 1
MAX_RECORDS_PER_BATCH = 5000

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}$")]
Counter = Annotated[int, Field(gt=0, lt=2**62)]
Hlc = Annotated[str, StringConstraints(pattern=r"^\d{13}-[0-9a-f]{4}-[a-z0-9][a-z0-9-]{0,62}$")]
Pointer = Annotated[str, StringConstraints(max_length=512, pattern=r"^(/.*)?$")]
CommandId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
CommandName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Message(BaseModel):
    """Strict at the boundary: no coercion, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataClass(StrEnum):
    """The classes of data a fleet exchanges."""

    METRICS = "metrics"
    TELEMETRY = "telemetry"
    INFERENCE_RESULTS = "inference_results"
    LABELS = "labels"
    CONFIGURATIONS = "configurations"
    COMMANDS = "commands"
    COMMAND_RESULTS = "command_results"


FactClass = Literal[
    DataClass.METRICS, DataClass.TELEMETRY, DataClass.INFERENCE_RESULTS, DataClass.LABELS, DataClass.COMMAND_RESULTS
]
DocumentClass = Literal[DataClass.CONFIGURATIONS]


def _in_utc(moment: datetime) -> datetime:
    """The same moment; PostgreSQL does not know every offset from UTC that RFC 3339 does."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        # On the first or last day that there is; no time of a fact.
        return moment


_Time = Annotated[AwareDatetime, Field(strict=False), AfterValidator(_in_utc)]


class Quality(StrEnum):
    """What is to be known of a fact's time; without one, the device's clock agreed with the cloud's."""

    CLOCK_REPAIRED = "clock_repaired"
    CLOCK_UNKNOWN = "clock_unknown"


class Fact(Message):
    """Something that happened; identity `(device_id, epoch, stream, seq)`.

    Attributes:
        blob: What is too large for `value`, which then describes it; the cloud has it before it takes the fact.
    """

    data_class: FactClass
    op: Literal["append"] = "append"
    stream: Name
    seq: Counter
    time: _Time
    boot_id: Annotated[str, StringConstraints(max_length=64)]
    monotonic_ns: Annotated[int, Field(ge=0, lt=2**63)]
    quality: Annotated[Quality, Field(strict=False)] | None = None
    value: dict[str, Any]
    blob: Sha256 | None = None


class Lost(Message):
    """A range of facts the device had to drop; counts as received."""

    op: Literal["lost"]
    stream: Name
    seq_from: Counter
    seq_to: Counter
    reason: Annotated[str, StringConstraints(max_length=200)]

    @model_validator(mode="after")
    def _ordered(self) -> Lost:
        if self.seq_to < self.seq_from:
            raise ValueError("seq_to is below seq_from")
        return self


class DocumentChange(Message):
    """The whole state of one document at its writer; versions decide what of it stands."""

    data_class: DocumentClass
    scope: Name
    key: Name
    op: Literal["put", "del"] = "put"
    vv: dict[str, Counter]
    hlc: Hlc
    leaf_hlc: dict[Pointer, Hlc]
    value: Any = None


@contextmanager
def refuse_what_cannot_travel() -> Iterator[None]:
    """Turn the refusal of a document's parts by `DocumentChange` into an error for who wrote the document.

    Raises:
        InvalidInputError: Code `bad_document`.
    """
    try:
        yield
    except ValidationError as error:
        raise InvalidInputError(
            f"this cannot travel as a document: {error.errors()[0]['msg']}",
            remedy="shorter names, of letters, digits and _ . : / -",
            code="bad_document",
        ) from None


def _operation(record: Any) -> str:
    operation = record.get("op") if isinstance(record, dict) else getattr(record, "op", None)
    return operation if operation in ("lost", "put", "del") else "append"


Record = Annotated[
    Annotated[Fact, Tag("append")]
    | Annotated[Lost, Tag("lost")]
    | Annotated[DocumentChange, Tag("put")]
    | Annotated[DocumentChange, Tag("del")],
    Discriminator(_operation),
]


class PushRequest(Message):
    """One batch; its number and exact bytes are fixed on the device's disk before the first send."""

    v: Literal[1]
    replica_id: DeviceId
    epoch: Counter
    batch_seq: Counter
    hlc: Hlc
    records: Annotated[list[Record], Field(max_length=MAX_RECORDS_PER_BATCH, fail_fast=True)]


class ResultStatus(StrEnum):
    """What became of one record."""

    OK = "ok"
    DUPLICATE = "dup"
    MERGED = "merged"
    CONFLICT = "conflict"
    RESTAMPED = "restamped"
    REJECTED = "rejected"


class RecordResult(Message):
    """The answer for `records[index]`; sent for statuses other than ok only."""

    index: Annotated[int, Field(ge=0)]
    status: Annotated[ResultStatus, Field(strict=False)]
    code: str | None = None
    record: DocumentChange | None = None


class PushResponse(Message):
    """All batches up to `ack_batch_seq` are applied."""

    status: Literal["applied", "replayed"]
    ack_batch_seq: Annotated[int, Field(ge=0)]
    results: list[RecordResult]
    server_hlc: Hlc
    server_epoch: Counter


class Command(Message):
    """What a device is to do, once.

    Attributes:
        command_id: Its identity.
        expires_at: From when on it is not to be run.
        expires_in_s: Until then as this is sent; for a device whose clock is wrong. Negative: it is over.
    """

    data_class: Literal[DataClass.COMMANDS] = DataClass.COMMANDS
    command_id: CommandId
    name: CommandName
    arguments: dict[str, Any]
    expires_at: _Time
    expires_in_s: float


class CommandResult(Message):
    """What became of a command: the value of a fact of class `command_results`.

    Attributes:
        code: Why it failed; None unless it did.
        message: The cause in a line; empty unless it failed.
        output: What it gave.
    """

    command_id: CommandId
    outcome: Literal["succeeded", "failed", "expired"]
    code: Annotated[str, StringConstraints(max_length=64)] | None = None
    message: Annotated[str, StringConstraints(max_length=200)] = ""
    output: dict[str, Any] = Field(default_factory=dict)


class PulledChange(Message):
    """A document as the cloud holds it, or a command that is not answered yet; and the cursor after it."""

    cursor: Annotated[int, Field(ge=0)]
    change: Annotated[DocumentChange | Command, Field(discriminator="data_class")]


class PullResponse(Message):
    """Changes in commit order.

    Attributes:
        snapshot: Where the log was when the device began to read it from the beginning.
        groups: The device's, in order of name.
    """

    changes: list[PulledChange]
    next_cursor: Annotated[int, Field(ge=0)]
    has_more: bool
    server_epoch: Counter
    server_hlc: Hlc
    # Only for devices that ask with them: an older one takes nothing that it does not know.
    snapshot: Annotated[int, Field(ge=0)] | None = None
    groups: list[GroupName] | None = None


class TrustedKey(Message):
    """A key whose signature on a manifest the device accepts."""

    key_id: str
    ed25519_public: str


class EnrolRequest(Message):
    """A device presents its token."""

    token: Annotated[str, StringConstraints(min_length=16, max_length=200)]
    device_id: DeviceId
    capabilities: dict[str, Any] = {}
    versions: dict[str, str] = {}


class Limits(Message):
    """What the gate accepts."""

    max_body_bytes: int
    max_records: int


class EnrolResponse(Message):
    """Credentials of a device; the key is shown this once."""

    replica_id: DeviceId
    key: str
    epoch: Counter
    server_epoch: Counter
    limits: Limits
    server_time: _Time
    trust: list[TrustedKey]


class TimeResponse(Message):
    """The cloud's time; the answer's headers tell it more exactly."""

    server_time: _Time


class EpochRequest(Message):
    """Why a device asks for a new epoch, and what it knows of the one before; nothing of it where its database is gone.

    Attributes:
        reason: What happened, as far as the device can tell.
        epoch: The one before; the new one is above it.
        acknowledged: How far each of its streams was acknowledged: what this cloud has less of is on record as lost.
    """

    reason: Literal["database_lost", "cloud_restored"] = "database_lost"
    epoch: Annotated[int, Field(ge=0, lt=2**30)] = 0
    acknowledged: Annotated[dict[Name, Counter], Field(max_length=64)] = {}


class EpochResponse(Message):
    """A new epoch."""

    epoch: Counter
    server_epoch: Counter
    server_time: _Time


__all__ = [
    "MAX_RECORDS_PER_BATCH",
    "PROTOCOL_VERSION",
    "Command",
    "CommandId",
    "CommandName",
    "CommandResult",
    "Counter",
    "DataClass",
    "DocumentChange",
    "EnrolRequest",
    "EnrolResponse",
    "EpochRequest",
    "EpochResponse",
    "Fact",
    "Limits",
    "Lost",
    "Message",
    "PullResponse",
    "PulledChange",
    "PushRequest",
    "PushResponse",
    "Quality",
    "Record",
    "RecordResult",
    "ResultStatus",
    "TimeResponse",
    "TrustedKey",
]
