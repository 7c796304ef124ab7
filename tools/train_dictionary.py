"""Train the zstd dictionary of small batches: `python tools/train_dictionary.py` writes it into the package.

What it learns from is made here, in the shapes in which devices send; no fact of anybody is in it. A dictionary that
was published stays in the package under its number as long as a device may use it; a new one gets the next.
"""

from __future__ import annotations

import json
import random
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from edge_agent.queue import NewFact, compose, encode
from primespark.sync.records import DataClass

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NUMBER = 1
BYTES = 16 * 1024
SAMPLES = 3000
RECORDS = (1, 1, 2, 3, 5, 10, 20)
SEED = 20260101
TARGET = Path(__file__).parents[1] / "primespark" / "_data" / "wire" / f"batch-{NUMBER}.zdict"
_LABELS = ("person", "bicycle", "car", "dog", "cat", "chair", "cup", "bird", "truck", "bottle")


def main() -> None:
    """Write the dictionary."""
    chance = random.Random(SEED)  # noqa: S311 (samples are no secret)
    trained = zstd.train_dict([_batch(chance) for _ in range(SAMPLES)], BYTES)
    # With a number of ours in place of a random one, a frame tells which it needs.
    numbered = bytearray(trained.dict_content)
    numbered[4:8] = NUMBER.to_bytes(4, "little")
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_bytes(numbered)
    sys.stdout.write(f"{TARGET.name}: {len(numbered)} bytes\n")


def _batch(chance: random.Random) -> bytes:
    device = f"{chance.choice(('edge', 'cam', 'line', 'store'))}-{chance.randrange(1, 200)}"
    device_boot, at = str(uuid.UUID(int=chance.getrandbits(128))), datetime(2026, 1, 1, tzinfo=UTC)
    at += timedelta(seconds=chance.random() * 3e7)
    monotonic_ns, seq = chance.randrange(10**10, 10**14), chance.randrange(1, 10**6)
    records = []
    for _ in range(chance.choice(RECORDS)):
        step_s = chance.choice((0.5, 1.0, 10.0)) * (1 + chance.random() / 100)
        at, monotonic_ns, seq = at + timedelta(seconds=step_s), monotonic_ns + int(step_s * 1e9), seq + 1
        kind, value, stream = chance.choice((_telemetry, _telemetry, _metric, _result, _event))(chance)
        name, tail = encode(NewFact(kind, value, at, device_boot, monotonic_ns, stream))
        records.append(compose(name, seq, tail))
    milliseconds = int(at.timestamp() * 1000)
    head = {
        "v": 1, "replica_id": device, "epoch": chance.choice((1, 1, 2)), "batch_seq": chance.randrange(1, 10**5),
        "hlc": f"{milliseconds:013d}-0000-{device}",
    }  # fmt: skip
    return json.dumps(head).encode()[:-1] + b',"records":[' + b",".join(records) + b"]}"


def _telemetry(chance: random.Random) -> tuple[DataClass, dict[str, Any], str]:
    value = {
        "cpu_percent": round(chance.random() * 100, 1), "memory_percent": round(20 + chance.random() * 60, 1),
        "swap_percent": round(chance.choice((0.0, chance.random() * 10)), 1),
        "disk_percent": round(10 + chance.random() * 80, 1),
        # As the kernel counts it.
        "load_1m": chance.randrange(2048 * 4) / 2048, "load_5m": chance.randrange(2048 * 3) / 2048,
    }  # fmt: skip
    if chance.random() < 0.7:
        value["temperature_celsius"] = round(35 + chance.random() * 40, 1)
    return DataClass.TELEMETRY, value, ""


def _metric(chance: random.Random) -> tuple[DataClass, dict[str, Any], str]:
    name = chance.choice(("temperature_celsius", "pressure_pascal", "people_count", "door_open", "power_watts"))
    labels = {"zone": chance.choice("abcd")} if chance.random() < 0.5 else {}
    return DataClass.METRICS, {"name": name, "value": round(chance.random() * 100, 2), "labels": labels}, ""


def _model(chance: random.Random) -> dict[str, Any]:
    return {
        "model": chance.choice(("coco-ssd", "efficientnet-lite0", "movenet-lightning")),
        "model_version": chance.randrange(1, 5), "model_digest": f"{chance.getrandbits(256):064x}",
    }  # fmt: skip


def _detection(chance: random.Random) -> dict[str, Any]:
    box = {name: round(chance.random() * 640, 2) for name in ("x_min", "y_min", "x_max", "y_max")}
    return {
        "label": chance.choice(_LABELS), "class_id": chance.randrange(90), "score": round(chance.random(), 4),
        "box": box,
    }  # fmt: skip


def _seen(chance: random.Random) -> dict[str, str]:
    return {
        "input_sha256": f"{chance.getrandbits(256):064x}", "input_digest_of": chance.choice(("file", "pixels", "rows")),
    }  # fmt: skip


def _result(chance: random.Random) -> tuple[DataClass, dict[str, Any], str]:
    value = {
        **_model(chance), "model_type": "object_detection", "device": chance.choice(("cpu", "cpu", "hailo8")),
        "source": "samples", "predictions": [_detection(chance) for _ in range(chance.randrange(4))],
        "latency_ms": round(5 + chance.random() * 50, 3), **_seen(chance),
    }  # fmt: skip
    return DataClass.INFERENCE_RESULTS, value, ""


def _event(chance: random.Random) -> tuple[DataClass, dict[str, Any], str]:
    found = _detection(chance)
    value = {
        "event": "person_enters", "source": "samples", "frame": f"{chance.randrange(1000)}.jpg",
        "label": found["label"], "score": found["score"], "track": chance.randrange(100),
        "duration_s": round(chance.random() * 10, 3), "box": found["box"],
        "image_width": 640, "image_height": 480, **_model(chance), **_seen(chance), "snapshot": None,
    }  # fmt: skip
    return DataClass.INFERENCE_RESULTS, value, "events"


if __name__ == "__main__":
    main()
