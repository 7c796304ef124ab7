"""What four processes send at once: the same batches, each in its own order of devices, and the same samples."""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from primespark.core.identifiers import sha256_hex
from primespark.store import database, gate, samples
from primespark.store.samples import Sample
from primespark.sync.records import PushRequest
from tests.integration.store.builders import T0, batch, fact

PROCESSES, BATCHES, PER_BATCH, DEVICES = 4, 6, 20, ("edge-1", "edge-2")
INSERTED, AT_ONCE = 900, 220

# What was told of each batch, with its device and number, and how many inserted samples were new.
Told = tuple[list[tuple[str, str, int]], int]


@dataclass(frozen=True, slots=True)
class Given:
    """A sample as it is sent; `metric` and `device` are its series."""

    metric: str
    device: str
    time: datetime
    seq: int
    value: float


def of_batch(device: str, number: int) -> list[Given]:
    """Samples of a batch: over three days, late and early, some of one moment."""
    chance = random.Random(f"{device} {number}")
    first = (number - 1) * PER_BATCH + 1
    seconds = [chance.randrange(0, 3 * 86_400, 1800) + chance.randrange(3) for _ in range(PER_BATCH)]
    return [
        Given("cpu_percent", device, T0 + timedelta(seconds=second), first + at, chance.uniform(0, 100))
        for at, second in enumerate(seconds)
    ]


def of_insert() -> list[Given]:
    """Samples that people insert, in chunks: each has one key, and every process sends them in an order of its own."""
    chance = random.Random(5)
    times = [T0 + timedelta(seconds=chance.randrange(2 * 86_400)) for _ in range(INSERTED)]
    return [Given(f"m{at % 3}", "x", time, at, chance.uniform(-5, 5)) for at, time in enumerate(times)]


def request_of(device: str, number: int) -> PushRequest:
    records = [fact(one.seq, {one.metric: one.value}, time=one.time) for one in of_batch(device, number)]
    return batch(number, records, device)


def take_all(url: str, process: int) -> Told:
    """Every batch in the order of its device, and every sample, as soon as the others are there too."""
    engine, chance = database.connect(url, pool_size=1), random.Random(process)
    _together.wait(60)
    told, inserted = list[tuple[str, str, int]](), 0
    waiting = {device: list(range(1, BATCHES + 1)) for device in DEVICES}
    while any(waiting.values()):
        device = chance.choice([device for device in DEVICES if waiting[device]])
        number = waiting[device].pop(0)
        request = request_of(device, number)
        with engine.begin() as connection:
            digest = sha256_hex(request.model_dump_json().encode())
            response = gate.apply_batch(connection, request, digest, datetime.now(UTC))
        told.append((response.status, device, number))
    rows = [Sample(one.metric, one.device, "test", {}, one.time, one.seq, one.value) for one in of_insert()]
    chance.shuffle(rows)
    for first in range(0, len(rows), AT_ONCE):
        with engine.begin() as connection:
            inserted += samples.insert(connection, rows[first : first + AT_ONCE]).inserted
    engine.dispose()
    return told, inserted


_context = multiprocessing.get_context("fork")
_together = _context.Barrier(PROCESSES)


def _main(url: str) -> None:
    """A line of answers for each line of input."""
    # One reads the modules, which takes longer than all they do, and none has a thread yet.
    with _context.Pool(PROCESSES) as pool:
        for _ in sys.stdin:
            places = [(url, process) for process in range(PROCESSES)]
            print(json.dumps(pool.starmap(take_all, places, chunksize=1)), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
