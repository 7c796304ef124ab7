"""A deployed version with a file for each processor: the accelerator serves it, and gives way to the next version."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from edge_agent.inference_service import Given, Inference, InferenceService
from edge_agent.slots.comparison import agreement
from edge_agent.standby import RETIRED
from primespark.core.clock import utc_now
from primespark.core.identifiers import sha256_hex
from primespark.core.manifests import Manifest, SigningKey, Variant
from primespark.core.settings import AcceleratorSettings, InferenceSettings
from primespark.inference.catalog import ModelType
from primespark.inference.images import decode_image
from primespark.inference.models import InputKind
from primespark.inference.samples import sample_images
from tests import photographs, poses
from tests.colours import LABELS, MINIMUM, colours, hef
from tests.doubles import hailo
from tests.doubles.hailo import Machine
from tests.integration.edge_agent.device import Device, running_device, until
from tests.integration.edge_agent.gate import GateOracle, RunningGate
from tests.integration.edge_agent.test_deployment import desire

COFFEE = dict(sample_images())["coffee.png"]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    root = tmp_path / "machine"
    root.mkdir()
    with hailo.fitted(root) as machine:
        yield machine


@pytest.fixture
def oracle(gate: RunningGate, tmp_path: Path) -> GateOracle:
    gate.oracle = GateOracle(SigningKey.load_or_create(tmp_path / "signing.key"))
    return gate.oracle


def want(oracle: GateOracle, version: int, architecture: str = "hailo8", accelerated: bytes | None = None) -> None:
    """The cloud wants a version of `colours`, as a file for each processor."""
    files = {"onnx": colours(on_chip=False), "hef": accelerated or hef(by_score=False)}
    want_files(oracle, "colours", version, "object_detection", LABELS, files, architecture)


def want_files(
    oracle: GateOracle,
    name: str,
    version: int,
    model_type: str,
    labels: tuple[str, ...],
    files: dict[str, bytes],
    architecture: str = "hailo8",
) -> None:
    """The cloud wants a version, as a file for each processor."""
    variants = tuple(
        Variant(
            format=kind, architecture=architecture if kind == "hef" else "any", sha256=sha256_hex(data),  # type: ignore[arg-type]
            size_bytes=len(data),
        )
        for kind, data in files.items()
    )  # fmt: skip
    manifest = Manifest(
        name=name, version=version, model_type=model_type, created=utc_now(), labels=labels, variants=variants,
    )  # fmt: skip
    assert oracle.signing_key is not None
    signed = oracle.signing_key.sign(manifest).to_bytes()
    for data in (signed, *files.values()):
        oracle.blobs[sha256_hex(data)] = data
    pointer = {"version": version, "manifest": sha256_hex(signed), "artifacts": [one.sha256 for one in variants]}
    desire(oracle, {name: pointer})


def inference(machine: Machine) -> InferenceSettings:
    return InferenceSettings(
        minimum_score=MINIMUM, accelerator=AcceleratorSettings(system_root=machine.root, timeout_s=30)
    )


def runs_on(device: Device, version: int, name: str = "colours") -> str | None:
    slot = device.slots.get(name)
    current = slot.model.current if slot is not None else None
    return current.device if current is not None and current.version == version else None


async def ask(device: Device, settings: InferenceSettings, name: str = "colours") -> Inference:
    service = InferenceService(device.slots, settings)
    try:
        given = Given(InputKind.IMAGE, functools.partial(decode_image, COFFEE, 1_000_000))
        return await service.answer(given, name, None)
    finally:
        await asyncio.to_thread(service.close)


async def test_the_accelerator_serves_a_version_and_gives_way_to_the_next(
    gate: RunningGate, oracle: GateOracle, machine: Machine, tmp_path: Path
) -> None:
    settings = inference(machine)
    want(oracle, 1)
    async with running_device(tmp_path / "device", gate.url, inference=settings) as device:
        await until(lambda: runs_on(device, 1) == "hailo8", 30)
        on_chip = await ask(device, settings)
        assert (on_chip.device, on_chip.model_digest) == ("hailo8", sha256_hex(hef(by_score=False)))
        first = device.slots.get("colours")
        assert first is not None

        machine.kill()
        on_processor = await ask(device, settings)
        assert (on_processor.device, on_processor.model_digest) == ("cpu", sha256_hex(colours(on_chip=False)))
        assert len(on_processor.predictions) == len(on_chip.predictions) > 3
        machine.revive()

        want(oracle, 2)
        await until(lambda: runs_on(device, 2) == "hailo8", 30)
        assert first.model.fault == RETIRED
        assert first.model.answered(decode_image(COFFEE, 1_000_000)).by.device == "cpu"

        desire(oracle, {"colours": None})
        second = device.slots.get("colours")
        await until(lambda: device.slots.get("colours") is None)
        assert second is not None
        await until(lambda: second.model.fault == RETIRED)


async def test_a_classifier_is_served_by_the_accelerator_and_by_the_processor_behind_it(
    gate: RunningGate, oracle: GateOracle, machine: Machine, tmp_path: Path
) -> None:
    settings = inference(machine)
    files = {"onnx": photographs.classifier(), "hef": photographs.hef(ends_in_softmax=False)}
    want_files(oracle, "photographs", 1, "classification", photographs.LABELS, files)
    async with running_device(tmp_path / "device", gate.url, inference=settings) as device:
        await until(lambda: runs_on(device, 1, "photographs") == "hailo8", 30)
        on_chip = await ask(device, settings, "photographs")
        machine.kill()
        on_processor = await ask(device, settings, "photographs")
        machine.revive()
        await until(lambda: runs_on(device, 1, "photographs") == "hailo8", 30)
    assert (on_chip.device, on_processor.device) == ("hailo8", "cpu")
    assert on_chip.predictions[0]["label"] == on_processor.predictions[0]["label"] == "espresso"


async def test_poses_are_served_by_the_accelerator_and_by_the_processor_behind_it(
    gate: RunningGate, oracle: GateOracle, machine: Machine, tmp_path: Path
) -> None:
    settings = inference(machine).model_copy(update={"minimum_score": poses.MINIMUM})
    files = {"onnx": poses.onnx_file(), "hef": poses.hef(is_quantised=False)}
    want_files(oracle, "people", 1, "pose", poses.POINTS, files)
    async with running_device(tmp_path / "device", gate.url, inference=settings) as device:
        await until(lambda: runs_on(device, 1, "people") == "hailo8", 30)
        on_chip = await ask(device, settings, "people")
        machine.kill()
        on_processor = await ask(device, settings, "people")
        machine.revive()
        await until(lambda: runs_on(device, 1, "people") == "hailo8", 30)
    assert (on_chip.device, on_processor.device) == ("hailo8", "cpu")
    assert len(on_chip.predictions) == len(on_processor.predictions) > 3
    assert agreement(ModelType.POSE, on_chip.predictions, on_processor.predictions) == 1.0


async def test_both_files_are_served_again_after_a_start_without_the_cloud(
    gate: RunningGate, oracle: GateOracle, machine: Machine, tmp_path: Path
) -> None:
    settings = inference(machine)
    want(oracle, 1)
    async with running_device(tmp_path / "device", gate.url, inference=settings) as device:
        await until(lambda: runs_on(device, 1) == "hailo8", 30)
    async with running_device(tmp_path / "device", "http://127.0.0.1:9", inference=settings) as device:
        await until(lambda: runs_on(device, 1) == "hailo8", 30)


@contextlib.asynccontextmanager
async def asked_all_the_time(device: Device, settings: InferenceSettings) -> AsyncIterator[list[str]]:
    """Which processor answered somebody who asks again as soon as there is an answer."""
    answers: list[str] = []

    async def asking() -> None:
        while True:
            answers.append((await ask(device, settings)).device)

    task = asyncio.create_task(asking())
    try:
        yield answers
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_accelerator_that_comes_up_later_takes_the_version_over_and_no_request_fails(
    gate: RunningGate, oracle: GateOracle, machine: Machine, tmp_path: Path
) -> None:
    settings, folder = inference(machine), tmp_path / "device"
    machine.unplug()
    want(oracle, 1)
    accelerated = folder / "models" / "blobs" / sha256_hex(hef(by_score=False))
    async with running_device(folder, gate.url, inference=settings) as device:
        await until(lambda: runs_on(device, 1) == "cpu", 30)
        first = device.slots.get("colours")
        assert first is not None
        assert not accelerated.exists()
        async with asked_all_the_time(device, settings) as answers:
            await until(lambda: answers, 30)
            # It is there, but does not answer yet; then the link breaks in the middle of its file.
            machine.kill()
            machine.plug_in()
            count = len(answers)
            await until(lambda: len(answers) > count + 3, 30)
            oracle.blob_cuts.append(100)
            machine.revive()
            await until(lambda: "hailo8" in answers, 60)
        second = device.slots.get("colours")
        assert second is not None
        assert second.since == first.since
        assert not oracle.blob_cuts
    # It stays on the disk whatever is desired next.
    assert json.loads((folder / "models" / "colours.json").read_bytes())["accelerated"] == accelerated.name
    oracle.keys.clear()
    async with running_device(folder, "http://127.0.0.1:9", inference=settings) as device:
        await until(lambda: runs_on(device, 1) == "hailo8", 30)


async def test_an_accelerator_that_comes_up_after_a_start_without_the_cloud_serves_what_is_here(
    gate: RunningGate, oracle: GateOracle, machine: Machine, tmp_path: Path
) -> None:
    settings, folder = inference(machine), tmp_path / "device"
    want(oracle, 1)
    async with running_device(folder, gate.url, inference=settings) as device:
        await until(lambda: runs_on(device, 1) == "hailo8", 30)
    machine.unplug()
    async with running_device(folder, "http://127.0.0.1:9", inference=settings) as device:
        await until(lambda: runs_on(device, 1) == "cpu", 30)
        machine.plug_in()
        await until(lambda: runs_on(device, 1) == "hailo8", 60)


async def test_a_version_may_follow_while_the_accelerator_is_waited_for(
    gate: RunningGate, oracle: GateOracle, machine: Machine, tmp_path: Path
) -> None:
    settings = inference(machine)
    machine.unplug()
    want(oracle, 1)
    async with running_device(tmp_path / "device", gate.url, inference=settings) as device:
        await until(lambda: runs_on(device, 1) == "cpu", 30)
        want(oracle, 2)
        await until(lambda: runs_on(device, 2) == "cpu", 30)
        machine.plug_in()
        await until(lambda: runs_on(device, 2) == "hailo8", 60)
        desire(oracle, {"colours": None})
        await until(lambda: device.slots.get("colours") is None)


async def test_a_file_for_another_chip_is_left_alone(
    gate: RunningGate, oracle: GateOracle, machine: Machine, tmp_path: Path
) -> None:
    want(oracle, 1, architecture="hailo15h")
    async with running_device(tmp_path / "device", gate.url, inference=inference(machine)) as device:
        await until(lambda: runs_on(device, 1) == "cpu", 30)
        slot = device.slots.get("colours")
        assert slot is not None
        assert slot.model.fault is None
