"""What a batch adds to the store, gathered before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from primespark.core.values import clean_text
from primespark.errors import ConflictError, InvalidInputError
from primespark.store import batches, commands, fact_rows, facts, labels, samples, sync_log
from primespark.store.schema import lost
from primespark.sync.records import (
    CommandResult,
    DataClass,
    DocumentChange,
    Fact,
    Lost,
    PushRequest,
    RecordResult,
    ResultStatus,
)

MAX_STREAMS_PER_EPOCH = 64
# A row of the log becomes one message to Kafka, which takes 1 MB.
MAX_LOG_ROW_BYTES = 512 * 1024
_REJECTED = "rejected: "


@dataclass(slots=True)
class Intake:
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
        moved = {stream: self.watermarks[stream] for stream in self._moved}
        batches.move_watermarks(connection, self.device_id, self.epoch, self.batch_seq, moved)
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
        # A clock that was never set may be years ahead: the fact is kept, and no measurement of a time to come.
        self._samples.extend(sample for sample in measured if not samples.is_ahead(sample))

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


def _insert_lost(connection: Connection, rows: list[dict[str, Any]], received_at: datetime) -> None:
    if rows:
        connection.execute(insert(lost).values([row | {"received_at": received_at} for row in rows]))
