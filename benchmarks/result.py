"""The form of one benchmark figure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """One figure.

    Attributes:
        area: Part of the project it belongs to.
        name: What was measured.
        value: The figure.
        unit: Unit of value and reference.
        against: What it is compared with.
        reference: The same figure of that, taken in the same run.
        ratio: value / reference.
        goal: The promise, such as `>= 0.6` or `< 1.02`, on the ratio.
        ok: Whether the promise holds.
    """

    area: str
    name: str
    value: float
    unit: str
    against: str
    reference: float
    ratio: float
    goal: str
    ok: bool

    def to_json(self) -> str:
        """One JSON object on one line."""
        return json.dumps(asdict(self))
