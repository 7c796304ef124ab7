"""Conditional requests (RFC 9110, section 13) on resources with strong entity tags."""

from __future__ import annotations

import re

from fastapi import Request

from primespark.errors import MalformedError, PreconditionError

_TAG = r'(?:W/)?"[\x21\x23-\x7e]*"'
_TAGS = re.compile(rf"\s*{_TAG}(?:\s*,\s*{_TAG})*\s*")


def check_preconditions(request: Request, etag: str | None) -> None:
    """Refuse a write whose `If-Match` or `If-None-Match` does not hold.

    Args:
        request: Who asks.
        etag: Of what there is, in quotes; None: there is nothing.

    Raises:
        PreconditionError: It does not hold.
        MalformedError: A header is neither `*` nor a list of entity tags.
    """
    match, none_match = request.headers.get("if-match"), request.headers.get("if-none-match")
    if match is not None and not _matches(match, etag, is_strong=True):
        raise PreconditionError("the document has changed since it was read", remedy="read it again")
    if none_match is not None and _matches(none_match, etag, is_strong=False):
        raise PreconditionError("there is such a document", remedy="read it, then write with If-Match")


def is_unchanged(request: Request, etag: str) -> bool:
    """Whether a reader has this already (`If-None-Match`), so that 304 is the answer.

    Raises:
        MalformedError: The header is neither `*` nor a list of entity tags.
    """
    known = request.headers.get("if-none-match")
    return known is not None and _matches(known, etag, is_strong=False)


def _matches(header: str, etag: str | None, *, is_strong: bool) -> bool:
    if header.strip() == "*":
        return etag is not None
    if not _TAGS.fullmatch(header):
        raise MalformedError(
            "If-Match and If-None-Match take `*` or entity tags", remedy='send the `ETag` in quotes: "…"'
        )
    tags = re.findall(_TAG, header)
    return etag in (tags if is_strong else [tag.removeprefix("W/") for tag in tags])
