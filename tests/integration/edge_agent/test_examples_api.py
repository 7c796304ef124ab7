"""Labelling hard examples over HTTP, on a running device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from primespark.inference.samples import sample_images
from tests.helpers import wait_until
from tests.integration.edge_agent.test_process import Process, running


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    home = tmp_path_factory.mktemp("device")
    folder = home / "yard"
    folder.mkdir()
    (folder / "coffee.png").write_bytes(next(data for name, data in sample_images() if name == "coffee.png"))
    settings = {
        "PRIMESPARK_EDGE__CAPTURE__SOURCES": json.dumps([str(folder)]),
        "PRIMESPARK_EDGE__CAPTURE__HARD_EXAMPLES": json.dumps({"daily_bytes": 10_000_000}),
        "PRIMESPARK_EDGE__CAPTURE__IMAGES": "crops",
    }
    with running(home, **settings) as running_device:
        wait_until(lambda: running_device.sees(1) and bool(examples(running_device)), 60)
        yield running_device


def call(device: Process, method: str, path: str, **arguments: Any) -> httpx2.Response:
    key = (device.folder / "local.key").read_text()
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.request(method, f"{device.url}/api/v1{path}", headers=headers, timeout=10, **arguments)


def examples(device: Process) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = call(device, "GET", "/examples").json()["items"]
    return items


def test_what_the_model_saw_is_confirmed_once(device: Process) -> None:
    (example,) = examples(device)
    assert example["labelled"] == {}
    assert (example["image_width"], example["image_height"]) == (600, 400)
    (cup,) = [found for found in example["predictions"] if found["label"] == "cup"]
    path, body = f"/examples/{example['id']}/label", {"boxes": [{"label": "cup", "box": cup["box"]}]}
    first, again = (call(device, "POST", path, json=body) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200), first.text
    assert first.json() == again.json()
    assert first.json() == {
        "id": example["id"], "dataset": "examples", "revision": 1, "samples": [f"{example['id']}/0"],
    }  # fmt: skip
    (example,) = examples(device)
    assert example["labelled"] == {"examples": 1}
    assert call(device, "GET", "/offline/status").json()["streams"]["labels"]["pending"] == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"label": "mug"}, 409, "images_stay"),
        ({}, 422, "invalid_input"),
        ({"boxes": []}, 422, "invalid_input"),
        ({"label": "a\0b"}, 422, "invalid_input"),
        ({"label": "x" * 101}, 422, "invalid_input"),
        ({"label": "x", "colour": "red"}, 422, "invalid_input"),
        ({"label": "x", "dataset": "A:b"}, 422, "invalid_input"),
        ({"boxes": [{"label": "x", "box": {"x_min": 0, "y_min": 0, "x_max": 9999, "y_max": 5}}]}, 422, "bad_box"),
        ({"boxes": [{"label": "x", "box": {"x_min": 0, "y_min": 0, "x_max": "1", "y_max": 5}}]}, 422, "invalid_input"),
    ],
    ids=str,
)
def test_what_cannot_be_taken_is_told(device: Process, body: dict[str, Any], status: int, code: str) -> None:
    (example,) = examples(device)
    answer = call(device, "POST", f"/examples/{example['id']}/label", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def test_what_is_not_there_is_told(device: Process) -> None:
    for name in ("example-0000000000000-00000000", "..%2F..%2Flocal.key", "%00", "event-1"):
        assert call(device, "POST", f"/examples/{name}/label", json={"label": "x"}).status_code == 404


def test_a_stranger_labels_nothing(device: Process) -> None:
    (example,) = examples(device)
    for method, path in (("GET", ""), ("POST", f"/{example['id']}/label")):
        assert httpx2.request(method, f"{device.url}/api/v1/examples{path}").status_code == 401
