"""What must hold once a fleet has come to rest, told of any system by the writes that were made to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Value = Mapping[str, Any]


class LawBrokenError(AssertionError):
    """A law does not hold; the message begins with its number."""


@dataclass(frozen=True, slots=True)
class Written:
    """One write of the part of a document that everybody may write.

    Attributes:
        number: Its own; writes are numbered in the order they happened.
        replica: Who wrote.
        seen: Numbers of the writes its writer had seen.
        before: What the writer saw.
        after: What it wrote; empty for a deletion.
        hlc: Its timestamp, where there is one.
    """

    number: int
    replica: str
    seen: frozenset[int]
    before: Value
    after: Value
    hlc: str = ""


def check_convergence(replicas: Sequence[Any]) -> None:
    """I1: at rest all replicas are equal."""
    if any(replica != replicas[0] for replica in replicas[1:]):
        raise LawBrokenError(f"I1: replicas differ: {replicas}")


def check_uncontended(writes: Sequence[Written], stands: Value) -> None:
    """I5, I7, I8: a write that saw all the others stands, whatever the clocks said; a deletion as any other."""
    for write in writes:
        if all(other is write or other.number in write.seen for other in writes) and stands != write.after:
            law = "I8" if write.after else "I7"
            raise LawBrokenError(f"{law}: {write} saw all others, but {dict(stands)} stands")


def maximal(writes: Sequence[Written]) -> list[Written]:
    """Writes that no other write has seen."""
    return [write for write in writes if not any(write.number in other.seen for other in writes)]


def latest_of_each_leaf(writes: Sequence[Written]) -> dict[str, Any]:
    """What stands under `merge`: of each leaf the last write by timestamp that changed it."""
    leaves: dict[str, tuple[str, Any]] = {}
    for write in writes:
        for leaf in write.before.keys() | write.after.keys():
            if write.before.get(leaf) != write.after.get(leaf):
                leaves[leaf] = max(leaves.get(leaf, ("", None)), (write.hlc, write.after.get(leaf)), key=lambda x: x[0])
    return {leaf: value for leaf, (_, value) in leaves.items() if value is not None}
