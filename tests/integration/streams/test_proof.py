"""Facts from the gate to the store with everything between killed: each window is right, nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import rounds, wait_until
from tests.integration.streams import proof
from tests.integration.streams.proof import Cloud, Fact, Fleet
from tests.integration.streams.stage import Stage
from tests.kafka import brokers
from tests.kafka.brokers import Broker

DEVICES = 30
FACTS_PER_DEVICE = rounds(1_000, 10_000)
# A member that was killed is missed after ten seconds.
LONGEST_S = 240


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[Broker]:
    """A broker that no other test needs, as it is killed."""
    try:
        with brokers.apache_kafka(tmp_path) as broker:
            yield broker
    except brokers.ToolMissingError as error:
        pytest.skip(str(error))


class World:
    """Broker, cloud and workers, and what devices have to say."""

    def __init__(self, broker: Broker, store_url: str, folder: Path, seed: int) -> None:
        self.broker = broker
        self.store_url = store_url
        self.chance = random.Random(seed)
        self.cloud = Cloud(broker, store_url, folder)
        self.stage = Stage(broker, store_url, folder)
        proof.write_rules(folder / "rules.yaml")
        self.fleet = Fleet(self.stage)
        start = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(seconds=FACTS_PER_DEVICE + 3600)
        self.facts = {
            f"device-{number}": proof.facts_of(f"device-{number}", FACTS_PER_DEVICE, start, self.chance)
            for number in range(DEVICES)
        }
        everything: list[Fact] = [fact for own in self.facts.values() for fact in own]
        self.expected = {
            **{("minutes", *key): values for key, values in proof.expected_windows(everything, 60, 60).items()},
            **{("sliding", *key): values for key, values in proof.expected_windows(everything, 120, 60).items()},
        }

    def feed(self) -> None:
        """Push everything, the devices taking turns."""
        for batch in range(FACTS_PER_DEVICE // proof.ROWS_PER_BATCH):
            for own in self.facts.values():
                first = batch * proof.ROWS_PER_BATCH
                self.cloud.push(own[first : first + proof.ROWS_PER_BATCH], batch + 1)

    def share_done(self) -> float:
        """How much of what is to come is in the store."""
        self.fleet.assert_alive()
        return proof.number_stored(self.store_url) / len(self.expected)

    def wait_for(self, share: float) -> None:
        """Until so much is done."""
        wait_until(lambda: self.share_done() >= share, 90, interval_s=0.1)

    def is_right(self) -> bool:
        """The store has exactly the expected windows."""
        found = proof.stored(self.store_url)
        return found.keys() == self.expected.keys() and all(
            found[key][1] == len(values)
            and found[key][0] == pytest.approx(np.mean(values) if key[0] == "minutes" else max(values), rel=1e-9)
            for key, values in self.expected.items()
        )

    def disturb(self, disturbances: list[Callable[[], object]]) -> None:
        """Do all of it in random order while facts come in and windows fire."""
        self.chance.shuffle(disturbances)
        with ThreadPoolExecutor(1) as pool:
            feeding = pool.submit(self.feed)
            for number, disturbance in enumerate(disturbances):
                self.wait_for(0.02 + 0.8 * number / len(disturbances))
                disturbance()
            feeding.result()

    def assert_all_is_there_once(self) -> None:
        """Windows in the store and in the topic are those of the oracle, and everything is committed."""
        wait_until(self.is_right, LONGEST_S, interval_s=0.5)
        wait_until(lambda: asyncio.run(proof.uncommitted(self.broker)) == 0, 60, interval_s=0.5)
        assert self.is_right()
        published = proof.newest_published(self.stage.read(proof.TARGET))
        stored = proof.stored(self.store_url)
        assert published.keys() == stored.keys()
        for key, told in stored.items():
            # A late fact taken in again after a crash says the same under the same revision, but for rounding.
            assert published[key][1:] == told[1:]
            assert published[key][0] == pytest.approx(told[0], rel=1e-9)


@pytest.fixture
def world(own_kafka: Broker, postgres_url: str, tmp_path: Path) -> Iterator[World]:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    world = World(own_kafka, postgres_url, tmp_path, seed)
    world.cloud.enrol(world.facts)
    world.cloud.start()
    world.fleet.join()
    world.fleet.join()
    yield world
    world.stage.close()
    world.cloud.close()


def restart_cloud(world: World) -> None:
    world.cloud.kill()
    world.cloud.start()


@pytest.mark.prove
def test_kills_of_workers_and_relay_while_workers_come_and_go(world: World) -> None:
    kill_worker = partial(world.fleet.kill, world.chance)
    world.disturb([
        *[kill_worker] * rounds(1, 5), *[partial(restart_cloud, world)] * rounds(1, 2), world.fleet.join,
        partial(world.fleet.leave, world.chance),
    ])  # fmt: skip
    world.assert_all_is_there_once()


@pytest.mark.prove(only=True)
def test_a_kill_of_the_broker(world: World) -> None:
    def restart_broker() -> None:
        world.broker.kill()
        world.broker.start()

    world.disturb([partial(world.fleet.kill, world.chance), restart_broker])
    world.assert_all_is_there_once()


@pytest.mark.prove(only=True)
def test_a_worker_that_stood_still_while_another_took_its_place(world: World) -> None:
    """It wakes up with windows, results and a snapshot of an assignment that is over."""

    def pause() -> None:
        worker = world.fleet.pause(world.chance)
        before = world.share_done()
        try:
            # The group goes on without it: what it held is done by the other.
            world.wait_for(min(0.99, before + 0.3))
        finally:
            worker.process.send_signal(signal.SIGCONT)

    world.disturb([pause])
    world.assert_all_is_there_once()
