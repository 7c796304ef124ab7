"""The bundled models, loaded when they are first asked for; the one not asked for the longest is let go."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator

from primespark.core.logging import get_logger
from primespark.core.settings import InferenceSettings
from primespark.inference import catalog
from primespark.inference.batching_engine import Batching
from primespark.inference.models import ServedModel, load_bundled

log = get_logger(__name__)


def batching_of(settings: InferenceSettings) -> Batching:
    """The batches the settings want."""
    return Batching(settings.batching.size, settings.batching.wait_ms / 1000)


class BundledModels:
    """Models of `catalog.BUNDLED`, at most `loaded_bundled_models` of them in memory.

    Args:
        settings: Threads, scores, and how many.
        elsewhere: Those that are loaded by somebody else.
    """

    def __init__(self, settings: InferenceSettings, elsewhere: frozenset[str] = frozenset()) -> None:
        self._settings = settings
        self._elsewhere = elsewhere
        self._loaded: OrderedDict[str, ServedModel] = OrderedDict()
        self._loading: dict[str, asyncio.Task[ServedModel]] = {}

    def find(self, name: str | None, model_type: str | None) -> str | None:
        """Name of the bundled model of this name or else of this type."""
        for model in catalog.BUNDLED:
            is_wanted = model.name == name or (name is None and model.model_type == model_type)
            if is_wanted and model.name not in self._elsewhere:
                return model.name
        return None

    def loaded(self) -> Iterator[ServedModel]:
        """Those in memory."""
        yield from self._loaded.values()

    async def get(self, name: str) -> ServedModel:
        """The model of this name; callers who come while it is loaded share the one load.

        Raises:
            IntegrityError: The file is not the pinned one.
        """
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return self._loaded[name]
        task = self._loading.get(name)
        if task is None:
            task = asyncio.create_task(self._load(name))
            self._loading[name] = task
        # A caller who goes away must not end the load of the others.
        return await asyncio.shield(task)

    async def _load(self, name: str) -> ServedModel:
        settings = self._settings
        try:
            model = await asyncio.to_thread(
                load_bundled, name, settings.threads, settings.minimum_score, batching_of(settings)
            )
            self._loaded[name] = model
            while len(self._loaded) > settings.loaded_bundled_models:
                # Not closed: who has taken it keeps it to the end, then the memory is free.
                gone, _ = self._loaded.popitem(last=False)
                log.info("model_unloaded", model=gone)
        finally:
            del self._loading[name]
        log.info("model_loaded", model=name)
        return model
