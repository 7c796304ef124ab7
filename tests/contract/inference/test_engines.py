"""What every inference engine keeps, run on each implementation; an implementation joins as a `Subject`.

The Hailo engine runs on the double in each release, and on a real chip where `/dev/hailo0` is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from primespark.errors import ConflictError, IntegrityError, InvalidInputError
from primespark.inference.batching_engine import BatchingEngine
from primespark.inference.engine import InferenceEngine
from primespark.inference.hailo_device import HailoDevice
from primespark.inference.hailo_engine import HailoInferenceEngine
from primespark.inference.onnx_engine import OnnxEngine
from tests.doubles import hailo
from tests.doubles.fake_engine import FakeEngine, Forms

WEIGHTS = np.random.default_rng(11).normal(size=(6, 4)).astype(np.float32)
Arrays = dict[str, NDArray[Any]]


def matrix_model(weights: TensorProto | None = None) -> bytes:
    """`product = x @ weights` and `total`, its sum."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weights"], ["product"]),
            helper.make_node("ReduceSum", ["product"], ["total"], keepdims=0),
        ],
        "matrix",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [
            helper.make_tensor_value_info("product", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, []),
        ],
        [weights if weights is not None else numpy_helper.from_array(WEIGHTS, "weights")],
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(whole.SerializeToString())


def rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)


def matrix_answer(inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    product = inputs["x"] @ WEIGHTS
    return [product, product.sum()]


@dataclass(frozen=True)
class Subject:
    """One implementation: how it is loaded, what it is given, and what must come out."""

    load: Callable[[], InferenceEngine]
    devices: tuple[str, ...] = ("cpu",)
    counts: tuple[int, ...] = (1, 7)
    inputs: Callable[[int, int], Arrays] = lambda count, seed: {"x": rows(count, seed)}
    expected: Callable[[Arrays], list[NDArray[Any]]] = matrix_answer


def fake() -> InferenceEngine:
    outputs: Forms = {"product": (np.float32, (None, 4)), "total": (np.float32, ())}
    return FakeEngine({"x": (np.float32, (None, 6))}, tuple(outputs), matrix_answer, concurrency=3, outputs=outputs)


def on_the_double(stack: ExitStack, folder: Path, version: str) -> Subject:
    stack.enter_context(hailo.fitted(folder, version))
    path = folder / "matrix.hef"
    path.write_bytes(hailo.compiled(matrix_model(), {"x": (6,), "product": (4,), "total": (1,)}).to_bytes())
    device = HailoDevice(folder)
    stack.callback(device.close)
    return Subject(lambda: HailoInferenceEngine(path, device), ("hailo8",), (1,))


def on_a_chip(stack: ExitStack) -> Subject:
    """A HEF of the machine; what must come out is what the engine answers when nothing else runs."""
    found = [
        os.environ.get("PRIMESPARK_TEST_HEF", ""),
        *map(str, Path("/usr/share/hailo-models").glob("yolov8s_*.hef")),
    ]
    path = next((Path(one) for one in found if one), None)
    if path is None:
        pytest.skip("no HEF: set PRIMESPARK_TEST_HEF, or install the vendor's hailo-models")
    device = HailoDevice()
    stack.callback(device.close)
    alone = HailoInferenceEngine(path, device)
    shapes = {one.name: (one.shape, one.dtype) for one in alone.inputs}

    def inputs(count: int, seed: int) -> Arrays:
        random = np.random.default_rng(seed)
        return {name: random.integers(0, 256, (count, *shape)).astype(dtype) for name, (shape, dtype) in shapes.items()}

    return Subject(lambda: HailoInferenceEngine(path, device), ("hailo8", "hailo8l"), (1,), inputs, alone.run)


CHIP = ["chip"] if Path("/dev/hailo0").exists() else []


@pytest.fixture(params=["onnx", "fake", "batching", *hailo.VERSIONS, *CHIP])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    with ExitStack() as stack:
        if request.param == "onnx":
            yield Subject(lambda: OnnxEngine(matrix_model(), threads=1))
        elif request.param == "fake":
            yield Subject(fake)
        elif request.param == "batching":
            yield Subject(lambda: BatchingEngine(OnnxEngine(matrix_model(), threads=1), size=4, wait_s=0.001))
        elif request.param == "chip":
            yield on_a_chip(stack)
        else:
            yield on_the_double(stack, tmp_path, request.param)


@pytest.fixture
def engine(subject: Subject) -> Iterator[InferenceEngine]:
    loaded = subject.load()
    yield loaded
    loaded.close()


def assert_answers(answers: list[NDArray[Any]], expected: list[NDArray[Any]]) -> None:
    assert len(answers) == len(expected)
    for answer, wanted in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer.reshape(-1), np.reshape(wanted, -1), rtol=1e-4, atol=1e-4)


