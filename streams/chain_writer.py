"""Writing a partition's chain of snapshots on: changes, and now and then a whole one; pure, see `streams.chain`."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from primespark.errors import ConflictError
from streams.chain import LEGACY, ChainReader, digest, pack
from streams.state import StateLines

# Changes of fewer bytes in all are not worth a whole snapshot, which comes after so many records at the latest.
_LEAST_CHANGES_BYTES = 262_144
_MOST_RECORDS = 256

# A key and its value.
Record = tuple[bytes, bytes]


class ChainWriter:
    """Writes a partition's chain on, from what its reader has found and for a term of its own.

    Args:
        reader: Has read the log to an end; what is read after is given to it too.
    """

    def __init__(self, reader: ChainReader) -> None:
        self._reader = reader
        self._term = reader.term + 1
        self._writer = secrets.token_hex(8)
        self._sequence = 0
        self._state = StateLines()
        self._last: str | None = None
        self._written: tuple[str, StateLines, int, bool] | None = None
        self._whole_bytes = self._changes_bytes = self._records = 0

    @property
    def claim(self) -> Record:
        """To be written first; then the log is read up to it."""
        return self._key(0, 0), b"{}\n"

    @property
    def is_owner(self) -> bool:
        """Whether the claim holds, as far as the log is read."""
        return (self._reader.term, self._reader.writer) == (self._term, self._writer)

    def begin(self) -> StateLines | None:
        """The state to go on from, once the log is read up to the claim; None where there is none.

        Raises:
            ConflictError: Another claim was there first.
        """
        if not self.is_owner:
            raise ConflictError(f"{self._reader.prefix} was claimed by another worker at the same time")
        state = self._reader.state()
        self._state = state.copy() if state is not None else StateLines()
        # After what an earlier version wrote comes a whole snapshot: its key is not its own.
        self._last = None if self._reader.last == LEGACY else self._reader.last
        self._whole_bytes, self._changes_bytes = self._reader.sizes
        self._records = self._reader.records
        return state

    def write(self, changes: Mapping[str, Any]) -> tuple[list[Record], bool]:
        """The records of the next snapshot, in order, and whether it is whole; then `acknowledge` it, or call again.

        Raises:
            ConflictError: Another worker has taken over.
        """
        if not self.is_owner:
            raise ConflictError(f"{self._reader.prefix} was taken over by another worker", remedy="restart this one")
        self._sequence += 1
        lines = StateLines.encode(changes)
        chunks = pack(lines.to_bytes())
        size = sum(map(len, chunks))
        is_whole = (
            self._last is None
            or self._changes_bytes + size > max(self._whole_bytes, _LEAST_CHANGES_BYTES)
            or self._records + len(chunks) > _MOST_RECORDS
        )
        if is_whole:
            state = self._state.copy()
            state.apply(lines)
            lines, chunks = state, pack(state.to_bytes())
            size = sum(map(len, chunks))
        self._written = (f"{self._term}.{self._writer}.{self._sequence}", lines, size, is_whole)
        closing = {"follows": None if is_whole else self._last, "chunks": len(chunks), "digest": digest(chunks)}
        heads = [b"{}"] * (len(chunks) - 1) + [json.dumps(closing).encode()]
        records = [
            (self._key(self._sequence, number), head + b"\n" + chunk)
            for number, (head, chunk) in enumerate(zip(heads, chunks, strict=True), 1)
        ]
        self._records += len(records)
        return records, is_whole

    def acknowledge(self) -> None:
        """All records of the last `write` are in the log."""
        if self._written is None:
            return
        self._last, lines, size, is_whole = self._written
        self._written = None
        if is_whole:
            self._state, self._whole_bytes, self._changes_bytes, self._records = lines, size, 0, 0
        else:
            self._state.apply(lines)
            self._changes_bytes += size

    def superseded(self) -> list[bytes]:
        """Keys to delete, once the log is read up to the last snapshot and that is whole.

        Raises:
            ConflictError: Another worker has taken over; nothing may be deleted.
        """
        if not self.is_owner or self._reader.last != self._last:
            raise ConflictError(f"{self._reader.prefix} was taken over by another worker", remedy="restart this one")
        return self._reader.superseded(self.claim[0])

    def _key(self, sequence: int, chunk: int) -> bytes:
        return f"{self._reader.prefix}|{self._term}|{self._writer}|{sequence}|{chunk}".encode()
