"""The specification's stream classes over the window engine and the worker, for programs."""

from __future__ import annotations

import asyncio
from functools import cache

from primespark.core.settings import Settings, load_settings
from primespark.errors import ConflictError
from primespark.windows.aggregates import AggregationFunction
from primespark.windows.rules import AggregationRule, WindowConfig, WindowType
from streams.main import prepare, serve
from streams.processor import SlidingWindowManager, StreamProcessor, TumblingWindowManager
from streams.topics import ensure_topics

__all__ = [
    "AggregationEngine", "AggregationFunction", "AggregationRule", "SlidingWindowManager", "StreamProcessor",
    "TumblingWindowManager", "WindowConfig", "WindowType", "get_aggregation_engine",
]  # fmt: skip


class AggregationEngine:
    """A stream worker in this process, of the rules it is given; all workers of a group must be given the same.

    Args:
        settings: Of the cloud; the rules they name are not used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rules: dict[str, AggregationRule] = {}
        self._serving: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    async def initialize(self) -> None:
        """Find the broker, and make the topics that every worker needs.

        Raises:
            PrimeSparkError: As `prepare` and `ensure_topics`.
        """
        prepare(self._settings)
        await ensure_topics(self._settings.cloud.kafka, (), ())

    async def add_rule(self, rule: AggregationRule) -> None:
        """Compute `rule` too, instead of one of its `rule_id`, from the next `start` on.

        Raises:
            ConflictError: The engine runs.
        """
        self._require_stopped()
        self._rules[rule.rule_id] = rule

    async def start(self) -> None:
        """Begin to process; returns when the worker is a member of its group.

        Raises:
            ConflictError: The engine runs.
            PrimeSparkError: As `streams.main.serve`.
        """
        self._require_stopped()
        self._stopping, started = asyncio.Event(), asyncio.Event()
        self._serving = asyncio.create_task(serve(self._settings, list(self._rules.values()), self._stopping, started))
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait({self._serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._serving.done():
            await self.stop()

    async def stop(self) -> None:
        """End; what was taken in is persisted. Raises what the worker broke down with, if it did."""
        self._stopping.set()
        serving, self._serving = self._serving, None
        if serving is not None:
            await serving

    def _require_stopped(self) -> None:
        if self._serving is not None:
            raise ConflictError("the engine runs", remedy="stop it first")


@cache
def get_aggregation_engine() -> AggregationEngine:
    """The process's engine, of the broker and store that config and environment name."""
    return AggregationEngine(load_settings())