def test_it_says_what_it_takes_and_gives(engine: InferenceEngine, subject: Subject) -> None:
    assert engine.input_names == tuple(subject.inputs(1, 0))
    assert len(engine.output_names) == len(subject.expected(subject.inputs(1, 0)))
    assert engine.device in subject.devices
    for array, shape in zip(subject.inputs(1, 0).values(), engine.input_shapes, strict=True):
        assert len(shape) == array.ndim
        assert all(size in (None, length) for size, length in zip(shape, array.shape, strict=True))
    assert engine.input_types == tuple(array.dtype for array in subject.inputs(1, 0).values())
    assert engine.concurrency >= 1


def test_outputs_have_the_types_and_shapes_it_says(engine: InferenceEngine, subject: Subject) -> None:
    for count in subject.counts:
        outputs = engine.run(subject.inputs(count, 5))
        assert engine.output_types == tuple(output.dtype for output in outputs)
        for output, shape in zip(outputs, engine.output_shapes, strict=True):
            assert len(shape) == output.ndim
            assert all(size in (None, length) for size, length in zip(shape, output.shape, strict=True))


def test_outputs_come_in_the_order_of_their_names(engine: InferenceEngine, subject: Subject) -> None:
    for count in subject.counts:
        given = subject.inputs(count, 3)
        assert_answers(engine.run(given), subject.expected(given))


def test_inputs_stay_as_they_are_and_may_be_read_only(engine: InferenceEngine, subject: Subject) -> None:
    given = subject.inputs(1, 0)
    for array in given.values():
        array.flags.writeable = False
    engine.run(given)
    for name, array in given.items():
        np.testing.assert_array_equal(array, subject.inputs(1, 0)[name])


def test_inputs_need_not_be_contiguous(engine: InferenceEngine, subject: Subject) -> None:
    given = subject.inputs(1, 4)
    reversed_twice = {name: np.asfortranarray(array[..., ::-1])[..., ::-1] for name, array in given.items()}
    assert_answers(engine.run(reversed_twice), subject.expected(given))


def test_an_output_is_not_overwritten_by_the_next_runs(engine: InferenceEngine, subject: Subject) -> None:
    first = engine.run(subject.inputs(1, 1))
    kept = [np.array(output) for output in first]
    for seed in range(2, 2 + 2 * engine.concurrency):
        engine.run(subject.inputs(1, seed))
    for output, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(output, copy)


WRONG: dict[str, Callable[[Arrays], Arrays]] = {
    "nothing": lambda _: {},
    "another name": lambda given: {f"{name}'": array for name, array in given.items()},
    "one more": lambda given: {**given, "z": np.zeros((1, 1), np.float32)},
    "another type": lambda given: {name: array.astype(np.float64) for name, array in given.items()},
    "another width": lambda given: {name: array[..., :-1] for name, array in given.items()},
    "another rank": lambda given: {name: array[0] for name, array in given.items()},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_an_input_that_does_not_fit_is_the_callers_fault(
    engine: InferenceEngine, subject: Subject, wrong: Callable[[Arrays], Arrays]
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        engine.run(wrong(subject.inputs(1, 0)))
    assert caught.value.code == "wrong_model_input"
    assert "\n" not in caught.value.message
    engine.run(subject.inputs(1, 0))


def test_threads_share_it(engine: InferenceEngine, subject: Subject) -> None:
    expected = [subject.expected(subject.inputs(1, seed)) for seed in range(20)]

    def check(number: int) -> None:
        assert_answers(engine.run(subject.inputs(1, number % 20)), expected[number % 20])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(200)))


