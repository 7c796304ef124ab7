"""Object detection with a HEF that ends in non-maximum suppression, as those of YOLO models do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from primespark.errors import IntegrityError
from primespark.inference.detection import MAX_DETECTIONS, Candidate
from primespark.inference.hailo_engine import HailoInferenceEngine
from primespark.inference.hailo_nms import parse
from primespark.inference.letterbox import Letterbox
from primespark.inference.predictions import Detection


class HailoDetector:
    """Answers the objects in an image, the surest first, their boxes in pixels of that image.

    The letterbox and its inverse are those of `YoloDetector`, so both answer boxes in the same places.

    Args:
        engine: From an image, uint8 [1, height, width, 3] RGB, to boxes in one of the two layouts of `hailo_nms`.
        labels: Name of each class id.
        minimum_score: Objects below it are not answered; the HEF has a minimum of its own.

    Raises:
        IntegrityError: Code `bad_model`: the model is not of that form.
    """

    def __init__(self, engine: HailoInferenceEngine, labels: tuple[str, ...], minimum_score: float) -> None:
        layouts = list(engine.nms.values())
        if (len(layouts), len(engine.outputs)) != (1, 1) or [len(one.shape) for one in engine.inputs] != [3]:
            names = f"inputs {engine.input_names}, outputs {engine.output_names}"
            raise IntegrityError(f"not a detector with suppression: {names}"[:400], code="bad_model")
        if layouts[0].classes != len(labels):
            raise IntegrityError(f"{len(labels)} labels, {layouts[0].classes} classes", code="bad_model")
        self._engine = engine
        self._labels = labels
        self._minimum_score = minimum_score
        self._layout = layouts[0]
        self._height, self._width = engine.inputs[0].shape[:2]

    def __call__(self, image: NDArray[np.uint8]) -> list[Detection]:
        """The surest first, at most 100."""
        letterbox = Letterbox(image.shape[1], image.shape[0], self._width, self._height)
        (output,) = self._engine.run({self._engine.input_names[0]: letterbox.apply(image)[np.newaxis]})
        found = parse(output, self._layout, self._minimum_score)[:MAX_DETECTIONS]
        return [self._detection(one, letterbox) for one in found]

    def _detection(self, found: Candidate, letterbox: Letterbox) -> Detection:
        y_min, x_min, y_max, x_max = found.box
        places = (x_min * self._width, y_min * self._height, x_max * self._width, y_max * self._height)
        left, top, right, bottom = letterbox.unmap(places).round(2).tolist()
        return {
            "label": self._labels[found.column],
            "class_id": found.column,
            "score": round(found.score, 4),
            "box": {"x_min": left, "y_min": top, "x_max": right, "y_max": bottom},
        }
