"""Answers already given: the same file and the same model give the same answer."""

from __future__ import annotations

import asyncio
import hashlib

from prometheus_client import Counter

from edge_agent.cache.policies import LruMap
from primespark.inference.models import ServedModel
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

    async def key(self, model: ServedModel, content: bytes | None) -> str | None:
        """What an answer is kept under: the model's digest, which stands for all before and behind it, and the file's.

        None where nothing is kept.
        """
        if content is None or not self._answers.capacity:
            return None
        if len(content) <= _INLINE_BYTES:
            return f"{model.digest}/{_digest(content)}"
        return f"{model.digest}/{await asyncio.to_thread(_digest, content)}"

    def get(self, key: str | None) -> list[Prediction] | None:
        """The answer kept under `key`."""
        if key is None:
            return None
        found = self._answers.get(key)
        LOOKUPS.labels("miss" if found is None else "hit").inc()
        return None if found is None else list(found)

    def put(self, key: str | None, predictions: list[Prediction]) -> None:
        """Keep an answer."""
        if key is not None:
            self._answers.put(key, tuple(predictions), 1)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
