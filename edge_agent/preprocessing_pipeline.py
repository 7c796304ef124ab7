"""Preprocessing off the event loop: any kind of data in, a model's input out, with figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Literal, TypeVar, overload

from prometheus_client import Counter

from edge_agent.preprocessors import (
    AudioData,
    AudioPreprocessor,
    ImageData,
    ImagePreprocessor,
    PreprocessingConfig,
    ProcessedAudio,
    ProcessedImage,
    ProcessedImages,
    SensorData,
    SensorPreprocessor,
)
from primespark.errors import OverloadedError
from primespark.inference.sensors import SensorWindows

MAX_WAITING = 64
_WORKERS = 2
_DEFAULTS = PreprocessingConfig()

ITEMS = Counter("primespark_preprocess_items_total", "Images, sounds and series.", ["data_type", "outcome"])

Answer = TypeVar("Answer")


class DataType(StrEnum):
    """What is to be preprocessed."""

    IMAGE = "image"
    AUDIO = "audio"
    SENSOR = "sensor"


@dataclass(slots=True)
class TypeStatistics:
    """Figures of one data type since the start; a batch of images counts each."""

    items: int = 0
    failed: int = 0
    seconds: float = 0.0

    def describe(self) -> dict[str, Any]:
        """With the mean over all that was processed, None before the first."""
        return {**asdict(self), "mean_ms": 1e3 * self.seconds / self.items if self.items else None}


class EdgePreprocessingPipeline:
    """Preprocessing of all data types by two workers; used on one event loop.

    Args:
        images: What is made of images.
        audio: What is made of sounds.
    """

    def __init__(self, images: ImagePreprocessor | None = None, audio: AudioPreprocessor | None = None) -> None:
        self._images, self._audio = images or ImagePreprocessor(), audio or AudioPreprocessor()
        self._sensors = SensorPreprocessor()
        self._executor = ThreadPoolExecutor(_WORKERS, thread_name_prefix="preprocessing")
        self._waiting = 0
        self._statistics = {data_type: TypeStatistics() for data_type in DataType}

    @overload
    async def preprocess(
        self, data: ImageData, data_type: Literal[DataType.IMAGE], config: PreprocessingConfig = ...
    ) -> ProcessedImage: ...
    @overload
    async def preprocess(
        self, data: AudioData, data_type: Literal[DataType.AUDIO], config: PreprocessingConfig = ...
    ) -> ProcessedAudio: ...
    @overload
    async def preprocess(
        self, data: SensorData, data_type: Literal[DataType.SENSOR], config: PreprocessingConfig = ...
    ) -> SensorWindows: ...
    async def preprocess(self, data: Any, data_type: DataType, config: PreprocessingConfig = _DEFAULTS) -> Any:
        """One image, sound or series, as the preprocessor of its type takes it.

        Raises:
            InvalidInputError: The data; its code names the fault.
            OverloadedError: Code `preprocessing_busy`: 64 wait.
        """
        work: dict[DataType, Callable[[Any, PreprocessingConfig], Any]] = {
            DataType.IMAGE: self._images.process,
            DataType.AUDIO: self._audio.process,
            DataType.SENSOR: self._sensors.process,
        }
        return await self._run(data_type, 1, partial(work[data_type], data, config))

    async def preprocess_batch(
        self, data: Sequence[ImageData], config: PreprocessingConfig = _DEFAULTS
    ) -> ProcessedImages:
        """Up to 32 images into one tensor, whose memory is used again once nobody holds it; two may be held.

        Raises:
            InvalidInputError: One of the images, or their number.
            OverloadedError: Code `batches_held`, or `preprocessing_busy`.
        """
        return await self._run(DataType.IMAGE, len(data), partial(self._images.process_batch, data, config))

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Items, failures, seconds and mean milliseconds an item, by data type."""
        return {data_type.value: counted.describe() for data_type, counted in self._statistics.items()}

    def close(self) -> None:
        """Let what runs finish; start nothing more."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def _run(self, data_type: DataType, items: int, work: Callable[[], Answer]) -> Answer:
        if self._waiting >= MAX_WAITING:
            raise OverloadedError("too much waits", remedy="ask again later", code="preprocessing_busy")
        counted, outcome = self._statistics[data_type], "failed"
        self._waiting += 1
        try:
            answers, seconds = await asyncio.get_running_loop().run_in_executor(self._executor, _timed, work)
            counted.items += items
            counted.seconds += seconds
            outcome = "ok"
            return answers.pop()
        finally:
            self._waiting -= 1
            counted.failed += items if outcome == "failed" else 0
            ITEMS.labels(data_type.value, outcome).inc(items)


def _timed(work: Callable[[], Answer]) -> tuple[list[Answer], float]:
    # In a list, for the caller to take out: the executor's thread lets go of what it returned a moment after the caller
    # has it, and a batch that the caller has dropped already would still be held.
    started = time.perf_counter()
    return [work()], time.perf_counter() - started
