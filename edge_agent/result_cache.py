"""Answers already given: the same file and the same model give the same answer."""

from __future__ import annotations

import asyncio
import hashlib

from prometheus_client import Counter

from edge_agent.cache.policies import LruMap
from primespark.inference.predictions import Prediction

# Hashing more takes longer than the event loop should be held up.
_INLINE_BYTES = 256 * 1024

LOOKUPS = Counter("primespark_inference_cache_lookups_total", "Answers looked up.", ["outcome"])
for _outcome in ("hit", "miss"):
    LOOKUPS.labels(_outcome)


class ResultCache:
    """The last answers, the one not asked for the longest is let go; used on one event loop.

    Args:
        entries: How many; 0 keeps none.
    """

    def __init__(self, entries: int) -> None:
        self._answers: LruMap[tuple[Prediction, ...]] = LruMap(entries)

    async def key(self, content: bytes | None) -> str | None:
        """What the answers to a file are kept under; None where nothing is kept."""
        if content is None or not self._answers.capacity:
            return None
        if len(content) <= _INLINE_BYTES:
            return _digest(content)
        return await asyncio.to_thread(_digest, content)

    def get(self, model: str, key: str | None) -> list[Prediction] | None:
        """The answer kept of a model.

        Args:
            model: Its digest, which stands for all before and behind it.
            key: Of the file.
        """
        if key is None:
            return None
        found = self._answers.get(f"{model}/{key}")
        LOOKUPS.labels("miss" if found is None else "hit").inc()
        return None if found is None else list(found)

    def put(self, model: str, key: str | None, predictions: list[Prediction]) -> None:
        """Keep the answer of the model with this digest."""
        if key is not None:
            self._answers.put(f"{model}/{key}", tuple(predictions), 1)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
