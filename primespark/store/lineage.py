"""Where a stored fact comes from: batch, device, and of a result what was looked at and by which model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from pydantic_core import to_jsonable_python
from sqlalchemy import Connection, Row, select, text

from primespark.core.clock import to_rfc3339
from primespark.errors import NotFoundError
from primespark.store.schema import fact, log, lost


@dataclass(frozen=True, slots=True)
class FrameOrigin:
    """What a model looked at or listened to.

    Attributes:
        name: Of the frame, or of the source.
        sha256: Its digest; None for results of devices that did not send one yet.
        digest_of: `file`, `pixels`, `rows` or `samples`.
    """

    name: str | None
    sha256: str | None
    digest_of: str | None


@dataclass(frozen=True, slots=True)
class ModelOrigin:
    """Which model saw it.

    Attributes:
        name: Of the model.
        version: Of its manifest.
        digest: SHA-256 of the file that ran.
        manifest: SHA-256 of the signed manifest; None where no run made that file and no device is to serve it.
        run_id: Of the pipeline's run that made it; None for others.
    """

    name: str | None
    version: int | None
    digest: str | None
    manifest: str | None
    run_id: str | None


@dataclass(frozen=True, slots=True)
class Lineage:
    """A fact's identity, the batch it came in, and of an inference result its frame and model.

    Attributes:
        quality: What is to be known of `time`; None when nothing is.
        batch_seq: None for facts from before batches were kept.
        received_at: When the batch came.
        log_seq: Its row in the sync log.
        blob: SHA-256 of the blob it names.
    """

    device_id: str
    epoch: int
    stream: str
    seq: int
    data_class: str
    time: datetime
    boot_id: str
    quality: str | None
    batch_seq: int | None
    received_at: datetime | None
    log_seq: int | None
    frame: FrameOrigin | None
    model: ModelOrigin | None
    blob: str | None

    def to_json(self) -> dict[str, Any]:
        """As JSON has it, times as RFC 3339."""
        value: dict[str, Any] = to_jsonable_python(asdict(self))
        received_at = to_rfc3339(self.received_at) if self.received_at else None
        return value | {"time": to_rfc3339(self.time), "received_at": received_at}


def trace(connection: Connection, device_id: str, stream: str, seq: int, epoch: int | None = None) -> Lineage:
    """The lineage of a fact; without `epoch` of the newest that has it.

    Raises:
        NotFoundError: No such fact; its message says whether and why it was lost.
    """
    statement = select(fact).where(fact.c.device_id == device_id, fact.c.stream == stream, fact.c.seq == seq)
    if epoch is not None:
        statement = statement.where(fact.c.epoch == epoch)
    row = connection.execute(statement.order_by(fact.c.epoch.desc()).limit(1)).one_or_none()
    if row is None:
        raise _no_fact(connection, device_id, stream, seq, epoch)
    entry = _entry(connection, row)
    value = row.value
    is_result = "model_digest" in value
    return Lineage(
        device_id=device_id, epoch=row.epoch, stream=stream, seq=seq, data_class=row.data_class, time=row.time,
        boot_id=row.boot_id, quality=row.quality, batch_seq=row.batch_seq,
        received_at=entry.received_at if entry else None, log_seq=entry.log_seq if entry else None,
        frame=_frame(value) if is_result else None, model=_model(connection, value) if is_result else None,
        blob=row.blob,
    )  # fmt: skip


def _entry(connection: Connection, row: Row[Any]) -> Any:
    """`log_seq` and `received_at` of the row of the log that tells of a fact; None without a batch."""
    return connection.execute(
        select(log.c.log_seq, log.c.received_at).where(
            log.c.device_id == row.device_id, log.c.epoch == row.epoch, log.c.batch_seq == row.batch_seq,
            log.c.stream == row.stream, log.c.data_class == row.data_class,
            log.c.seq_from <= row.seq, log.c.seq_to >= row.seq,
        )
        .order_by(log.c.log_seq)
        .limit(1)
    ).one_or_none()  # fmt: skip


def _frame(value: dict[str, Any]) -> FrameOrigin:
    # A result names its frame `source`; an event has both.
    name = value.get("frame", value.get("source"))
    return FrameOrigin(_text(name), _text(value.get("input_sha256")), _text(value.get("input_digest_of")))


def _model(connection: Connection, value: dict[str, Any]) -> ModelOrigin:
    digest, version = _text(value.get("model_digest")), value.get("model_version")
    manifest, run_id = _made_by(connection, digest) if digest else (None, None)
    is_number = isinstance(version, int) and not isinstance(version, bool)
    return ModelOrigin(_text(value.get("model")), version if is_number else None, digest, manifest, run_id)


def _made_by(connection: Connection, digest: str) -> tuple[str | None, str | None]:
    """Manifest and run of a model's file: as the pipeline deployed it, else as a document points at it."""
    deployed = connection.execute(
        text(
            "SELECT output->>'manifest', run_id FROM control.pipeline_stage"
            " WHERE stage = 'deployment' AND output->>'artifact' = :digest ORDER BY finished_at DESC LIMIT 1"
        ),
        {"digest": digest},
    ).one_or_none()
    if deployed is not None:
        return deployed[0], deployed[1]
    pointed = connection.execute(
        text(
            "SELECT pointer->>'manifest' FROM sync.document,"
            " jsonb_path_query(value, '$.desired.models.*') AS pointer"
            " WHERE pointer->'artifacts' @> to_jsonb(CAST(:digest AS text)) LIMIT 1"
        ),
        {"digest": digest},
    ).scalar()
    return pointed, None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _no_fact(connection: Connection, device_id: str, stream: str, seq: int, epoch: int | None) -> NotFoundError:
    statement = select(lost.c.reason).where(
        lost.c.device_id == device_id, lost.c.stream == stream, lost.c.seq_from <= seq, lost.c.seq_to >= seq
    )
    if epoch is not None:
        statement = statement.where(lost.c.epoch == epoch)
    reason = connection.execute(statement.order_by(lost.c.epoch.desc()).limit(1)).scalar()
    if reason is not None:
        return NotFoundError(
            f"fact {seq} of stream {stream!r} of {device_id!r} was lost: {reason}",
            remedy="see the device's dead letters and the bounds of its queue",
            code="fact_lost",
        )
    return NotFoundError(
        f"no fact {seq} of stream {stream[:128]!r} of {device_id[:63]!r}", remedy="see what the device sent"
    )
