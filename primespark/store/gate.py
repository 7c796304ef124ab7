"""One batch of a device, applied in one transaction, once, however often it is sent."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection

from primespark.errors import AuthenticationError, ConflictError
from primespark.store import batches, documents, server, uploads
from primespark.store.intake import Intake
from primespark.store.reconciliation import DocumentRules, reconcile
from primespark.sync.records import PushRequest, PushResponse


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
    known = batches.find(connection, request.replica_id, request.epoch, request.batch_seq)
    if known.response is not None:
        if known.digest != digest:
            raise _cloned(request)
        return PushResponse.model_validate(known.response | {"status": "replayed"})
    _check_position(request, epoch, known.last)
    intake = Intake(request.replica_id, request.epoch, request.batch_seq, known.watermarks)
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
    batches.keep_answer(connection, request.replica_id, request.epoch, digest, response, received_at)
    return response


def _lock_device(connection: Connection, device_id: str) -> int:
    epoch = batches.lock_device(connection, device_id)
    if epoch is None:
        raise AuthenticationError(
            f"no device {device_id!r}", remedy="enrol it again with a new token", code="unknown_device"
        )
    return epoch


def _check_position(request: PushRequest, epoch: int, last: int) -> None:
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
