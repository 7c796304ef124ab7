"""The Open Inference Protocol: a real device asked by Triton's own client, and by hand what that client cannot ask."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image
from tritonclient.http import InferenceServerClient, InferenceServerClientPlugin, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from primespark import __version__
from primespark.inference import catalog
from primespark.inference.hailo_device import HailoDevice
from primespark.inference.hailo_engine import HailoInferenceEngine
from primespark.inference.samples import sample_images
from tests.colours import LABELS, hef
from tests.doubles import hailo
from tests.helpers import wait_until
from tests.integration.edge_agent.test_process import Process, running

ROOT = Path(__file__).parents[3]
COFFEE = next(data for name, data in sample_images() if name == "coffee.png")
DETECTOR, BOXES, SCORES = "coco-ssd", "Postprocessor/ExpandDims_1:0", "Postprocessor/Slice:0"
LIMIT = 5_000_000
HAILO_VERSION = hailo.VERSIONS[-1]


class Key(InferenceServerClientPlugin):  # type: ignore[misc]
    """Sends the local key."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: Any) -> None:
        request.headers["Authorization"] = f"Bearer {self._key}"


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    settings = {"FEATURES__CAPTURE": "false", "SECURITY__OPEN_HEALTH": "false"}
    settings["EDGE__INFERENCE__MAX_BODY_BYTES"] = str(LIMIT)
    home = tmp_path_factory.mktemp("device")
    with running(home, **{f"PRIMESPARK_{name}": value for name, value in settings.items()}) as process:
        wait_until(lambda: answers(process), 30)
        yield process


def answers(process: Process) -> bool:
    try:
        return httpx2.get(f"{process.url}/readyz").status_code == 200
    except httpx2.HTTPError:
        return False


@pytest.fixture(scope="module")
def key(device: Process) -> str:
    return (device.folder / "local.key").read_text()


@pytest.fixture
def client(device: Process, key: str) -> Iterator[Any]:
    with InferenceServerClient(device.url.removeprefix("http://")) as client:
        client.register_plugin(Key(key))
        yield client


@pytest.fixture
def plain(device: Process, key: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=device.url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.uint8]:
    path = tmp_path_factory.mktemp("photo") / "coffee.png"
    path.write_bytes(COFFEE)
    return np.asarray(Image.open(path).convert("RGB").resize((150, 100)))[np.newaxis]