def test_a_closed_one_refuses_and_closing_again_is_allowed(subject: Subject) -> None:
    engine = subject.load()
    engine.close()
    engine.close()
    with pytest.raises(ConflictError) as caught:
        engine.run(subject.inputs(1, 0))
    assert caught.value.code == "engine_closed"


def test_runs_under_way_outlive_a_close(subject: Subject) -> None:
    given = subject.inputs(1, 0)
    expected = subject.expected(given)
    for _ in range(10):
        engine = subject.load()
        started = threading.Barrier(5)

        def runs(engine: InferenceEngine = engine, started: threading.Barrier = started) -> int:
            started.wait()
            done = 0
            while True:
                try:
                    answers = engine.run(given)
                except ConflictError:
                    return done
                assert_answers(answers, expected)
                done += 1

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(runs) for _ in range(4)]
            started.wait()
            engine.close()
            for future in running:
                future.result(timeout=20)


@pytest.mark.parametrize("data", [b"", b"<html></html>", matrix_model()[:-20]])
def test_onnx_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError) as caught:
        OnnxEngine(data)
    assert caught.value.code == "bad_model"


def test_onnx_a_model_of_an_unknown_operator_is_refused() -> None:
    whole = onnx.load_from_string(matrix_model())
    whole.graph.node[0].op_type = "Telepathy"
    with pytest.raises(IntegrityError) as caught:
        OnnxEngine(whole.SerializeToString())
    assert caught.value.code == "bad_model"
    assert "Telepathy" in caught.value.message


def test_onnx_a_model_with_weights_in_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The file is really there, where ONNX Runtime looks for it: only the refusal keeps it from being read.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(WEIGHTS.tobytes())
    weights = TensorProto(name="weights", data_type=TensorProto.FLOAT, dims=[6, 4])
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="weights.bin")
    with pytest.raises(IntegrityError) as caught:
        OnnxEngine(matrix_model(weights))
    assert caught.value.code == "external_data"


ELEMENTS = {
    TensorProto.BOOL: np.bool_, TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64,
    TensorProto.INT8: np.int8, TensorProto.INT16: np.int16, TensorProto.INT32: np.int32, TensorProto.INT64: np.int64,
    TensorProto.UINT8: np.uint8, TensorProto.UINT16: np.uint16, TensorProto.UINT32: np.uint32,
    TensorProto.UINT64: np.uint64, TensorProto.STRING: np.object_,
}  # fmt: skip


def echo_model(element: int) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "echo",
        [helper.make_tensor_value_info("x", element, ["n"])],
        [helper.make_tensor_value_info("y", element, ["n"])],
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(whole.SerializeToString())


@pytest.mark.parametrize(("element", "kind"), ELEMENTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_onnx_every_type_has_its_numpy_type(element: int, kind: type[np.generic]) -> None:
    engine = OnnxEngine(echo_model(element))
    assert engine.input_types == engine.output_types == (np.dtype(kind),)
    given = np.array(["a", "b"] if kind is np.object_ else [0, 1], kind)
    (answer,) = engine.run({"x": given})
    assert answer.dtype == kind
    assert answer.tolist() == given.tolist()


def test_onnx_a_type_that_numpy_does_not_have_is_none() -> None:
    assert OnnxEngine(echo_model(TensorProto.BFLOAT16)).input_types == (None,)


def test_onnx_files_load_by_path_too(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(matrix_model())
    product, _ = OnnxEngine(path, 1).run({"x": rows(1)})
    np.testing.assert_allclose(product, rows(1) @ WEIGHTS, rtol=1e-5, atol=1e-5)
    with pytest.raises(IntegrityError, match="cannot be read"):
        OnnxEngine(tmp_path / "absent.onnx", 1)
