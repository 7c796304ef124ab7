"""A rule by site, whose records lie in all partitions: workers hand them to one another, also when one is killed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers import wait_until
from tests.integration.streams.stage import DEVICES, Sent, Stage, averages, equals, recording, singles

SITES = dict(zip(DEVICES, ["north", "north", "north", "south", "south", "south"], strict=True))
REPARTITION_TOPIC = "primespark-streams-repartition"

on_apache_kafka = pytest.mark.parametrize("broker", ["apache_kafka"], indirect=True)


def located(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "site": SITES[row["device_id"]]} for row in rows]


def by_site(rows: list[dict[str, Any]]) -> dict[tuple[str, int], tuple[float, int]]:
    return averages([{**row, "device_id": row["site"]} for row in rows])


def write_rule(stage: Stage) -> None:
    stage.write_rules(
        {"watermark_scope": "partition", "allowed_lateness_seconds": None}, aggregation_function="avg",
        value_field="cpu_percent", group_by=["site"],
    )  # fmt: skip


def test_a_group_has_the_records_of_all_partitions(stage: Stage) -> None:
    write_rule(stage)
    rows = located(recording(DEVICES, minutes=20))
    worker = stage.start_ready()
    stage.publish([Sent(b"no records", 0)], REPARTITION_TOPIC)
    stage.publish(singles(rows))
    wait_until(lambda: equals(stage, by_site(rows)), 40)
    assert worker.counter("routed") == len(rows)
    assert (worker.counter("unclaimed"), worker.counter("poison")) == (0, 1)
    assert worker.stop()[0] == 0


@on_apache_kafka
def test_two_workers_of_which_one_is_killed(stage: Stage) -> None:
    write_rule(stage)
    rows = located(recording(DEVICES, minutes=90))
    third = len(rows) // 3
    victim, survivor = stage.start_ready("worker-0"), stage.start_ready("worker-1")
    stage.publish(singles(rows[:third]))
    wait_until(lambda: stage.counted() >= third // 2, 30)
    stage.publish(singles(rows[third : 2 * third]))
    victim.kill()
    stage.start("worker-2")
    stage.publish(singles(rows[2 * third :]))
    wait_until(lambda: equals(stage, by_site(rows)), 60)
    assert survivor.stop()[0] == 0
