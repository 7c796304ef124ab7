"""Protobuf messages in a file of any size, of which nothing is read but what is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10
_MAX_FIELDS = 50_000


class DamagedMessageError(ValueError):
    """Bytes that are no protobuf message, or more fields than any file in use makes one look at."""


@dataclass(slots=True)
class _Budget:
    """Fields that may still be looked at, all messages of a file together."""

    left: int = _MAX_FIELDS

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise DamagedMessageError(f"more than {_MAX_FIELDS} fields")


@dataclass(frozen=True, slots=True)
class Message:
    """One message, or string, between two places of an open file."""

    descriptor: int
    start: int
    end: int
    budget: _Budget = field(default_factory=_Budget, repr=False, compare=False)

    def fields(self) -> Iterator[tuple[int, int | Message]]:
        """Number and value of each field in order; a value that has bytes of its own is a message, read when asked.

        Raises:
            DamagedMessageError: From the field on that is damaged.
            OSError: The file cannot be read.
        """
        at = self.start
        while at < self.end:
            self.budget.spend()
            tag, at = self._varint(at)
            number, kind = tag >> 3, tag & 7
            if not number:
                raise DamagedMessageError("a field without a number")
            if kind == _VARINT:
                value, at = self._varint(at)
                yield number, value
                continue
            if kind == _LENGTH_DELIMITED:
                length, at = self._varint(at)
            elif kind in _FIXED_BYTES:
                length = _FIXED_BYTES[kind]
            else:
                raise DamagedMessageError(f"a field of kind {kind}")
            if at + length > self.end:
                raise DamagedMessageError("a field beyond the end")
            yield number, Message(self.descriptor, at, at + length, self.budget)
            at += length

    def messages(self, number: int) -> Iterator[Message]:
        """All messages of a number, in order."""
        return (value for found, value in self.fields() if found == number and isinstance(value, Message))

    def first(self, number: int) -> int | Message | None:
        """The first field of a number; fields behind it are not looked at."""
        return next((value for found, value in self.fields() if found == number), None)

    def message(self, *numbers: int) -> Message | None:
        """The message that the numbers lead to, the first of each; None where one of them is absent or a number."""
        here: Message | None = self
        for number in numbers:
            found = here.first(number) if here is not None else None
            here = found if isinstance(found, Message) else None
        return here

    def integer(self, number: int) -> int:
        """A number; 0, which is not written, where it is absent."""
        found = self.first(number)
        return found if isinstance(found, int) else 0

    def text(self, max_bytes: int) -> str:
        """The bytes as UTF-8, at most so many of them."""
        length = min(max_bytes, self.end - self.start)
        return os.pread(self.descriptor, length, self.start).decode("utf-8", "replace")

    def _varint(self, at: int) -> tuple[int, int]:
        value = 0
        for index, byte in enumerate(os.pread(self.descriptor, min(_MAX_VARINT_BYTES, self.end - at), at)):
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value, at + index + 1
        raise DamagedMessageError("a number without an end")


def with_own_budget(message: Message) -> Message:
    """The same message, of which as many fields can be looked at as of a whole file."""
    return replace(message, budget=_Budget())
