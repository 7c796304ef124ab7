"""The chip is killed every few seconds under load: each request is answered in time or told so, none wrongly."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from primespark.inference.images import decode_image
from primespark.inference.models import DETECTOR, load_bundled
from primespark.inference.samples import sample_images
from tests.colours import LABELS, hef
from tests.doubles.hailo_platform._machine import Machine
from tests.helpers import rounds, wait_until
from tests.integration.edge_agent.test_process import Process, running

VERSION = "4.23.0"
KILLS = rounds(4, 15)
CLIENTS = 3
DEADLINE_MS = 2000
# Driver failed, connection closed, driver waited in vain, frame dropped, no free accelerator.
STATUSES = (36, 62, 87, 63, 74)
DOUBLES = Path(__file__).parent.parent / "doubles"
IMAGES = {name: data for name, data in sample_images() if name in ("coffee.png", "chelsea.png", "china.jpg")}

Box = tuple[str, float, float, float, float]


@dataclass
class Tally:
    """What the clients saw."""

    devices: Counter[str] = field(default_factory=Counter)
    told_late: int = 0
    wrong: list[Any] = field(default_factory=list)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(VERSION, tmp_path / "machine")
    machine.plug_in()
    yield machine
    machine.revive()


@pytest.fixture
def device(tmp_path: Path, machine: Machine) -> Iterator[Process]:
    (tmp_path / "colours.hef").write_bytes(hef(by_score=False))
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    settings = {
        "PYTHONPATH": str(DOUBLES),
        "HAILO_DOUBLE_VERSION": VERSION,
        "HAILO_DOUBLE_ROOT": str(machine.root),
        "PRIMESPARK_FEATURES__CAPTURE": "false",
        # Each answer is one that was computed.
        "PRIMESPARK_EDGE__INFERENCE__RESULT_CACHE_ENTRIES": "0",
        "PRIMESPARK_EDGE__INFERENCE__ACCELERATOR__DETECTOR": str(tmp_path / "colours.hef"),
        "PRIMESPARK_EDGE__INFERENCE__ACCELERATOR__LABELS": str(tmp_path / "labels.txt"),
        "PRIMESPARK_EDGE__INFERENCE__ACCELERATOR__SYSTEM_ROOT": str(machine.root),
    }
    with running(tmp_path, **settings) as process:
        wait_until(lambda: answers_on(process) == "hailo8", 60)
        yield process


def answers_on(process: Process) -> str | None:
    try:
        models = process.get("/api/v1/inference/stats")["models"]
    except (httpx2.HTTPError, OSError):
        return None
    return str(models["colours"]["device"]) if "colours" in models else None


def untold_of_the_chip(process: Process) -> set[str]:
    """The readings that are not there, the chip being opened anew at times."""
    return set(process.get("/api/v1/inference/stats")["hardware"]["accelerator"]["unavailable"])


@pytest.mark.prove
async def test_each_request_is_answered_in_time_or_told_so(device: Process, machine: Machine) -> None:
    key = (device.folder / "local.key").read_text()
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(base_url=device.url, headers=headers, timeout=30) as client:
        expected = await asked_once(client)
        tally, done = Tally(), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(ask(client, number, expected, tally, done))
            await kill_again_and_again(machine, tally)
            done.set()
        assert tally.wrong == []
        assert min(tally.devices["hailo8"], tally.devices["cpu"]) > 20, tally
        await asyncio.to_thread(wait_until, lambda: answers_on(device) == "hailo8", 30)
        answer = await client.post("/api/v1/inference", content=IMAGES["coffee.png"], headers=jpeg("coffee.png"))
        assert answer.json()["device"] == "hailo8"
        health = (await client.get("/health")).json()
        assert (health["status"], health["models_standing_by"]) == ("healthy", {})
        metrics = (await client.get("/metrics")).text
        assert 'primespark_inference_on_accelerator{model="colours"} 1.0' in metrics
        await asyncio.to_thread(wait_until, lambda: untold_of_the_chip(device) == {"power"}, 30)
        metrics = (await client.get("/metrics")).text
        assert 'primespark_accelerator_temperature_celsius{sensor="ts0"} 47.5' in metrics
        assert 'primespark_hardware_reading_available{reading="accelerator_power"} 0.0' in metrics


async def kill_again_and_again(machine: Machine, tally: Tally) -> None:
    chance = random.Random(5)
    for number in range(KILLS):
        before = tally.devices["hailo8"]
        machine.kill(STATUSES[number % len(STATUSES)])
        await asyncio.sleep(chance.uniform(0.5, 1.5))  # how long it is dead, not a synchronisation
        machine.revive()
        async with asyncio.timeout(30):
            while tally.devices["hailo8"] <= before + 5:  # noqa: ASYNC110 (the clients count)
                await asyncio.sleep(0.02)


async def asked_once(client: httpx2.AsyncClient) -> dict[str, dict[str, list[Box]]]:
    """What each device answers to each image: the chip by asking it while it is well, the processor by itself."""
    standby = await asyncio.to_thread(load_bundled, DETECTOR, 1, 0.4)
    expected: dict[str, dict[str, list[Box]]] = {"hailo8": {}, "cpu": {}}
    for name, data in IMAGES.items():
        answer = (await client.post("/api/v1/inference", content=data, headers=jpeg(name))).json()
        assert answer["device"] == "hailo8"
        expected["hailo8"][name] = boxes(answer["predictions"])
        expected["cpu"][name] = boxes(standby.predict(decode_image(data, 1_000_000)))
    standby.close()
    return expected


async def ask(
    client: httpx2.AsyncClient,
    number: int,
    expected: dict[str, dict[str, list[Box]]],
    tally: Tally,
    done: asyncio.Event,
) -> None:
    chance = random.Random(number)
    while not done.is_set():
        name = chance.choice(sorted(IMAGES))
        begun = time.monotonic()
        answer = await client.post(
            "/api/v1/inference", content=IMAGES[name], headers=jpeg(name), params={"deadline_ms": DEADLINE_MS}
        )
        seconds = time.monotonic() - begun
        if answer.status_code == 504:
            tally.told_late += 1
        elif answer.status_code != 200 or seconds > DEADLINE_MS / 1000 + 1:
            tally.wrong.append((answer.status_code, seconds, answer.text[:200]))
        else:
            found = answer.json()
            tally.devices[found["device"]] += 1
            if boxes(found["predictions"]) != expected[found["device"]][name]:
                tally.wrong.append((name, found["device"]))


def boxes(predictions: list[Any]) -> list[Box]:
    return [(one["label"], *(round(one["box"][side], 1) for side in sorted(one["box"]))) for one in predictions]


def jpeg(name: str) -> dict[str, str]:
    return {"Content-Type": "image/png" if name.endswith("png") else "image/jpeg"}