def directly(name: str, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """What ONNX Runtime makes of the same file, asked by nobody of ours."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = catalog.read(catalog.find(name))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def tensor(name: str, array: NDArray[Any], datatype: str, binary: bool = True) -> Any:
    return InferInput(name, list(array.shape), datatype).set_data_from_numpy(array, binary_data=binary)


def test_tritons_client_sees_the_server_and_its_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata == {"name": "primespark-edge", "version": __version__, "extensions": ["binary_tensor_data"]}
    assert client.is_model_ready(DETECTOR)
    assert client.is_model_ready(DETECTOR, "1")
    assert not client.is_model_ready(DETECTOR, "2")
    assert not client.is_model_ready("nothing")
    assert client.get_model_metadata("movenet-lightning", "1") == {
        "name": "movenet-lightning", "versions": ["1"], "platform": "onnxruntime_onnx",
        "inputs": [{"name": "input:0", "datatype": "INT32", "shape": [1, 192, 192, 3]}],
        "outputs": [{"name": "Identity:0", "datatype": "FP32", "shape": [1, 1, 17, 3]}],
    }  # fmt: skip
    assert client.get_model_metadata(DETECTOR)["inputs"][0]["shape"] == [-1, -1, -1, 3]


def test_whether_a_model_is_ready_is_told_without_loading_it(client: Any, plain: httpx2.Client) -> None:
    assert client.is_model_ready("selfie-landscape")
    assert "selfie-landscape" not in plain.get("/api/v1/inference/stats").json()["models"]


@pytest.mark.parametrize("sent_binary", [True, False], ids=["binary in", "JSON in"])
@pytest.mark.parametrize("answered_binary", [True, False, None], ids=["binary out", "JSON out", "by default"])
def test_the_detector_answers_tritons_client_as_onnx_runtime_does(
    client: Any, photo: NDArray[np.uint8], sent_binary: bool, answered_binary: bool | None
) -> None:
    wanted = None
    if answered_binary is not None:
        wanted = [InferRequestedOutput(name, binary_data=answered_binary) for name in (BOXES, SCORES)]
    found = client.infer(
        DETECTOR, [tensor("image_tensor:0", photo, "UINT8", sent_binary)], outputs=wanted, request_id="42"
    )
    for name, expected in directly(DETECTOR, **{"image_tensor:0": photo}).items():
        received = found.as_numpy(name)
        assert received.dtype == expected.dtype
        np.testing.assert_array_equal(received, expected)
    head = found.get_response()
    assert (head["id"], head["model_name"], head["model_version"]) == ("42", DETECTOR, "1")
    assert head["parameters"] == {"device": "cpu", "model_digest": catalog.find(DETECTOR).sha256}


def test_a_model_of_several_inputs_and_a_scalar(client: Any) -> None:
    random = np.random.default_rng(3)
    sound = random.normal(size=(2, 576)).astype(np.float32) / 10
    state = random.normal(size=(2, 2, 128)).astype(np.float32)
    rate = np.array(16_000)
    given = [tensor("sr", rate, "INT64"), tensor("input", sound, "FP32"), tensor("state", state, "FP32", binary=False)]
    wanted = [InferRequestedOutput("stateN"), InferRequestedOutput("output", binary_data=False)]
    found = client.infer("silero-vad", given, outputs=wanted)
    for name, expected in directly("silero-vad", input=sound, state=state, sr=rate).items():
        np.testing.assert_array_equal(found.as_numpy(name), expected)
    assert [output["name"] for output in found.get_response()["outputs"]] == ["stateN", "output"]


def test_what_is_wrong_is_raised_with_the_servers_words(client: Any, photo: NDArray[np.uint8]) -> None:
    image = tensor("image_tensor:0", photo, "UINT8")

    def raised(*arguments: Any, **more: Any) -> str:
        with pytest.raises(InferenceServerException) as caught:
            client.infer(*arguments, **more)
        return f"{caught.value.status()} {caught.value.message()}"

    assert re.fullmatch(r"404 no model 'nothing' is in service; there is coco-ssd, .*", raised("nothing", [image]))
    assert raised(DETECTOR, [image], "9").startswith("404 no version '9' of coco-ssd is in service; there is 1")
    assert raised(DETECTOR, [tensor("picture", photo, "UINT8")]).startswith("422 the model takes image_tensor:0, not")
    wrong = tensor("image_tensor:0", photo.astype(np.float32), "FP32")
    assert raised(DETECTOR, [wrong]).startswith(
        "422 image_tensor:0 is UINT8 [-1, -1, -1, 3], not FP32 [1, 100, 150, 3]"
    )
    many = tensor("image_tensor:0", np.zeros((9, 2, 2, 3), np.uint8), "UINT8")
    assert raised(DETECTOR, [many]).startswith("422 image_tensor:0 has a batch of 9, limit 8")
    text = tensor("image_tensor:0", np.array([b"x"], object), "BYTES")
    assert raised(DETECTOR, [text]).startswith("422 'image_tensor:0': text is not taken")
    unknown = raised(DETECTOR, [image], outputs=[InferRequestedOutput("boxes")])
    assert unknown == f"422 no output 'boxes'; the model gives {SCORES}, {BOXES}"
    classes = raised(DETECTOR, [image], outputs=[InferRequestedOutput(SCORES, class_count=3)])
    assert classes.startswith("422 outputs.0.parameters.classification")
    assert raised(DETECTOR, [image], sequence_id=7).startswith("422 parameters.sequence_id")
    assert raised(DETECTOR, [image], timeout=1).startswith("504 no answer by the deadline")
    assert raised(DETECTOR, [image], request_compression_algorithm="gzip").startswith("415 ")
    large = tensor("image_tensor:0", np.zeros((1, 2000, 1000, 3), np.uint8), "UINT8")
    assert raised(DETECTOR, [large]).startswith("413 ")
    with pytest.raises(InferenceServerException, match=r"\[404\] no route /v2/models/coco-ssd/stats"):
        client.get_inference_statistics(DETECTOR)
    assert client.infer(DETECTOR, [image], priority=1, timeout=60_000_000).as_numpy(SCORES).shape == (1, 1917, 90)


def test_an_empty_batch_does_not_end_the_process(client: Any, device: Process) -> None:
    # Given to ONNX Runtime (1.32), it does.
    empty = [
        tensor("sr", np.array(16_000), "INT64"), tensor("input", np.zeros((0, 576), np.float32), "FP32"),
        tensor("state", np.zeros((2, 0, 128), np.float32), "FP32"),
    ]  # fmt: skip
    with pytest.raises(InferenceServerException, match=r"\[422\] inputs.1.shape.0"):
        client.infer("silero-vad", empty)
    assert device.process.poll() is None


def test_lengths_that_do_not_go_together_are_the_callers_fault(client: Any) -> None:
    given = [
        tensor("sr", np.array(16_000), "INT64"), tensor("input", np.zeros((2, 576), np.float32), "FP32"),
        tensor("state", np.zeros((2, 3, 128), np.float32), "FP32"),
    ]  # fmt: skip
    with pytest.raises(InferenceServerException, match=r"\[422\] the model does not take these lengths: .*LSTM"):
        client.infer("silero-vad", given)


def test_nothing_without_the_local_key(device: Process) -> None:
    with InferenceServerClient(device.url.removeprefix("http://")) as stranger:
        assert not stranger.is_server_live()
        assert not stranger.is_server_ready()
        assert not stranger.is_model_ready(DETECTOR)
        with pytest.raises(InferenceServerException, match=r"\[401\] no credential; send `Authorization"):
            stranger.get_server_metadata()
        with pytest.raises(InferenceServerException, match=r"\[401\]"):
            stranger.infer(DETECTOR, [tensor("image_tensor:0", np.zeros((1, 2, 2, 3), np.uint8), "UINT8")])


def test_inferences_are_counted_as_all_others_are(client: Any, plain: httpx2.Client, photo: NDArray[np.uint8]) -> None:
    def counted() -> tuple[float, float, int]:
        told = plain.get("/metrics").text
        figures = [
            re.search(rf"^{re.escape(name)} (\S+)$", told, re.MULTILINE)
            for name in (
                'primespark_inference_requests_total{device="cpu",model="coco-ssd",outcome="ok"}',
                'primespark_inference_duration_seconds_count{model="coco-ssd"}',
            )
        ]
        requests = plain.get("/api/v1/inference/stats").json()["requests"]
        first, second = (float(figure[1]) if figure else 0.0 for figure in figures)
        return first, second, requests

    before = counted()
    client.infer(DETECTOR, [tensor("image_tensor:0", photo, "UINT8")])
    assert counted() == tuple(figure + 1 for figure in before)


def test_by_hand_in_nested_json(plain: httpx2.Client, photo: NDArray[np.uint8]) -> None:
    small = photo[:, ::4, ::4]
    form = {"name": "image_tensor:0", "shape": small.shape, "datatype": "UINT8", "data": small.tolist()}
    asked = {"id": "é", "model_name": DETECTOR, "inputs": [form], "outputs": [{"name": SCORES}]}
    answer = plain.post(f"/v2/models/{DETECTOR}/versions/1/infer", json=asked)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json"), answer.text
    assert "inference-header-content-length" not in answer.headers
    body = answer.json()
    (output,) = body["outputs"]
    assert (body["id"], output["name"], output["datatype"], output["shape"]) == ("é", SCORES, "FP32", [1, 1917, 90])
    expected = directly(DETECTOR, **{"image_tensor:0": small})[SCORES]
    np.testing.assert_array_equal(np.array(output["data"], np.float32).reshape(1, 1917, 90), expected)


@pytest.mark.parametrize(
    ("path", "asked", "status", "code"),
    [
        (f"/v2/models/{DETECTOR}/infer", b"{", 400, "malformed"),
        (f"/v2/models/{DETECTOR}/infer", b"", 400, "malformed"),
        (f"/v2/models/{DETECTOR}/infer", b'{"inputs": []}', 422, "invalid_input"),
        (f"/v2/models/{DETECTOR}/infer", b'{"model_name": "x", "inputs": [{"name": "a", "shape": [1], '
         b'"datatype": "BOOL", "data": [true]}]}', 422, "invalid_input"),
        (f"/v2/models/{DETECTOR}/infer", b"0," * 1_000_001, 413, "too_many_values"),
        (f"/v2/models/{DETECTOR}/infer", b"x" * (LIMIT + 1), 413, "too_large"),
        ("/v2/models/%0A/infer", b'{"inputs": [{"name": "a", "shape": [1], "datatype": "BOOL", "data": [true]}]}', 404,
         "unknown_model"),
        (f"/v2/models/{DETECTOR}/explain", b"{}", 404, "not_found"),
        (f"/v2/models/{DETECTOR}/ready", b"{}", 405, "method_not_allowed"),
        ("/v2/repository/index", b"{}", 404, "not_found"),
    ],
)  # fmt: skip
def test_errors_have_our_code_and_the_protocols_member(
    plain: httpx2.Client, path: str, asked: bytes, status: int, code: str
) -> None:
    answer = plain.post(path, content=asked)
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["error"].startswith(body["detail"])
    assert body["error"].endswith(body.get("remedy", ""))


def test_elsewhere_errors_have_no_such_member(plain: httpx2.Client) -> None:
    assert "error" not in plain.get("/v2x").json()
    assert "error" not in plain.get("/api/v1/nothing").json()


def test_who_asks_for_much_json_at_once_is_answered(plain: httpx2.Client) -> None:
    zeros = np.zeros((1, 300, 300, 3), np.uint8)
    form = {"name": "image_tensor:0", "shape": zeros.shape, "datatype": "UINT8", "data": zeros.reshape(-1).tolist()}
    body = json.dumps({"inputs": [form], "outputs": [{"name": SCORES}]})
    statuses: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: statuses.append(plain.post(f"/v2/models/{DETECTOR}/infer", content=body).status_code)
        )
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 12


def test_a_model_on_the_accelerator_gives_the_chips_tensors(tmp_path: Path) -> None:
    (tmp_path / "machine").mkdir()
    (tmp_path / "colours.hef").write_bytes(hef(by_score=False))
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    image = np.random.default_rng(1).integers(0, 256, (1, 640, 640, 3), dtype=np.uint8)
    with hailo.fitted(tmp_path / "machine", HAILO_VERSION) as machine:
        chip = HailoDevice(machine.root)
        engine = HailoInferenceEngine(tmp_path / "colours.hef", chip)
        (expected,) = engine.run({engine.input_names[0]: image})
        engine.close()
        chip.close()
        settings = {
            "FEATURES__CAPTURE": "false", "EDGE__INFERENCE__ACCELERATOR__DETECTOR": str(tmp_path / "colours.hef"),
            "EDGE__INFERENCE__ACCELERATOR__LABELS": str(tmp_path / "labels.txt"),
            "EDGE__INFERENCE__ACCELERATOR__SYSTEM_ROOT": str(machine.root),
        }  # fmt: skip
        double = {
            "PYTHONPATH": str(ROOT / "tests" / "doubles"), "HAILO_DOUBLE_VERSION": HAILO_VERSION,
            "HAILO_DOUBLE_ROOT": str(machine.root),
        }  # fmt: skip
        with running(tmp_path, **double, **{f"PRIMESPARK_{name}": value for name, value in settings.items()}) as device:
            wait_until(lambda: answers(device) and on_chip(device), 60)
            client = InferenceServerClient(device.url.removeprefix("http://"))
            client.register_plugin(Key((device.folder / "local.key").read_text()))
            metadata = client.get_model_metadata("colours")
            assert metadata["platform"] == "hailort_hef"
            (taken,), (given,) = metadata["inputs"], metadata["outputs"]
            assert (taken["datatype"], taken["shape"]) == ("UINT8", [1, 640, 640, 3])
            assert (given["datatype"], given["shape"]) == ("FP32", list(expected.shape))
            asked = [tensor(taken["name"], image, "UINT8")]
            found = client.infer("colours", asked)
            np.testing.assert_array_equal(found.as_numpy(given["name"]), expected)
            assert found.get_response()["parameters"]["device"] == "hailo8"
            machine.kill(36)
            with pytest.raises(InferenceServerException, match=r"^\[503\] "):
                client.infer("colours", asked)
            machine.revive()
            wait_until(lambda: answered(client, asked), 30)


def on_chip(device: Process) -> bool:
    return bool(device.get("/api/v1/inference/stats")["models"].get("colours", {}).get("device") == "hailo8")


def answered(client: Any, asked: list[Any]) -> bool:
    try:
        return bool(client.infer("colours", asked).get_response())
    except InferenceServerException:
        return False


def test_the_example_of_the_page_runs(device: Process, tmp_path: Path) -> None:
    (written,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "open-inference.md").read_text(), re.DOTALL)
    (tmp_path / ".primespark").symlink_to(device.folder.parents[1])
    (tmp_path / "photo.jpg").write_bytes(COFFEE)
    script = written.replace("127.0.0.1:8000", device.url.removeprefix("http://"))
    assert script != written
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "{'name': 'image_tensor:0', 'datatype': 'UINT8', 'shape': [-1, -1, -1, 3]}" in ran.stdout
    assert "best score of each class" in ran.stdout
