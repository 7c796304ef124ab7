"""Documents: JSON trees with a version vector and a hybrid logical timestamp per leaf.

Merge is per leaf, the later timestamp stands, arrays are atomic. It is commutative, associative and idempotent: a
document is a map from JSON pointer (RFC 6901) to a stamped leaf, merge is the greatest stamp of each, and a stamp
ends every leaf above or below it that has an older one (`{"a": 1}` against `{"a": {"b": 2}}`). No two writes have one
stamp, but a writer may be wrong about that: then the leaf that is greater as JSON text stands, and the deeper one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from primespark.core.values import storable_json
from primespark.errors import InvalidInputError

MAX_DEPTH = 32
MAX_LEAVES = 10_000
MAX_BYTES = 1024 * 1024
MAX_POINTER = 512

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

# How a leaf that was removed is kept, so that an older write of another replica does not bring it back.
_REMOVED: Any = object()


class Order(StrEnum):
    """How two version vectors stand to each other."""

    EQUAL = "equal"
    BEFORE = "before"
    AFTER = "after"
    CONCURRENT = "concurrent"


def compare(left: Mapping[str, int], right: Mapping[str, int]) -> Order:
    """The causal order of two version vectors; an absent replica counts as 0."""
    replicas = left.keys() | right.keys()
    less = any(left.get(replica, 0) < right.get(replica, 0) for replica in replicas)
    more = any(left.get(replica, 0) > right.get(replica, 0) for replica in replicas)
    if less and more:
        return Order.CONCURRENT
    if less:
        return Order.BEFORE
    return Order.AFTER if more else Order.EQUAL


def join(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    """The least version vector that is not before either."""
    return {replica: max(left.get(replica, 0), right.get(replica, 0)) for replica in left.keys() | right.keys()}


@dataclass(frozen=True, slots=True)
class Document:
    """One document at one replica.

    Attributes:
        value: A JSON object.
        vv: Version vector, counter by replica.
        leaf_hlc: Timestamp by JSON pointer; a pointer without a leaf in `value` is one that was removed.
        written_hlc: Timestamp of the last write; empty where it is that of the latest leaf. Leaves alone do not always
            tell: of two versions the later may have lost, or have had the same leaves.
    """

    value: dict[str, Any] = field(default_factory=dict)
    vv: dict[str, int] = field(default_factory=dict)
    leaf_hlc: dict[str, str] = field(default_factory=dict)
    written_hlc: str = ""

    @property
    def hlc(self) -> str:
        """The timestamp of the last write; empty for a document nobody wrote."""
        return self.written_hlc or max(self.leaf_hlc.values(), default="")


def check_value(value: dict[str, Any]) -> None:
    """Refuse a value that some replica could not store, merge or send on.

    Raises:
        InvalidInputError: Codes `document_too_deep` (arrays count), `document_too_large`, `bad_document` (a name that
            is too long or has control characters), `unstorable_value`.
    """
    _check_depth(value)
    size = len(storable_json(value).encode())
    if size > MAX_BYTES:
        raise InvalidInputError(
            f"document of {size} bytes, limit {MAX_BYTES}",
            remedy="send large things as blobs",
            code="document_too_large",
        )
    leaves = flatten(value)
    if len(leaves) > MAX_LEAVES:
        raise InvalidInputError(f"document of more than {MAX_LEAVES} leaves", code="document_too_large")
    if not all(map(_may_travel, leaves)):
        raise InvalidInputError(
            f"names that make a path of over {MAX_POINTER} characters, or control characters in a name",
            remedy="use shorter names",
            code="bad_document",
        )


def flatten(value: Any, pointer: str = "", depth: int = 0) -> dict[str, Any]:
    """Leaves by JSON pointer: scalars, arrays and empty objects below the root.

    Raises:
        InvalidInputError: Deeper than `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        raise InvalidInputError(f"document deeper than {MAX_DEPTH} levels", code="document_too_deep")
    if not isinstance(value, dict) or (not value and pointer):
        return {pointer: value}
    leaves: dict[str, Any] = {}
    for key, child in value.items():
        leaves.update(flatten(child, f"{pointer}/{_escape(key)}", depth + 1))
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The object that has these leaves, none of which lies below another."""
    root: dict[str, Any] = {}
    for pointer in sorted(leaves):
        target = root
        *parents, last = [_unescape(part) for part in pointer.split("/")[1:]]
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = leaves[pointer]
    return root


def write(document: Document, value: dict[str, Any], *, replica: str, counter: int, hlc: str) -> Document:
    """`document` with the whole value `value`, written by `replica` as its write number `counter` at time `hlc`.

    Leaves that do not change keep their timestamp, so an unrelated concurrent write stands. Removed ones whose pointer
    may not travel (an older version of the program took some) are forgotten: they would hold the document back.

    Raises:
        InvalidInputError: As `check_value`.
    """
    check_value(value)
    before, after = flatten(document.value), flatten(value)
    stamps = {pointer: stamp for pointer, stamp in document.leaf_hlc.items() if _may_travel(pointer)}
    for pointer in filter(_may_travel, before.keys() | after.keys()):
        if before.get(pointer, _REMOVED) != after.get(pointer, _REMOVED) or pointer not in stamps:
            stamps[pointer] = hlc
    return Document(value, join(document.vv, {replica: counter}), stamps, written_hlc=hlc)


def merge(left: Document, right: Document) -> Document:
    """Both documents in one: of each leaf the later write."""
    left_leaves, right_leaves = flatten(left.value), flatten(right.value)
    leaves: dict[str, Any] = {}
    stamps: dict[str, str] = {}
    for pointer in left.leaf_hlc.keys() | right.leaf_hlc.keys():
        left_stamp, right_stamp = left.leaf_hlc.get(pointer, ""), right.leaf_hlc.get(pointer, "")
        is_left = left_stamp > right_stamp
        if left_stamp == right_stamp:
            is_left = _rank(left_leaves, pointer) >= _rank(right_leaves, pointer)
        source = left_leaves if is_left else right_leaves
        stamps[pointer] = max(left_stamp, right_stamp)
        if pointer in source:
            leaves[pointer] = source[pointer]
    for pointer in _outdated(stamps, leaves):
        leaves.pop(pointer, None)
    return Document(unflatten(leaves), join(left.vv, right.vv), stamps, max(left.hlc, right.hlc))


def changed_pointers(before: Document, after: Document) -> set[str]:
    """Pointers whose leaf differs, appeared or went."""
    old, new = flatten(before.value), flatten(after.value)
    return {p for p in old.keys() | new.keys() if old.get(p, _REMOVED) != new.get(p, _REMOVED)}


def merge_patch(target: Any, patch: Any) -> Any:
    """`target` after the JSON merge patch `patch` (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def _rank(leaves: Mapping[str, Any], pointer: str) -> str:
    """The order of leaves of one stamp; one that was removed is the least."""
    return json.dumps(leaves[pointer], sort_keys=True) if pointer in leaves else ""


def _outdated(stamps: Mapping[str, str], leaves: Mapping[str, Any]) -> set[str]:
    """Pointers with a later stamp on their path to the root or below them, or with an equal one of a leaf below them.

    The deeper leaf stands: what ends it ends those above it too, so it does not matter which merge came first.
    """
    outdated = set()
    for pointer, stamp in stamps.items():
        ancestor = pointer
        while ancestor:
            ancestor = ancestor.rpartition("/")[0]
            other = stamps.get(ancestor)
            if other is None:
                continue
            if other > stamp:
                outdated.add(pointer)
            elif other < stamp or pointer in leaves:
                outdated.add(ancestor)
    return outdated


def _may_travel(pointer: str) -> bool:
    return len(pointer) <= MAX_POINTER and not _CONTROL.search(pointer)


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise InvalidInputError(
                f"document deeper than {MAX_DEPTH} levels", remedy="nest less", code="document_too_deep"
            )
        level = [child for parent in level for child in _children(parent)]
        depth += 1


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _unescape(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")
