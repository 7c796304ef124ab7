"""Conditions on the fields of a row; a field that is missing matches none of them but `exists: false`."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from primespark.errors import InvalidInputError

MAX_CHOICES = 1000
# Up to which all integers are numbers of 64 bits with a point, too.
LARGEST_EXACT = 2**53
Compare = Callable[[Any, Any], Any]
_ORDER: dict[str, Compare] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_COMPARE: dict[str, Compare] = {"==": operator.eq, "!=": operator.ne, **_ORDER}
OPERATORS = (*_COMPARE, "in", "exists")


@dataclass(frozen=True, slots=True)
class Condition:
    """A function of rows.

    Attributes:
        field: The only one it looks at.
        matches: What it says of a value there.
        of_missing: What it says of a row without one.
        of_numbers: How it compares numbers, and with which, where there is no more to it than that.
    """

    field: str
    matches: Callable[[Any], bool]
    of_missing: bool = False
    of_numbers: tuple[Compare, float] | None = None

    def __call__(self, row: Mapping[str, Any]) -> bool:
        """Whether the row meets it."""
        return self.matches(row[self.field]) if self.field in row else self.of_missing


def condition(field: str, op: str, value: Any) -> Condition:
    """A condition of its parts.

    Numbers are compared as numbers and texts as texts, by code point; a bool is neither.

    Raises:
        InvalidInputError: Code `bad_filter`: no such operator, or a value that does not go with it.
    """
    if op == "exists":
        if not isinstance(value, bool):
            raise _bad("exists is true or false", "give one of them")
        return Condition(field, lambda _given: value, of_missing=not value)
    if op == "in":
        return Condition(field, _is_in(value))
    if op not in OPERATORS:
        raise _bad(f"no operator {op[:20]!r}", f"one of {', '.join(OPERATORS)}")
    matches = _ordered(op, value) if op in _ORDER else _equal(op, value)
    number = _exact(value)
    return Condition(field, matches, of_numbers=None if number is None else (_COMPARE[op], number))


def _is_in(value: Any) -> Callable[[Any], bool]:
    kinds = {_kind(choice) for choice in value} if isinstance(value, list) and len(value) <= MAX_CHOICES else {None}
    if None in kinds:
        raise _bad(f"in takes at most {MAX_CHOICES} texts, finite numbers, bools or nulls", "give a list of them")
    return lambda given: _kind(given) in kinds


def _equal(op: str, value: Any) -> Callable[[Any], bool]:
    wanted = _kind(value)
    if wanted is None:
        raise _bad(f"{op} compares with a text, a finite number, a bool or null", "give one")
    is_equal = op == "=="
    return lambda given: (_kind(given) == wanted) is is_equal


def _ordered(op: str, value: Any) -> Callable[[Any], bool]:
    compare, wanted = _ORDER[op], _kind(value)
    if wanted is None or wanted[0] not in ("number", "text"):
        raise _bad(f"{op} compares with a finite number or a text", "give one")

    def matches(value: Any) -> bool:
        given = _kind(value)
        return given is not None and given[0] == wanted[0] and bool(compare(given[1], wanted[1]))

    return matches


def _exact(value: Any) -> float | None:
    """The number as one of 64 bits with a point, if it is the same there."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if isinstance(value, float) or abs(value) <= LARGEST_EXACT else None


def _kind(value: Any) -> tuple[str, Any] | None:
    """A scalar of JSON with its type, so that 1 equals 1.0 and neither true nor "1"; None: it is none."""
    if value is None:
        return "null", None
    if isinstance(value, bool):
        return "bool", value
    if isinstance(value, str):
        return "text", value
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return "number", value
    return None


def _bad(message: str, remedy: str) -> InvalidInputError:
    return InvalidInputError(message, remedy=remedy, code="bad_filter")
