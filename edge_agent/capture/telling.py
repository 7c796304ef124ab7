"""Faults that repeat, logged once."""

from __future__ import annotations

from primespark.core.logging import get_logger
from primespark.errors import PrimeSparkError

# Faults of so many things are told apart; those of more are not logged.
_MAX_TOLD = 1000

log = get_logger(__name__)


class FaultsTold:
    """What was logged already of the faults of some things."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}

    def tell(self, event: str, source: str, error: PrimeSparkError) -> None:
        """Log the fault of a thing until it changes, not each time it comes round."""
        if self._told.get(source) != error.code and (source in self._told or len(self._told) < _MAX_TOLD):
            self._told[source] = error.code
            log.warning(event, source=source, code=error.code, cause=error.message)

    def forget(self, source: str) -> None:
        """The thing has no fault any more."""
        self._told.pop(source, None)
