"""The Hailo path on the double: what the host spends on a frame beside the chip's own work."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.result import Result
from primespark.inference.hailo_device import HailoDevice
from primespark.inference.hailo_engine import HailoInferenceEngine
from primespark.inference.hailo_nms import parse
from tests.doubles import hailo
from tests.doubles.hailo import Hef, Machine, Nms, Stream

LIMIT_MS = 2.0
ROUNDS = 11
FRAMES_PER_ROUND = 100
_SIDE = 640
_INPUT = "yolov8n/input_layer1"
# The shape of the vendor's YOLOv8n: 80 classes of at most 100 boxes.
_YOLO_SHAPED = Hef(
    "yolov8n",
    (Stream(_INPUT, (_SIDE, _SIDE, 3), "image"),),
    (Stream("yolov8n/yolov8_nms_postprocess", (), nms=Nms(80, 100, "scores", "boxes")),),
    function="nothing_seen",
)


def run() -> Iterator[Result]:
    """CPU time of all threads for a frame, the double's computation taken off, with the queue kept full."""
    with tempfile.TemporaryDirectory() as folder, hailo.fitted(Path(folder)) as machine:
        (machine.root / "model.hef").write_bytes(_YOLO_SHAPED.to_bytes())
        device = HailoDevice(machine.root)
        engine = HailoInferenceEngine(machine.root / "model.hef", device)
        _round(engine, machine)
        value = median(_round(engine, machine) for _ in range(ROUNDS))
        device.close()
    ratio = value / LIMIT_MS
    yield Result(
        area="hailo", name="host's CPU time of a 640 x 640 frame, on the double", value=value, unit="ms",
        against="the promised limit", reference=LIMIT_MS, ratio=ratio, goal="<= 1", ok=ratio <= 1,
    )  # fmt: skip


def _round(engine: HailoInferenceEngine, machine: Machine) -> float:
    """Milliseconds a frame."""
    image = np.zeros((1, _SIDE, _SIDE, 3), np.uint8)
    name, layout = next(iter(engine.nms.items()))
    place = engine.output_names.index(name)

    def detect(_: int) -> int:
        return len(parse(engine.run({_INPUT: image})[place], layout))

    with ThreadPoolExecutor(engine.concurrency) as pool:
        started, computed = time.process_time(), machine.compute_s
        assert not sum(pool.map(detect, range(FRAMES_PER_ROUND)))
        spent = time.process_time() - started - (machine.compute_s - computed)
    return spent / FRAMES_PER_ROUND * 1e3
