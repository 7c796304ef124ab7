"""The snapshots of one partition as a chain in a compacted log: who may write it, and which of them counts; pure.

A whole snapshot, then changes, each of which names the one it follows. A snapshot is one or more records (chunks), the
last of which closes it with their number and digest. Before a worker reads, it claims the partition for a term above
all that it found: records of other terms and writers that come after the claim are refused, whatever they say, so a
worker that does not know that its time is over (a zombie) changes nothing. No two records have the same key, so
compaction takes none that is not deleted by name; and only what a closed whole snapshot of the owner stands after is.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

from primespark.core.encoding import compress, decompress
from primespark.errors import IntegrityError, MalformedError, TooLargeError
from streams.state import StateLines

# Of a chunk before it is packed, which adds a few bytes at worst; the topic takes 1 MB.
CHUNK_BYTES = 900_000
_LEVEL = 3
# What an earlier version wrote in one record for a whole snapshot, under `topic|partition`.
_MAX_LEGACY_BYTES = 64_000_000
LEGACY = "1"


@dataclass(frozen=True, slots=True)
class _Name:
    """What a key says; sequence 0 is the claim, chunks count from 1."""

    term: int
    writer: str
    sequence: int
    chunk: int

    @property
    def snapshot(self) -> str:
        return f"{self.term}.{self.writer}.{self.sequence}"


@dataclass(slots=True)
class _Link:
    """A closed snapshot."""

    name: str
    chunks: list[bytes]
    keys: list[bytes]

    @property
    def size(self) -> int:
        return sum(map(len, self.chunks))


@dataclass(slots=True)
class _Open:
    sequence: int = 0
    chunks: list[bytes] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)


class ChainReader:
    """What the log of one partition says so far, record by record in its order.

    Attributes:
        term: Of the last claim that holds; 0 before any.
        refused: Records that were refused.
    """

    def __init__(self, topic: str, partition: int) -> None:
        self.prefix = f"{topic}|{partition}"
        self.term = 0
        self.refused = 0
        self.writer = ""
        self._links: list[_Link] = []
        self._open = _Open()
        self._keys: dict[bytes, None] = {}

    def take(self, key: bytes, value: bytes | None) -> None:
        """Take in the next record; those of other partitions are passed over."""
        fields = key.decode("ascii", "replace").split("|")
        if "|".join(fields[:2]) != self.prefix:
            return
        if value is None:
            self._keys.pop(key, None)
            return
        self._keys[key] = None
        if not (self._take_legacy(key, value) if len(fields) == 2 else self._take(_parse(fields), key, value)):
            self.refused += 1

    def state(self) -> StateLines | None:
        """The state that counts; None without any.

        Raises:
            IntegrityError: A snapshot is damaged although its digest is right.
        """
        state: StateLines | None = None
        for link in self._links:
            lines = _legacy(link) if link.name == LEGACY else StateLines.parse(_unpack(link.chunks))
            if state is None:
                state = lines
            else:
                state.apply(lines)
        return state

    @property
    def last(self) -> str | None:
        """The name of the last snapshot that counts."""
        return self._links[-1].name if self._links else None

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of the whole snapshot, and of the changes after it."""
        sizes = [link.size for link in self._links]
        return sum(sizes[:1]), sum(sizes[1:])

    @property
    def records(self) -> int:
        """Keys in the log beyond those of the whole snapshot."""
        return len(self._keys) - len(self._links[0].keys) if self._links else 0

    def superseded(self, claim: bytes) -> list[bytes]:
        """Keys that nobody needs once the snapshots that count are what they are."""
        needed = {claim, *(key for link in self._links for key in link.keys)}
        return [key for key in self._keys if key not in needed]

    def _take_legacy(self, key: bytes, value: bytes) -> bool:
        if self._links and self._links[0].name != LEGACY:
            return False
        self._links = [_Link(LEGACY, [value], [key])]
        return True

    def _take(self, name: _Name | None, key: bytes, value: bytes) -> bool:
        if name is None:
            return False
        if name.sequence == 0:
            if name.term > self.term:
                self.term, self.writer, self._open = name.term, name.writer, _Open()
            return name.term == self.term and name.writer == self.writer
        if (name.term, name.writer) != (self.term, self.writer):
            return False
        if name.sequence > self._open.sequence:
            self._open = _Open(name.sequence)
        if name.sequence < self._open.sequence or name.chunk <= len(self._open.chunks):
            return True  # a late copy
        head, _, chunk = value.partition(b"\n")
        self._open.chunks.append(chunk)
        self._open.keys.append(key)
        return head == b"{}" or self._close(name, head)

    def _close(self, name: _Name, head: bytes) -> bool:
        one = self._open
        try:
            closing = json.loads(head)
            count, expected, follows = closing["chunks"], closing["digest"], closing["follows"]
        except (ValueError, KeyError, TypeError):
            return False
        if name.chunk != len(one.chunks) or count != len(one.chunks) or expected != digest(one.chunks):
            return False
        names = [link.name for link in self._links]
        if follows is not None and follows not in names:
            return False
        # A writer that could not know whether its last snapshot arrived writes another after the same one.
        kept = 0 if follows is None else names.index(follows) + 1
        self._links = [*self._links[:kept], _Link(name.snapshot, one.chunks, one.keys)]
        return True


def _parse(fields: list[str]) -> _Name | None:
    try:
        _topic, _partition, term, writer, sequence, chunk = fields
        return _Name(int(term), writer, int(sequence), int(chunk))
    except ValueError:
        return None


def pack(lines: bytes) -> list[bytes]:
    """Chunks, each small enough for a record."""
    return [compress(lines[start : start + CHUNK_BYTES], _LEVEL) for start in range(0, len(lines), CHUNK_BYTES)]


def _unpack(chunks: list[bytes]) -> bytes:
    try:
        return b"".join(decompress(chunk, CHUNK_BYTES) for chunk in chunks)
    except (MalformedError, TooLargeError) as error:
        raise IntegrityError(f"a chunk that cannot be unpacked: {error.message}") from None


def digest(chunks: list[bytes]) -> str:
    """By which a closed snapshot is known to be whole."""
    found = hashlib.sha256()
    for chunk in chunks:
        found.update(chunk)
    return found.hexdigest()


def _legacy(link: _Link) -> StateLines:
    """Without windows, which are of another form."""
    return StateLines.encode({**json.loads(decompress(link.chunks[0], _MAX_LEGACY_BYTES)), "rules": {}})
