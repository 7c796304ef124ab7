"""One batch of a device, applied in one transaction, once, however often it is sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from primespark.core.values import clean_text
from primespark.errors import AuthenticationError, ConflictError, InvalidInputError
from primespark.store import commands, documents, fact_rows, facts, labels, samples, server, sync_log, uploads
from primespark.store.reconciliation import DocumentRules, reconcile
from primespark.store.schema import batch, device, lost, watermark
from primespark.sync.records import (
    CommandResult,
    DataClass,
    DocumentChange,
    Fact,
    Lost,
    PushRequest,
    PushResponse,
    RecordResult,
    ResultStatus,
)

MAX_STREAMS_PER_EPOCH = 64
# A device sends a batch only after the answer to the one before; the rest tells an old copy of it from a stranger.
KEPT_ANSWERS = 100
# A row of the log becomes one message to Kafka, which takes 1 MB.
MAX_LOG_ROW_BYTES = 512 * 1024
_REJECTED = "rejected: "


def apply_batch(
    connection: Connection,
    request: PushRequest,
    digest: str,
    received_at: datetime,
    rules: DocumentRules = DocumentRules(),  # noqa: B008 (frozen)
) -> PushResponse:
    """Apply a batch, or give the answer that it got the first time.

    Args:
        connection: In a transaction, which must be rolled back when this raises.
        request: The batch.
        digest: Of the bytes as sent.
        received_at: When they came.
        rules: What decides over documents.

    Raises:
        AuthenticationError: The device was forgotten.
        ConflictError: `replica_cloned`, `stale_epoch`, `unknown_epoch`, `batch_gap`, `seq_gap` or `blob_missing`.
        InvalidInputError: `too_many_streams`.
    """
    epoch = _lock_device(connection, request.replica_id)
    given = _answer_given(connection, request, digest)
    if given is not None:
        return given
    _check_position(connection, request, epoch)
    _forget_old_answers(connection, request)
    intake = _Intake(request.replica_id, request.epoch, request.batch_seq, _watermarks(connection, request))
    changes = intake.take_all(request)
    uploads.hold(connection, request.replica_id, intake.blobs())
    intake.store(connection, received_at)
    told_bytes = 0
    for index, change in changes:
        taken = reconcile(connection, request.replica_id, change, rules)
        told_bytes += len(taken.change.model_dump_json()) if taken.change else 0
        # What is left out is pulled: it lies behind the device's cursor.
        told = taken.change if told_bytes <= documents.PAGE_BYTES else None
        intake.answer(index, taken.status, taken.code, told)
    this_cloud = server.identity(connection)
    response = PushResponse(
        status="applied",
        ack_batch_seq=request.batch_seq,
        results=sorted(intake.results, key=lambda result: result.index),
        server_hlc=this_cloud.peek(),
        server_epoch=this_cloud.server_epoch,
    )
    _keep_answer(connection, request, digest, response, received_at)
    return response


@dataclass(slots=True)
class _Intake:
    """What a batch adds, gathered before anything is written."""

    device_id: str
    epoch: int
    batch_seq: int
    watermarks: dict[str, int]
    results: list[RecordResult] = field(default_factory=list)
    _facts: list[tuple[Fact, str]] = field(default_factory=list)
    _lost: list[dict[str, Any]] = field(default_factory=list)
    _samples: list[samples.Sample] = field(default_factory=list)
    _labels: dict[str, list[labels.Label]] = field(default_factory=dict)
    _command_results: list[CommandResult] = field(default_factory=list)
    _moved: set[str] = field(default_factory=set)

    def take_all(self, request: PushRequest) -> list[tuple[int, DocumentChange]]:
        """Take facts and lost ranges; the documents, with their indexes, are left to the caller."""
        changes = []
        for index, record in enumerate(request.records):
            if isinstance(record, DocumentChange):
                changes.append((index, record))
            elif isinstance(record, Lost):
                self._take_lost(index, record)
            else:
                self._take_fact(index, record)
        return changes

    def answer(
        self, index: int, status: ResultStatus, code: str | None = None, change: DocumentChange | None = None
    ) -> None:
        """Note what became of a record; those that went as usual are not mentioned."""
        if status is not ResultStatus.OK:
            self.results.append(RecordResult(index=index, status=status, code=code, record=change))

    def blobs(self) -> set[str]:
        """What the facts name."""
        return {fact.blob for fact, _ in self._facts if fact.blob is not None}

    def store(self, connection: Connection, received_at: datetime) -> None:
        """Write everything; last what is written under the log's lock: until commit all other batches wait for it."""
        fact_rows.insert(connection, self.device_id, self.epoch, self.batch_seq, self._facts)
        _insert_lost(connection, self._lost, received_at)
        _move_watermarks(connection, self.device_id, self.epoch, {s: self.watermarks[s] for s in self._moved})
        samples.insert(connection, self._samples)
        commands.answer(connection, self.device_id, self._command_results, received_at)
        sync_log.append_facts(connection, self._ranges(), received_at)
        for dataset, rows in sorted(self._labels.items()):
            labels.add(connection, dataset, rows)

    def _take_fact(self, index: int, fact: Fact) -> None:
        if not self._advance(fact.stream, fact.seq, fact.seq):
            self.answer(index, ResultStatus.DUPLICATE)
            return
        try:
            facts.check_fact(fact)
            value = facts.storable_value(fact)
            measured = facts.measurements(self.device_id, fact)
            if fact.data_class is DataClass.LABELS:
                dataset, label = facts.label(self.device_id, fact)
                self._labels.setdefault(dataset, []).append(label)
            elif fact.data_class is DataClass.COMMAND_RESULTS:
                self._command_results.append(facts.command_result(fact))
        except InvalidInputError as error:
            # It will never be valid: it counts as received, so that the stream goes on, and as lost, so that it shows.
            self.answer(index, ResultStatus.REJECTED, error.code)
            self._note_lost(fact.stream, fact.seq, fact.seq, _REJECTED + error.code)
            return
        self._facts.append((fact, value))
        self._samples.extend(measured)

    def _take_lost(self, index: int, record: Lost) -> None:
        first = max(record.seq_from, self.watermarks.get(record.stream, 0) + 1)
        if self._advance(record.stream, first, record.seq_to):
            self._note_lost(record.stream, first, record.seq_to, clean_text(record.reason))
        else:
            self.answer(index, ResultStatus.DUPLICATE)

    def _note_lost(self, stream: str, seq_from: int, seq_to: int, reason: str) -> None:
        row = {"device_id": self.device_id, "epoch": self.epoch, "stream": stream, "seq_from": seq_from}
        self._lost.append(row | {"seq_to": seq_to, "reason": reason})

    def _advance(self, stream: str, seq_from: int, seq_to: int) -> bool:
        """Move a stream's watermark over a range; False if it is there already."""
        known = self.watermarks.get(stream, 0)
        if seq_to <= known:
            return False
        if seq_from > known + 1:
            raise ConflictError(
                f"stream {stream} is known up to {known}, the batch goes on at {seq_from}",
                remedy="send what is missing first, or say that it is lost",
                code="seq_gap",
            )
        if stream not in self.watermarks and len(self.watermarks) >= MAX_STREAMS_PER_EPOCH:
            raise InvalidInputError(
                f"more than {MAX_STREAMS_PER_EPOCH} streams", remedy="use fewer streams", code="too_many_streams"
            )
        self.watermarks[stream] = seq_to
        self._moved.add(stream)
        return True

    def _ranges(self) -> list[sync_log.FactRange]:
        sizes: dict[tuple[str, str], int] = {}
        groups: dict[tuple[str, str, int], list[Fact]] = {}
        for kind, run in groupby(self._facts, key=_kind):
            size = sizes.get(kind, 0)
            for fact, value in run:
                size += len(value) if value.isascii() else len(value.encode())
                groups.setdefault((*kind, size // MAX_LOG_ROW_BYTES), []).append(fact)
            sizes[kind] = size
        return [self._range(stream, data_class, group) for (stream, data_class, _), group in groups.items()]

    def _range(self, stream: str, data_class: str, group: list[Fact]) -> sync_log.FactRange:
        times = [fact.time for fact in group]
        return sync_log.FactRange(
            data_class=data_class, device_id=self.device_id, epoch=self.epoch, batch_seq=self.batch_seq,
            stream=stream, seq_from=group[0].seq, seq_to=group[-1].seq, rows=len(group), time_from=min(times),
            time_to=max(times),
        )  # fmt: skip


def _kind(taken: tuple[Fact, str]) -> tuple[str, str]:
    fact = taken[0]
    # `_value_`, since hashing a member of an enum is a call.
    return fact.stream, fact.data_class._value_


def _lock_device(connection: Connection, device_id: str) -> int:
    """The device's epoch; its batches follow one another until commit."""
    epoch: int | None = connection.execute(
        select(device.c.epoch)
        .where(device.c.device_id == device_id, device.c.key_sha256.is_not(None))
        .with_for_update()
    ).scalar()
    if epoch is None:
        raise AuthenticationError(
            f"no device {device_id!r}", remedy="enrol it again with a new token", code="unknown_device"
        )
    return epoch


def _answer_given(connection: Connection, request: PushRequest, digest: str) -> PushResponse | None:
    row = connection.execute(
        select(batch.c.digest, batch.c.response).where(
            batch.c.device_id == request.replica_id,
            batch.c.epoch == request.epoch,
            batch.c.batch_seq == request.batch_seq,
        )
    ).one_or_none()
    if row is None:
        return None
    if row.digest != digest:
        raise _cloned(request)
    return PushResponse.model_validate(row.response | {"status": "replayed"})


def _check_position(connection: Connection, request: PushRequest, epoch: int) -> None:
    if request.epoch > epoch:
        raise ConflictError(
            f"epoch {request.epoch} of {request.replica_id} is not known here, the newest is {epoch}",
            remedy="this cloud was restored from a backup: ask for a new epoch with POST /sync/v1/epoch",
            code="unknown_epoch",
        )
    if request.epoch < epoch:
        raise ConflictError(
            f"{request.replica_id} is in epoch {epoch}, the batch is of epoch {request.epoch}",
            remedy="an old copy of the device's card, or a second one: enrol it under an id of its own",
            code="stale_epoch",
        )
    last = connection.execute(
        select(func.coalesce(func.max(batch.c.batch_seq), 0)).where(
            batch.c.device_id == request.replica_id, batch.c.epoch == request.epoch
        )
    ).scalar_one()
    if request.batch_seq <= last:
        # Too old for its answer to be kept.
        raise _cloned(request)
    if request.batch_seq != last + 1:
        raise ConflictError(
            f"batch {last + 1} is expected, {request.batch_seq} came",
            remedy="send batches in order; where one is missing here that was acknowledged, ask for a new epoch",
            code="batch_gap",
        )


def _cloned(request: PushRequest) -> ConflictError:
    return ConflictError(
        f"batch {request.batch_seq} of {request.replica_id} was another one the first time",
        remedy="two machines use one identity: enrol the later one under an id of its own",
        code="replica_cloned",
    )


def _forget_old_answers(connection: Connection, request: PushRequest) -> None:
    connection.execute(
        delete(batch).where(
            batch.c.device_id == request.replica_id,
            batch.c.epoch == request.epoch,
            batch.c.batch_seq <= request.batch_seq - KEPT_ANSWERS,
        )
    )


def _watermarks(connection: Connection, request: PushRequest) -> dict[str, int]:
    rows = connection.execute(
        select(watermark.c.stream, watermark.c.seq).where(
            watermark.c.device_id == request.replica_id, watermark.c.epoch == request.epoch
        )
    )
    return {row.stream: row.seq for row in rows}


def _insert_lost(connection: Connection, rows: list[dict[str, Any]], received_at: datetime) -> None:
    if rows:
        connection.execute(insert(lost).values([row | {"received_at": received_at} for row in rows]))


def _move_watermarks(connection: Connection, device_id: str, epoch: int, moved: dict[str, int]) -> None:
    if not moved:
        return
    statement = insert(watermark).values(
        [{"device_id": device_id, "epoch": epoch, "stream": stream, "seq": seq} for stream, seq in moved.items()]
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["device_id", "epoch", "stream"], set_={"seq": statement.excluded.seq}
        )
    )


def _keep_answer(
    connection: Connection, request: PushRequest, digest: str, response: PushResponse, received_at: datetime
) -> None:
    connection.execute(
        insert(batch).values(
            device_id=request.replica_id, epoch=request.epoch, batch_seq=request.batch_seq, digest=digest,
            response=response.model_dump(mode="json"), received_at=received_at,
        )
    )  # fmt: skip
