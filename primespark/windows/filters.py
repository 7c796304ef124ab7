"""Conditions on the fields of a row; a field that is missing matches none of them but `exists: false`."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from primespark.errors import InvalidInputError

MAX_CHOICES = 1000
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
OPERATORS = ("==", "!=", *_ORDER, "in", "exists")
Condition = Callable[[Mapping[str, Any]], bool]


def condition(field: str, op: str, value: Any) -> Condition:
    """A condition as a function of rows.

    Numbers are compared as numbers and texts as texts, by code point; a bool is neither.

    Raises:
        InvalidInputError: Code `bad_filter`: no such operator, or a value that does not go with it.
    """
    if op == "exists":
        return _exists(field, value)
    if op == "in":
        return _is_in(field, value)
    if op in _ORDER:
        return _ordered(field, op, value)
    if op not in OPERATORS:
        raise _bad(f"no operator {op[:20]!r}", f"one of {', '.join(OPERATORS)}")
    wanted = _kind(value)
    if wanted is None:
        raise _bad(f"{op} compares with a text, a finite number, a bool or null", "give one")
    is_equal = op == "=="
    return lambda row: field in row and ((_kind(row[field]) == wanted) is is_equal)


def _exists(field: str, value: Any) -> Condition:
    if not isinstance(value, bool):
        raise _bad("exists is true or false", "give one of them")
    return lambda row: (field in row) is value


def _is_in(field: str, value: Any) -> Condition:
    kinds = {_kind(choice) for choice in value} if isinstance(value, list) and len(value) <= MAX_CHOICES else {None}
    if None in kinds:
        raise _bad(f"in takes at most {MAX_CHOICES} texts, finite numbers, bools or nulls", "give a list of them")
    return lambda row: field in row and _kind(row[field]) in kinds


def _ordered(field: str, op: str, value: Any) -> Condition:
    compare, wanted = _ORDER[op], _kind(value)
    if wanted is None or wanted[0] not in ("number", "text"):
        raise _bad(f"{op} compares with a finite number or a text", "give one")

    def matches(row: Mapping[str, Any]) -> bool:
        given = _kind(row.get(field))
        return given is not None and given[0] == wanted[0] and compare(given[1], wanted[1])

    return matches


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
