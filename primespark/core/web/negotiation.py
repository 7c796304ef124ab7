"""Choosing the format of an answer (RFC 9110, 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from primespark.errors import NotAcceptableError

_RANGE = re.compile(r"\s*([\w.+*-]+/[\w.+*-]+)\s*(.*)", re.DOTALL)
_WEIGHT = re.compile(r";\s*q=(0(?:\.\d{0,3})?|1)(?![\d.])", re.IGNORECASE)


def negotiate(accepted: str | None, available: Sequence[str]) -> str:
    """The media type that the header `Accept` likes best; of several liked alike the first of `available`.

    Raises:
        NotAcceptableError: It takes none of them.
    """
    weights = {media_type: _weight(accepted if accepted else "*/*", media_type) for media_type in available}
    best = max(available, key=lambda media_type: weights[media_type])
    if not weights[best]:
        raise NotAcceptableError(f"no format of {(accepted or '')[:100]!r}", remedy=f"accept {', '.join(available)}")
    return best


def _weight(accepted: str, media_type: str) -> float:
    """How much a type is liked, from 0 to 1, by the narrowest range that it is in."""
    narrowest, weight = -1, 0.0
    for part in accepted.lower().split(","):
        match = _RANGE.fullmatch(part)
        if match and len(match[1]) > narrowest and fnmatchcase(media_type, match[1]):
            given = _WEIGHT.search(match[2])
            narrowest, weight = len(match[1]), float(given[1]) if given else 1.0
    return weight
