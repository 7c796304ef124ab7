"""The double keeps what docs/hailo.md claims of it, in each release."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primespark.errors import InvalidInputError
from primespark.inference import catalog
from primespark.inference.detection import SsdDetector
from primespark.inference.hailo_device import HailoDevice
from primespark.inference.hailo_engine import HailoInferenceEngine
from primespark.inference.hailo_errors import status_of, translated
from primespark.inference.hailo_nms import from_class_lists, parse
from primespark.inference.images import decode_image
from primespark.inference.onnx_engine import OnnxEngine
from primespark.inference.samples import sample_images
from tests.doubles import hailo
from tests.doubles.hailo import Hef, Machine, Nms, Stream
from tests.doubles.hailo_platform._claims import CLAIMS, FIRST

PAGE = Path(__file__).parents[3] / "docs" / "hailo.md"
BOXES = 8
CLASSES = 3


@pytest.fixture(params=hailo.VERSIONS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    with hailo.fitted(tmp_path, request.param) as fitted:
        yield fitted


def vendor() -> Any:
    return importlib.import_module("hailo_platform")


def inner() -> Any:
    return importlib.import_module("hailo_platform.pyhailort.pyhailort")


def boxes_hef(by_score: bool = False, classes: int = CLASSES) -> Hef:
    nms = Nms(classes, 4, "scores", "boxes", 0.2, 0.7, by_score)
    return Hef(
        "boxes", (Stream("in", (BOXES, 4 + classes), "in", "FLOAT32"),), (Stream("nms", (), nms=nms),),
        function="given_boxes",
    )  # fmt: skip


@pytest.fixture
def device(machine: Machine) -> Iterator[Any]:
    """Held by the test: a VDevice that nobody holds releases itself, and its models with it."""
    parameters = vendor().VDevice.create_params()
    parameters.scheduling_algorithm = vendor().HailoSchedulingAlgorithm.ROUND_ROBIN
    parameters.group_id = "SHARED"
    held = vendor().VDevice(parameters)
    yield held
    held.release()


def configured(machine: Machine, hef: Hef, device: Any) -> Any:
    path = machine.root / f"{hef.name}.hef"
    path.write_bytes(hef.to_bytes())
    return device.create_infer_model(str(path)).configure()


def test_the_page_prints_the_table_of_claims() -> None:
    rows = re.findall(r"^\| (4\.\d+|5\.\d+) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(f"{claim.since[0]}.{claim.since[1]}", claim.text) for claim in CLAIMS]


def test_claims_come_in_the_order_of_their_releases() -> None:
    assert [claim.since for claim in CLAIMS] == sorted(claim.since for claim in CLAIMS)
    assert CLAIMS[0].since == FIRST


def test_unwrapped_calls_raise_what_is_no_exception_of_the_binding(machine: Machine) -> None:
    machine.open_status = 64
    with pytest.raises(Exception, match=r"^64$") as caught:
        vendor().Device.scan()
    assert not isinstance(caught.value, vendor().HailoRTException)


@pytest.mark.parametrize("status", [74, 76, 87])
def test_most_statuses_stand_in_the_text_only(machine: Machine, status: int) -> None:
    machine.open_status = status
    with pytest.raises(Exception, match=f"libhailort failed with error: {status} ") as caught:
        vendor().VDevice()
    assert type(caught.value) is vendor().HailoRTException


def test_the_driver_has_an_exception_of_its_own_from_4_20(machine: Machine) -> None:
    machine.open_status = 36
    with pytest.raises(vendor().HailoRTException) as caught:
        vendor().VDevice()
    own = machine.release >= (4, 20)
    assert (type(caught.value).__name__ == "HailoRTDriverOperationFailedException") is own
    assert not hasattr(vendor(), "HailoRTTimeout")


def test_every_status_is_read_back_from_what_is_raised(machine: Machine) -> None:
    exceptions = importlib.import_module("hailo_platform.pyhailort._exceptions")
    for status in exceptions.NAMES:
        raw = exceptions.HailoRTStatusException(str(status))
        assert [status_of(exceptions.exception_of(status)), status_of(raw)] == [status, status]
        assert translated(raw, "trying").remedy
    assert status_of(ValueError("4")) is None


def test_a_failed_run_shuts_the_model_down(machine: Machine, device: Any) -> None:
    model = configured(machine, boxes_hef(), device)
    bindings = model.create_bindings({"in": np.zeros((BOXES, 7), np.float32)})
    with pytest.raises(inner().HailoRTNotFoundException):
        model.run_async([bindings])
    bindings.output().set_buffer(np.zeros(CLASSES * 21, np.float32))
    with pytest.raises(inner().HailoRTStreamAbortedByUser):
        model.run_async([bindings])


def test_only_bytes_are_counted_and_only_at_run(machine: Machine, device: Any) -> None:
    model = configured(machine, boxes_hef(), device)
    output = np.zeros(CLASSES * 21, np.float32)
    with_batch = {"in": np.zeros((1, BOXES, 7), np.float32)}
    model.run([model.create_bindings(with_batch, {"nms": output})], 5000)
    short = model.create_bindings({"in": np.zeros((BOXES, 6), np.float32)}, {"nms": output})
    with pytest.raises(inner().HailoRTInvalidOperationException):
        model.run_async([short])


def test_beyond_the_queue_it_is_full(machine: Machine, device: Any) -> None:
    model = configured(machine, boxes_hef(), device)
    machine.freeze()
    for _ in range(model.get_async_queue_size()):
        model.wait_for_async_ready(100, 1)
        model.run_async([_bound(model)])
    with pytest.raises(inner().HailoRTTimeout):
        model.wait_for_async_ready(1, 1)
    with pytest.raises(vendor().HailoRTException, match="82"):
        model.run_async([_bound(model)])


def test_without_scheduler_a_model_must_be_activated(machine: Machine) -> None:
    with vendor().VDevice() as device:
        model = configured(machine, boxes_hef(), device)
        with pytest.raises(inner().HailoRTNetworkGroupNotActivatedException):
            model.run([_bound(model)], 1000)
        model.activate()
        model.run([_bound(model)], 5000)


def test_a_second_unique_device_finds_no_chip(machine: Machine) -> None:
    with vendor().VDevice():
        with pytest.raises(vendor().HailoRTException, match="74"):
            vendor().VDevice()
        with pytest.raises(vendor().HailoRTException, match="73"):
            vendor().VDevice(device_ids=["0001:01:00.0"])
        with pytest.raises(inner().HailoRTInvalidArgumentException):
            vendor().VDevice(device_ids=["0000:09:00.0"])


def test_a_path_is_a_type_error(machine: Machine, device: Any) -> None:
    with pytest.raises(TypeError):
        device.create_infer_model(machine.root / "model.hef")
    with pytest.raises(ValueError, match="HEF"):
        vendor().HEF(machine.root / "model.hef")


def test_buffers_must_be_contiguous_from_4_19(machine: Machine, device: Any) -> None:
    model = configured(machine, boxes_hef(), device)
    bound = model.create_bindings().input()
    odd = np.zeros((7, BOXES), np.float32).T
    if machine.release < (4, 19):
        bound.set_buffer(odd)
    else:
        with pytest.raises(vendor().HailoRTException, match="C_CONTIGUOUS"):
            bound.set_buffer(odd)


def test_a_hef_of_another_architecture(machine: Machine, device: Any) -> None:
    hef = Hef("h", boxes_hef().inputs, boxes_hef().outputs, "HAILO10H", function="given_boxes")
    name = "HailoRTHEFNotCompatibleWithDevice" if machine.release >= (4, 21) else "HailoRTInvalidHEFException"
    with pytest.raises(getattr(inner(), name)):
        configured(machine, hef, device)


@pytest.mark.parametrize("by_score", [False, True])
@pytest.mark.parametrize("classes", [1, CLASSES])
def test_the_vendors_lists_and_the_raw_buffer_hold_the_same_boxes(
    machine: Machine, device: Any, by_score: bool, classes: int
) -> None:
    by_score = by_score and machine.release >= (4, 21)
    random = np.random.default_rng(2)
    corners = np.sort(random.random((BOXES, 2, 2)), axis=1).reshape(BOXES, 4)
    given = np.hstack([corners, random.random((BOXES, classes))]).astype(np.float32)
    model = configured(machine, boxes_hef(by_score, classes), device)
    length, dtype = (2 + 22 * 4, np.uint8) if by_score else (classes * 21, np.float32)
    bindings = model.create_bindings({"in": given}, {"nms": np.zeros(length, dtype)})
    model.run([bindings], 5000)
    owner = HailoDevice(machine.root)
    engine = HailoInferenceEngine(machine.root / "boxes.hef", owner)
    found = parse(engine.run({"in": given[np.newaxis]})[0], engine.nms["nms"])
    told = bindings.output().get_buffer()
    if by_score:
        assert [(one.score, one.class_id) for one in told] == [(one.score, one.column) for one in found]
    else:
        assert isinstance(told[0], list) is (machine.release < (4, 19))
        assert from_class_lists(told) == found
        assert bindings.output().get_buffer(tf_format=True).shape == (classes, 5, 4)
    assert found
    owner.close()


def coco_ssd(with_nms: bool) -> Hef:
    model = catalog.read_bytes(catalog.find("coco-ssd"))
    scores, boxes = "Postprocessor/Slice:0", "Postprocessor/ExpandDims_1:0"
    raw = (Stream(boxes, (1917, 1, 4), boxes, "FLOAT32"), Stream(scores, (1917, 90), scores, "FLOAT32"))
    nms = (Stream("nms", (), nms=Nms(90, 100, scores, boxes, 0.4, 0.5)),)
    image = Stream("image_tensor:0", (300, 300, 3), "image_tensor:0")
    return Hef("coco-ssd", (image,), nms if with_nms else raw, onnx=model)


def test_a_real_detector_answers_on_the_double_as_on_the_processor(tmp_path: Path) -> None:
    """Raw heads exactly; with the double's own suppression the same objects in the same places."""
    image = decode_image(dict(sample_images())["coffee.png"], 1_000_000)[:300, :300]
    labels = catalog.read_labels("coco90.txt")
    on_cpu = OnnxEngine(catalog.read_bytes(catalog.find("coco-ssd")))
    expected = SsdDetector(on_cpu, labels, 0.4)(image)
    with hailo.fitted(tmp_path):
        device = HailoDevice(tmp_path)
        engines = []
        for name, with_nms in (("raw", False), ("nms", True)):
            (tmp_path / name).write_bytes(coco_ssd(with_nms).to_bytes())
            engines.append(HailoInferenceEngine(tmp_path / name, device))
        assert SsdDetector(engines[0], labels, 0.4)(image) == expected
        (output,) = engines[1].run({"image_tensor:0": image[np.newaxis]})
        found = parse(output, engines[1].nms["nms"], 0.4)
        assert [one.column + 1 for one in found] == [one["class_id"] for one in expected]
        for one, other in zip(found, expected, strict=True):
            box = other["box"]
            corners = (box["y_min"], box["x_min"], box["y_max"], box["x_max"])
            np.testing.assert_allclose(np.clip(one.box, 0, 1), np.array(corners) / 300, atol=0.01 / 300)
        with pytest.raises(InvalidInputError):
            engines[1].run({"image_tensor:0": image[np.newaxis, :200]})
        device.close()
    assert expected


def _bound(model: Any) -> Any:
    return model.create_bindings({"in": np.zeros((BOXES, 7), np.float32)}, {"nms": np.zeros(CLASSES * 21, np.float32)})
