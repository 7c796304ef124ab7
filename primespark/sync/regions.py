"""Whose a leaf of a document is: `desired` is the cloud's, `reported` the device's, the rest both may write."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from primespark.sync.documents import Document, flatten, unflatten


class Region(StrEnum):
    """A part of a document with its own owner."""

    DESIRED = "desired"
    REPORTED = "reported"
    SHARED = "shared"


def region_of(pointer: str) -> Region:
    """The region of a JSON pointer; the root's is `desired`: its stamp ends every leaf below it."""
    top = pointer.split("/", 2)[1] if pointer else Region.DESIRED.value
    return Region(top) if top in (Region.DESIRED, Region.REPORTED) else Region.SHARED


def restrict(document: Document, *regions: Region) -> Document:
    """The leaves of these regions, without a version."""
    leaves = {pointer: leaf for pointer, leaf in flatten(document.value).items() if region_of(pointer) in regions}
    stamps = {pointer: stamp for pointer, stamp in document.leaf_hlc.items() if region_of(pointer) in regions}
    return Document(unflatten(leaves), leaf_hlc=stamps)


def assemble(parts: Iterable[Document], vv: dict[str, int], written_hlc: str) -> Document:
    """One document of parts that have no region in common."""
    value: dict[str, Any] = {}
    stamps: dict[str, str] = {}
    for part in parts:
        value |= part.value
        stamps |= part.leaf_hlc
    return Document(value, vv, stamps, written_hlc)
