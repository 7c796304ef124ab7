"""What every inference engine keeps, run on each implementation.

A new engine joins `ENGINES` with a function that loads an ONNX file's bytes (or what was compiled from it).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from primespark.errors import ConflictError, IntegrityError, InvalidInputError
from primespark.inference.engine import InferenceEngine
from primespark.inference.onnx_engine import OnnxEngine

ENGINES: dict[str, Callable[[bytes], InferenceEngine]] = {"onnx": lambda data: OnnxEngine(data, threads=1)}
WEIGHTS = np.random.default_rng(11).normal(size=(6, 4)).astype(np.float32)


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


@pytest.fixture(params=ENGINES)
def load(request: pytest.FixtureRequest) -> Callable[[bytes], InferenceEngine]:
    return ENGINES[request.param]


@pytest.fixture
def engine(load: Callable[[bytes], InferenceEngine]) -> Iterator[InferenceEngine]:
    loaded = load(matrix_model())
    yield loaded
    loaded.close()


def rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)


def test_it_says_what_it_takes_and_gives(engine: InferenceEngine) -> None:
    assert engine.input_names == ("x",)
    assert engine.output_names == ("product", "total")
    assert engine.device in {"cpu", "hailo8", "hailo8l"}


@pytest.mark.parametrize("count", [1, 7])
def test_outputs_come_in_the_order_of_their_names(engine: InferenceEngine, count: int) -> None:
    product, total = engine.run({"x": rows(count)})
    np.testing.assert_allclose(product, rows(count) @ WEIGHTS, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, (rows(count) @ WEIGHTS).sum(), rtol=1e-4, atol=1e-4)


def test_inputs_stay_as_they_are_and_may_be_read_only(engine: InferenceEngine) -> None:
    given = rows(3)
    given.flags.writeable = False
    engine.run({"x": given})
    np.testing.assert_array_equal(given, rows(3))


def test_an_output_is_not_overwritten_by_the_next_run(engine: InferenceEngine) -> None:
    first, _ = engine.run({"x": rows(2, seed=1)})
    kept = first.copy()
    engine.run({"x": rows(2, seed=2)})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"y": rows(1)}, id="another name"),
        pytest.param({"x": rows(1), "z": rows(1)}, id="one more"),
        pytest.param({"x": rows(1).astype(np.float64)}, id="another type"),
        pytest.param({"x": rows(1)[:, :5]}, id="another width"),
        pytest.param({"x": rows(1)[0]}, id="another rank"),
    ],
)
def test_an_input_that_does_not_fit_is_the_callers_fault(
    engine: InferenceEngine, inputs: dict[str, NDArray[np.float32]]
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        engine.run(inputs)
    assert caught.value.code == "wrong_model_input"
    assert "\n" not in caught.value.message
    engine.run({"x": rows(1)})


def test_threads_share_it(engine: InferenceEngine) -> None:
    def answer(seed: int) -> bool:
        product, _ = engine.run({"x": rows(4, seed)})
        return np.allclose(product, rows(4, seed) @ WEIGHTS, rtol=1e-5, atol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(answer, range(400)))


def test_a_closed_one_refuses_and_closing_again_is_allowed(load: Callable[[bytes], InferenceEngine]) -> None:
    engine = load(matrix_model())
    engine.close()
    engine.close()
    with pytest.raises(ConflictError) as caught:
        engine.run({"x": rows(1)})
    assert caught.value.code == "engine_closed"


def test_runs_under_way_outlive_a_close(load: Callable[[bytes], InferenceEngine]) -> None:
    for _ in range(20):
        engine = load(matrix_model())
        started = threading.Barrier(5)

        def runs(engine: InferenceEngine = engine, started: threading.Barrier = started) -> int:
            started.wait()
            done = 0
            while True:
                try:
                    product, _ = engine.run({"x": rows(64)})
                except ConflictError:
                    return done
                assert np.allclose(product, rows(64) @ WEIGHTS, rtol=1e-5, atol=1e-5)
                done += 1

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(runs) for _ in range(4)]
            started.wait()
            engine.close()
            for future in running:
                future.result(timeout=20)


@pytest.mark.parametrize("data", [b"", b"<html></html>", matrix_model()[:-20]])
def test_what_is_no_model_is_refused(load: Callable[[bytes], InferenceEngine], data: bytes) -> None:
    with pytest.raises(IntegrityError) as caught:
        load(data)
    assert caught.value.code == "bad_model"


def test_a_model_of_an_unknown_operator_is_refused(load: Callable[[bytes], InferenceEngine]) -> None:
    whole = onnx.load_from_string(matrix_model())
    whole.graph.node[0].op_type = "Telepathy"
    with pytest.raises(IntegrityError) as caught:
        load(whole.SerializeToString())
    assert caught.value.code == "bad_model"
    assert "Telepathy" in caught.value.message


def test_a_model_with_weights_in_another_file_is_refused(
    load: Callable[[bytes], InferenceEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The file is really there, where ONNX Runtime looks for it: only the refusal keeps it from being read.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(WEIGHTS.tobytes())
    weights = TensorProto(name="weights", data_type=TensorProto.FLOAT, dims=[6, 4])
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="weights.bin")
    with pytest.raises(IntegrityError) as caught:
        load(matrix_model(weights))
    assert caught.value.code == "external_data"


def test_onnx_files_load_by_path_too(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(matrix_model())
    product, _ = OnnxEngine(path, 1).run({"x": rows(1)})
    np.testing.assert_allclose(product, rows(1) @ WEIGHTS, rtol=1e-5, atol=1e-5)
    with pytest.raises(IntegrityError, match="cannot be read"):
        OnnxEngine(tmp_path / "absent.onnx", 1)
