"""The pipeline: one door for images, sounds and readings, and memory for batches."""

from __future__ import annotations

import asyncio
import gc
import io
import math
import sys
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from edge_agent.preprocessing import (
    AudioPreprocessor,
    DataType,
    EdgePreprocessingPipeline,
    ImagePreprocessor,
    PreprocessingConfig,
    get_preprocessing_pipeline,
)
from edge_agent.preprocessing_pipeline import MAX_WAITING
from edge_agent.preprocessors import ImageData, Layout, ProcessedImage
from primespark.errors import InvalidInputError, OverloadedError
from primespark.inference.letterbox import Letterbox, to_nchw
from primespark.inference.log_mel import log_mel
from primespark.inference.noise_gate import reduce_noise
from tests.unit.inference.files import encode, noise
from tests.unit.inference.sounds import encode_audio, tone

SMALL = PreprocessingConfig(resize_dims=(64, 48))
BYTES = PreprocessingConfig(resize_dims=(64, 48), layout=Layout.NHWC_UINT8)
PICTURE = noise(30, 50)
BOX = Letterbox(50, 30, 64, 48)


@pytest.fixture
async def pipeline() -> AsyncIterator[EdgePreprocessingPipeline]:
    pipeline = EdgePreprocessingPipeline()
    yield pipeline
    await asyncio.to_thread(pipeline.close)


async def test_the_example_of_the_specification_works() -> None:
    raw_image = noise(720, 1280)
    pipeline = get_preprocessing_pipeline()

    processed = await pipeline.preprocess(
        data=raw_image,
        data_type=DataType.IMAGE,
        config=PreprocessingConfig(resize_dims=(640, 640)),
    )

    assert processed.tensor.shape == (3, 640, 640)
    np.testing.assert_allclose(processed.letterbox.unmap([0, 140, 640, 500]), [0, 0, 1280, 720])
    assert get_preprocessing_pipeline() is pipeline


@pytest.mark.parametrize("data", [PICTURE, encode(Image.fromarray(PICTURE))], ids=["array", "file"])
async def test_an_image_becomes_a_tensor(pipeline: EdgePreprocessingPipeline, data: ImageData) -> None:
    canvas = BOX.apply(PICTURE)
    planes = await pipeline.preprocess(data, DataType.IMAGE, SMALL)
    np.testing.assert_array_equal(planes.tensor, to_nchw(canvas))
    assert (planes.letterbox, planes.jpeg) == (BOX, None)
    np.testing.assert_array_equal((await pipeline.preprocess(data, DataType.IMAGE, BYTES)).tensor, canvas)


@pytest.mark.parametrize("layout", Layout)
async def test_with_a_quality_there_is_a_file_too(pipeline: EdgePreprocessingPipeline, layout: Layout) -> None:
    files: list[ProcessedImage] = []
    for quality in (30, 90):
        config = PreprocessingConfig(resize_dims=(64, 48), layout=layout, quality=quality)
        files.append(await pipeline.preprocess(PICTURE, DataType.IMAGE, config))
    low, high = (found.jpeg or b"" for found in files)
    assert len(low) < len(high)
    picture = Image.open(io.BytesIO(high))
    assert (picture.format, picture.size) == ("JPEG", (64, 48))
    expected = BOX.apply(PICTURE)
    np.testing.assert_array_equal(files[0].tensor, expected if layout is Layout.NHWC_UINT8 else to_nchw(expected))


async def test_a_file_becomes_samples_and_features(pipeline: EdgePreprocessingPipeline) -> None:
    samples = tone(1.5)
    found = await pipeline.preprocess(encode_audio(samples, 16_000, subtype="FLOAT"), DataType.AUDIO)
    np.testing.assert_array_equal(found.samples, reduce_noise(samples))
    assert found.features is not None
    np.testing.assert_array_equal(found.features, log_mel(reduce_noise(samples)))
    assert (found.sample_rate_hz, found.features.shape) == (16_000, (80, 150))


