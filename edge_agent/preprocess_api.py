"""`/api/v1/preprocess`: what a model would be given, for people and programs beside the device."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from numpy.typing import NDArray
from pydantic import Field
from starlette.responses import Response

from edge_agent.api import Operator
from edge_agent.preprocessing_pipeline import DataType, EdgePreprocessingPipeline
from edge_agent.preprocessors import PreprocessingConfig, ProcessedAudio, ProcessedImage
from primespark.core.web import read_body, read_model
from primespark.core.web.bodies import BodyBudget
from primespark.errors import UnsupportedMediaError
from primespark.inference import audio, images
from primespark.inference.sensors import SensorWindows
from primespark.sync.records import Message

router = APIRouter(prefix="/api/v1")
MAX_READINGS = 100_000

_Reading = Annotated[float, Field(allow_inf_nan=False)]


class SensorSeries(Message):
    """Readings of a sensor; null where it had none."""

    times_s: Annotated[list[_Reading], Field(max_length=MAX_READINGS, fail_fast=True)]
    values: Annotated[list[_Reading | None], Field(max_length=MAX_READINGS, fail_fast=True)]


def _pipeline_of(request: Request) -> EdgePreprocessingPipeline:
    pipeline: EdgePreprocessingPipeline = request.app.state.preprocessing
    return pipeline


@router.post("/preprocess")
async def preprocess(
    request: Request,
    _: Operator,
    pipeline: Annotated[EdgePreprocessingPipeline, Depends(_pipeline_of)],
    config: Annotated[PreprocessingConfig, Query()],
) -> Response:
    """An image, a sound or a series of readings as a model takes it; the query says how."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in images.MEDIA_TYPES:
        image = await pipeline.preprocess(await read_body(request), DataType.IMAGE, config)
        return await _answer(request, partial(_image, image), image.tensor)
    if media_type in audio.MEDIA_TYPES:
        sound = await pipeline.preprocess(await read_body(request), DataType.AUDIO, config)
        return await _answer(request, partial(_sound, sound), sound.samples, sound.features)
    if media_type == "application/json":
        series = await read_model(request, SensorSeries)
        values = [np.nan if value is None else value for value in series.values]
        windows = await pipeline.preprocess((series.times_s, values), DataType.SENSOR, config)
        return await _answer(request, partial(_windows, windows))
    known = ", ".join((*images.MEDIA_TYPES, *audio.MEDIA_TYPES))
    raise UnsupportedMediaError(f"Content-Type {media_type[:60]!r}", remedy=f"send {known} or application/json")


async def _answer(request: Request, describe: Callable[[], dict[str, Any]], *tensors: NDArray[Any] | None) -> Response:
    budget: BodyBudget = request.app.state.body_budget
    budget.take_answer(request.scope, sum(tensor.nbytes * 4 // 3 for tensor in tensors if tensor is not None))
    return await asyncio.to_thread(
        lambda: Response(json.dumps(describe(), allow_nan=False), media_type="application/json")
    )


def _image(found: ProcessedImage) -> dict[str, Any]:
    box = found.letterbox
    return {
        "data_type": DataType.IMAGE, "tensor": _tensor(found.tensor),
        "letterbox": {
            "source_width": box.source_width, "source_height": box.source_height,
            "left": box.left, "top": box.top, "width": box.width, "height": box.height,
        },
        "jpeg": None if found.jpeg is None else _base64(found.jpeg),
    }  # fmt: skip


def _sound(found: ProcessedAudio) -> dict[str, Any]:
    return {
        "data_type": DataType.AUDIO, "sample_rate": found.sample_rate_hz, "samples": _tensor(found.samples),
        "features": None if found.features is None else _tensor(found.features),
    }  # fmt: skip


def _windows(found: SensorWindows) -> dict[str, Any]:
    names = ("start_s", "count", "invalid", "mean", "std", "min", "max")
    columns = [_nullable(getattr(found, name)) for name in names]
    return {
        "data_type": DataType.SENSOR,
        "windows": [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)],
    }


def _tensor(array: NDArray[Any]) -> dict[str, Any]:
    little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return {"shape": list(array.shape), "dtype": array.dtype.name, "data": _base64(little_endian)}


def _base64(data: Any) -> str:
    return base64.b64encode(data).decode("ascii")


def _nullable(column: NDArray[Any]) -> list[Any]:
    return [None if math.isnan(value) else value for value in column.tolist()]
