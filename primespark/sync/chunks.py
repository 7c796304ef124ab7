"""Blobs in pieces: content-defined chunks, so that a blob that differs in one place from another shares the rest of it.

Where chunks end depends on the bytes around, not on their position: an insertion moves what follows and changes the
chunks it lies in. Both sides cut alike, and must: other sizes here would share nothing with what is stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator
from pyfastcdc import FastCDC

from primespark.sync.records import Message, Sha256

AVERAGE_CHUNK_BYTES = 64 * 1024
MIN_CHUNK_BYTES = 16 * 1024
MAX_CHUNK_BYTES = 256 * 1024
# A list of this many is of 1 GiB at least.
MAX_CHUNKS = 64 * 1024


class ChunkName(Message):
    """One chunk by its digest."""

    sha256: Sha256
    size: Annotated[int, Field(ge=1, le=MAX_CHUNK_BYTES)]


class ChunkList(Message):
    """The chunks of a blob in their order; only the last may be shorter than `MIN_CHUNK_BYTES`."""

    sha256: Sha256
    size: Annotated[int, Field(ge=0)]
    chunks: Annotated[list[ChunkName], Field(max_length=MAX_CHUNKS, fail_fast=True)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if sum(chunk.size for chunk in self.chunks) != self.size:
            raise ValueError("size is not the sum of the chunks")
        if any(chunk.size < MIN_CHUNK_BYTES for chunk in self.chunks[:-1]):
            raise ValueError(f"a chunk before the last has less than {MIN_CHUNK_BYTES} bytes")
        sizes: dict[str, int] = {}
        if any(sizes.setdefault(chunk.sha256, chunk.size) != chunk.size for chunk in self.chunks):
            raise ValueError("one digest with two sizes")
        return self

    def to_json(self) -> bytes:
        """As it travels; of equal lists the same bytes."""
        return self.model_dump_json().encode()

    def places(self) -> Iterator[tuple[ChunkName, int]]:
        """Each chunk with where it begins in the blob."""
        ends = accumulate(chunk.size for chunk in self.chunks)
        return ((chunk, end - chunk.size) for chunk, end in zip(self.chunks, ends, strict=True))


class UploadState(Message):
    """What the cloud still needs of a blob; with nothing missing it is there, whole and durable."""

    missing: Annotated[list[Sha256], Field(max_length=MAX_CHUNKS)]


def cut_bytes(data: bytes) -> ChunkList:
    """The chunks of `data`."""
    whole = hashlib.sha256(data)
    chunks = [_name(chunk.data) for chunk in _cutter().cut_buf(data)]
    return ChunkList(sha256=whole.hexdigest(), size=len(data), chunks=chunks)


def cut_file(path: Path) -> ChunkList:
    """The chunks of a file, read once.

    Raises:
        OSError: It cannot be read.
        ValueError: It has more than `MAX_CHUNKS`.
    """
    whole, size = hashlib.sha256(), 0
    chunks: list[ChunkName] = []
    with path.open("rb") as file:
        for chunk in _cutter().cut_stream(file):
            if len(chunks) == MAX_CHUNKS:
                raise ValueError(f"{path.name} has more than {MAX_CHUNKS} chunks")
            whole.update(chunk.data)
            chunks.append(_name(chunk.data))
            size += chunk.length
    return ChunkList(sha256=whole.hexdigest(), size=size, chunks=chunks)


def _cutter() -> FastCDC:
    # One for each blob: it must not be used by two threads.
    return FastCDC(AVERAGE_CHUNK_BYTES, min_size=MIN_CHUNK_BYTES, max_size=MAX_CHUNK_BYTES)


def _name(data: memoryview) -> ChunkName:
    return ChunkName.model_construct(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