async def test_samples_may_be_those_of_a_microphone(pipeline: EdgePreprocessingPipeline) -> None:
    plain = PreprocessingConfig(noise_reduction=False, mel_bands=0, sample_rate=8_000)
    levels = np.array([0, 16384, -32768, 32767], dtype=np.int16)
    found = await pipeline.preprocess(levels, DataType.AUDIO, plain)
    np.testing.assert_array_equal(found.samples, levels / np.float32(32768))
    assert found.sample_rate_hz == 8_000
    assert found.samples.dtype == np.float32
    assert found.features is None


async def test_features_are_made_at_one_rate(pipeline: EdgePreprocessingPipeline) -> None:
    config = PreprocessingConfig(sample_rate=48_000, noise_reduction=False)
    found = await pipeline.preprocess(tone(1, 48_000), DataType.AUDIO, config)
    assert len(found.samples) == 48_000
    assert found.features is not None
    np.testing.assert_allclose(found.features[:, 5:95], log_mel(tone(1))[:, 5:95], atol=0.3)
    assert int(found.features.mean(axis=1).argmax()) == int(log_mel(tone(1)).mean(axis=1).argmax())


async def test_readings_become_windows(pipeline: EdgePreprocessingPipeline) -> None:
    found = await pipeline.preprocess(([0, 10, 130], [1.0, 3.0, math.nan]), DataType.SENSOR)
    assert found.start_s.tolist() == [0, 60, 120]
    assert found.count.tolist() == [2, 0, 0]
    assert found.invalid.tolist() == [0, 0, 1]
    assert found.mean[0] == 2


sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))


@settings(deadline=None)
@given(st.lists(st.lists(sizes, min_size=1, max_size=6), min_size=1, max_size=6), st.sampled_from([SMALL, BYTES]))
def test_a_batch_is_its_images(batches: list[list[tuple[int, int]]], config: PreprocessingConfig) -> None:
    # One buffer after the other with images of other shapes, so that a border that stayed wrongly is seen.
    images = ImagePreprocessor()
    for batch in batches:
        data: list[ImageData] = [noise(*size) for size in batch]
        found = images.process_batch(data, config)
        alone = [images.process(one, config) for one in data]
        assert found.letterboxes == tuple(one.letterbox for one in alone)
        np.testing.assert_array_equal(found.tensor, np.stack([one.tensor for one in alone]))


async def test_a_batch_that_is_held_keeps_its_content(pipeline: EdgePreprocessingPipeline) -> None:
    dark: list[ImageData] = [np.zeros((30, 50, 3), np.uint8)] * 3
    bright: list[ImageData] = [np.full((30, 50, 3), 255, np.uint8)] * 3
    first = await pipeline.preprocess_batch(dark, SMALL)
    kept = first.tensor[1]
    del first
    for _ in range(5):
        second = await pipeline.preprocess_batch(bright, SMALL)
        assert second.tensor[1].max() == 1
        with pytest.raises(OverloadedError) as caught:
            await pipeline.preprocess_batch(bright, SMALL)
        assert caught.value.code == "batches_held"
        del second, caught
    assert kept.max() == pytest.approx(114 / 255)


async def test_a_batch_that_is_dropped_is_free_at_once(pipeline: EdgePreprocessingPipeline) -> None:
    held = await pipeline.preprocess_batch([PICTURE], SMALL)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(1000):
            dropped = await pipeline.preprocess_batch([PICTURE], SMALL)
            del dropped
    finally:
        sys.setswitchinterval(before)
    assert len(held.tensor) == 1


async def test_a_damaged_image_costs_no_buffer(pipeline: EdgePreprocessingPipeline) -> None:
    for _ in range(5):
        with pytest.raises(InvalidInputError):
            await pipeline.preprocess_batch([PICTURE, b"damaged"], SMALL)
    gc.collect()
    held = [await pipeline.preprocess_batch([PICTURE], SMALL) for _ in range(2)]
    assert len(held) == 2


