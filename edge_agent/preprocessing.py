"""The specification's door to preprocessing: one pipeline of this process, and the classes behind it.

pipeline = get_preprocessing_pipeline()
processed = await pipeline.preprocess(data=raw_image, data_type=DataType.IMAGE)
"""

from __future__ import annotations

from functools import cache

from edge_agent.preprocessing_pipeline import DataType, EdgePreprocessingPipeline
from edge_agent.preprocessors import (
    AudioPreprocessor,
    ImagePreprocessor,
    Layout,
    PreprocessingConfig,
    SensorPreprocessor,
)

__all__ = [
    "AudioPreprocessor",
    "DataType",
    "EdgePreprocessingPipeline",
    "ImagePreprocessor",
    "Layout",
    "PreprocessingConfig",
    "SensorPreprocessor",
    "get_preprocessing_pipeline",
]


@cache
def get_preprocessing_pipeline() -> EdgePreprocessingPipeline:
    """The process's pipeline, with the defaults of the settings."""
    return EdgePreprocessingPipeline()
