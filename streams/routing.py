"""Messages of the repartition topic: records of one rule from one partition of its source, as columns in zstd JSON.

Each chunk of a source gives every partition of the topic a message, also that which has no group in it: how far event
time has come in the source is news to all. Messages of one partition are ordered, and none leaves out a record between
two others, so the last place that was seen says which were (`primespark.windows.repartition`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator
from pydantic_core import to_json

from primespark.core.encoding import compress, decompress
from primespark.errors import MalformedError
from primespark.windows.reading import Group
from primespark.windows.records import EARLIEST_MS, LATEST_MS, group_of
from primespark.windows.repartition import Routed

ROUTED = "application/vnd.primespark.routed+json+zstd"
# A message of more is divided; one record has far less.
MAX_ROUTED_BYTES = 700_000
MAX_ROUTED_ROWS = 20_000
_MAX_DECODED_BYTES = 16 * 1024 * 1024
_MAX_ORIGINS = 100_000
_LEVEL = 1

_Event = Annotated[int, Field(ge=EARLIEST_MS, le=LATEST_MS)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    rule_id: str
    fingerprint: str
    topic: str
    origin: Annotated[int, Field(ge=0)]
    origins: Annotated[int, Field(ge=1, le=_MAX_ORIGINS)]
    newest_ms: _Event
    names: Annotated[list[list[str]], Field(max_length=MAX_ROUTED_ROWS)]
    places: Annotated[list[_Count], Field(max_length=MAX_ROUTED_ROWS)]
    events: list[_Event]
    codes: list[_Count]
    values: list[FiniteFloat]

    @model_validator(mode="after")
    def _fits(self) -> _Message:
        lengths = {len(column) for column in (self.places, self.events, self.codes, self.values)}
        if len(lengths) != 1 or self.origin >= self.origins or max(self.codes, default=-1) >= len(self.names):
            raise ValueError("columns that do not fit")
        if any(one >= following for one, following in zip(self.places, self.places[1:], strict=False)):
            raise ValueError("places that do not ascend")
        if not all(map(_is_group, self.names)):
            raise ValueError("names of no group")
        return self


def partition_of(group: Group, partitions: int) -> int:
    """The partition of the repartition topic that has a group; texts of groups have no null character."""
    return zlib.crc32("\0".join(group).encode()) % partitions


def to_routed_messages(routed: Routed, origins: int, partitions: int) -> Iterator[tuple[int, bytes]]:
    """Partition and value of each message, in the order in which those of one partition must lie.

    Args:
        routed: What to send.
        origins: How many partitions the source has.
        partitions: How many the repartition topic has.
    """
    of_code = [partition_of(group, partitions) for group in routed.names]
    rows: list[list[int]] = [[] for _ in range(partitions)]
    for row, code in enumerate(routed.codes):
        rows[of_code[code]].append(row)
    for partition, own in enumerate(rows):
        for value in _encode(routed.of(own), origins):
            yield partition, value


def from_routed_message(value: bytes) -> tuple[Routed, int]:
    """What a message says, and how many partitions the source has.

    Raises:
        InvalidInputError: Not such a message, or too large.
    """
    try:
        read = _Message.model_validate_json(decompress(value, _MAX_DECODED_BYTES))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:80]
        raise MalformedError(f"not records of a rule: {place} {first['msg']}"[:200]) from None
    routed = Routed(
        read.rule_id, read.fingerprint, read.topic, read.origin, read.newest_ms,
        [tuple(names) for names in read.names], read.places, read.events, read.codes, read.values,
    )  # fmt: skip
    return routed, read.origins


def _is_group(names: list[str]) -> bool:
    """Whether a record could have it: what is no key of a database would stop the worker for ever."""
    row = {str(number): name for number, name in enumerate(names)}
    return group_of(row, list(row)) is not None


def _encode(routed: Routed, origins: int) -> Iterator[bytes]:
    count = len(routed.places)
    if count <= MAX_ROUTED_ROWS:
        value = compress(to_json({**_columns(routed), "origins": origins}), _LEVEL)
        if len(value) <= MAX_ROUTED_BYTES or count <= 1:
            yield value
            return
    first = routed.of(list(range(count // 2)))
    # What comes behind may be older than the newest.
    yield from _encode(replace(first, newest_ms=max(first.events)), origins)
    yield from _encode(routed.of(list(range(count // 2, count))), origins)


def _columns(routed: Routed) -> dict[str, object]:
    return {name: getattr(routed, name) for name in Routed.__slots__}