async def test_of_too_many_images_none_is_done(pipeline: EdgePreprocessingPipeline) -> None:
    assert (await pipeline.preprocess_batch([PICTURE] * 32, SMALL)).tensor.shape == (32, 3, 48, 64)
    for count in (0, 33):
        with pytest.raises(InvalidInputError) as caught:
            await pipeline.preprocess_batch([PICTURE] * count, SMALL)
        assert caught.value.code == "bad_batch"


async def test_figures_are_kept_by_type(pipeline: EdgePreprocessingPipeline) -> None:
    assert pipeline.statistics()["image"] == {"items": 0, "failed": 0, "seconds": 0.0, "mean_ms": None}
    await pipeline.preprocess(PICTURE, DataType.IMAGE, SMALL)
    await pipeline.preprocess_batch([PICTURE] * 3, SMALL)
    with pytest.raises(InvalidInputError):
        await pipeline.preprocess(b"", DataType.AUDIO)
    figures = pipeline.statistics()
    assert (figures["image"]["items"], figures["image"]["failed"]) == (4, 0)
    assert (figures["audio"]["items"], figures["audio"]["failed"]) == (0, 1)
    assert figures["image"]["mean_ms"] == pytest.approx(figures["image"]["seconds"] * 250)
    assert figures["image"]["seconds"] > 0


class Gate(ImagePreprocessor):
    """Holds every image until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = threading.Event()

    def process(self, data: ImageData, config: PreprocessingConfig) -> ProcessedImage:
        self.opened.wait(30)
        return super().process(data, config)


async def test_too_many_at_once_are_told_so() -> None:
    gate = Gate()
    pipeline = EdgePreprocessingPipeline(gate)
    waiting = [asyncio.create_task(pipeline.preprocess(PICTURE, DataType.IMAGE, SMALL)) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)  # one turn of the loop, in which all are taken
    with pytest.raises(OverloadedError) as caught:
        await pipeline.preprocess(PICTURE, DataType.IMAGE, SMALL)
    assert caught.value.code == "preprocessing_busy"
    gate.opened.set()
    assert len(await asyncio.gather(*waiting)) == MAX_WAITING
    await pipeline.preprocess(PICTURE, DataType.IMAGE, SMALL)
    await asyncio.to_thread(pipeline.close)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 5), np.uint8), np.zeros((4, 5, 4), np.uint8), np.zeros((0, 5, 3), np.uint8), np.zeros((4, 5, 3))],
)
def test_what_is_no_image_is_refused(image: NDArray[np.uint8]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        ImagePreprocessor().process(image, SMALL)
    assert caught.value.code == "bad_image_array"


def test_limits_hold_for_files_and_samples() -> None:
    with pytest.raises(InvalidInputError) as caught:
        ImagePreprocessor(max_pixels=1499).process(encode(Image.fromarray(PICTURE)), SMALL)
    assert caught.value.code == "image_too_large"
    for data in (encode_audio(tone(1), 16_000), tone(1)):
        with pytest.raises(InvalidInputError) as caught:
            AudioPreprocessor(max_seconds=0.9).process(data, PreprocessingConfig())
        assert caught.value.code == "audio_too_long"


@pytest.mark.parametrize(
    "fields",
    [
        {"resize_dims": (0, 5)}, {"resize_dims": (640, 2049)}, {"resize_dims": (640,)}, {"quality": 0},
        {"quality": 96}, {"sample_rate": 7_999}, {"mel_bands": 129}, {"window_s": 0}, {"window_s": math.nan},
        {"window_s": math.inf}, {"layout": "nchw"}, {"size": 3},
    ],
)  # fmt: skip
def test_a_senseless_configuration_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PreprocessingConfig.model_validate(fields)
