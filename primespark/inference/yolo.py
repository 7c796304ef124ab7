"""Networks in YOLOv8's formats, and detection with one: an output [1, 4 + classes, places], suppression is ours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from primespark.errors import IntegrityError
from primespark.inference.detection import MAX_CANDIDATES, MAXIMUM_OVERLAP, Candidate, non_maximum_suppression
from primespark.inference.engine import InferenceEngine, try_model
from primespark.inference.letterbox import Letterbox
from primespark.inference.predictions import Detection

_DEFAULT_SIDE = 640
_BOX_NUMBERS = 4


class YoloNetwork:
    """A network in one of YOLOv8's formats: a letterboxed image in, a column of numbers for each place out.

    Args:
        engine: From float32 [1, 3, height, width], RGB 0..1, to one float32 [1, numbers, places].
        numbers: Of a place.
        form: What it is to be, for the error.

    Raises:
        IntegrityError: Code `bad_model`: the model is not of that form.
    """

    def __init__(self, engine: InferenceEngine, numbers: int, form: str) -> None:
        self._engine = engine
        self._form = form
        if [len(shape) for shape in engine.input_shapes] != [4]:
            raise self._refusal(f"inputs {engine.input_shapes}")
        self._input = engine.input_names[0]
        self._height, self._width = (size or _DEFAULT_SIDE for size in engine.input_shapes[0][2:])
        nothing = np.zeros((1, 3, self._height, self._width), dtype=np.float32)
        outputs = try_model(engine, {self._input: nothing}, form)
        if [output.shape[:2] for output in outputs] != [(1, numbers)]:
            raise self._refusal(
                f"outputs {[output.shape for output in outputs]}, {numbers} numbers a place by the labels"
            )

    def look(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Letterbox]:
        """The output, [numbers, places], and how the image lies in the input."""
        letterbox = Letterbox(image.shape[1], image.shape[0], self._width, self._height)
        (output,) = self._engine.run({self._input: letterbox.apply_nchw(image)[np.newaxis]})
        return output[0], letterbox

    def _refusal(self, found: str) -> IntegrityError:
        return IntegrityError(
            f"not {self._form}: {found}"[:400],
            remedy="export it with one image input and without suppression; it has a label for each class or point",
            code="bad_model",
        )


class YoloDetector:
    """Answers the objects in an image, the surest first, their boxes in pixels of that image.

    Args:
        engine: From float32 [1, 3, height, width], RGB 0..1, letterboxed, to float32 [1, 4 + classes, places]: centre x
            and y, width and height in pixels of the input, then a score per class.
        labels: Name of each class id.
        minimum_score: Objects below it are not answered.

    Raises:
        IntegrityError: Code `bad_model`: the model is not of that form.
    """

    def __init__(self, engine: InferenceEngine, labels: tuple[str, ...], minimum_score: float) -> None:
        self._network = YoloNetwork(engine, _BOX_NUMBERS + len(labels), "a detector in the format of YOLOv8")
        self._labels = labels
        self._minimum_score = minimum_score

    def __call__(self, image: NDArray[np.uint8]) -> list[Detection]:
        """The surest first."""
        output, letterbox = self._network.look(image)
        kept = non_maximum_suppression(yolo_candidates(output, self._minimum_score), MAXIMUM_OVERLAP)
        if not kept:
            return []
        y_min, x_min, y_max, x_max = np.array([one.box for one in kept], dtype=np.float64).T
        boxes = letterbox.unmap(np.stack((x_min, y_min, x_max, y_max), axis=1)).round(2).tolist()
        return [
            {
                "label": self._labels[one.column],
                "class_id": one.column,
                "score": round(one.score, 4),
                "box": {"x_min": box[0], "y_min": box[1], "x_max": box[2], "y_max": box[3]},
            }
            for one, box in zip(kept, boxes, strict=True)
        ]


def yolo_candidates(output: NDArray[np.float32], minimum_score: float) -> list[Candidate]:
    """What reaches the minimum, best first, at most 400: the best class of each place, boxes in pixels of the input.

    Args:
        output: [4 + classes, places].
        minimum_score: Of the best class.
    """
    scores = output[_BOX_NUMBERS:]
    best = scores.max(axis=0)
    places = np.flatnonzero(best >= np.float32(minimum_score))
    if places.size > MAX_CANDIDATES:
        places = places[np.argpartition(-best[places], MAX_CANDIDATES)[:MAX_CANDIDATES]]
    columns = scores[:, places].argmax(axis=0).tolist()
    x, y, width, height = output[:_BOX_NUMBERS, places].astype(np.float64)
    boxes = np.stack((y - height / 2, x - width / 2, y + height / 2, x + width / 2), axis=1).tolist()
    rows = zip(best[places].tolist(), columns, boxes, places.tolist(), strict=True)
    return sorted((Candidate(score, column, tuple(box), place) for score, column, box, place in rows), reverse=True)
