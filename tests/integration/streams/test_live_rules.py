"""Live rules as workers take them up from their topic: added, changed, deleted, with workers killed and joining."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from primespark.cloud.rule_publisher import ensure_rules_topic
from primespark.errors import ConfigurationError
from primespark.windows.rules import AggregationRule, parse_rules
from streams.rule_follower import RuleFollower
from tests.helpers import wait_until
from tests.integration.streams.stage import DEVICES, START_MS, Stage, Worker, recording, singles

MINUTE_MS = 60_000
RULE: dict[str, Any] = {
    "window_config": {"size_seconds": 60, "watermark_scope": "key"}, "aggregation_function": "count",
    "source_topic": "in", "target_topic": "out",
}  # fmt: skip


def say(stage: Stage, rule_id: str, version: int, **fields: Any) -> None:
    rule = {**RULE, "rule_id": rule_id, "source_topic": stage.source, "target_topic": f"{stage.name}.live", **fields}
    stage.say_rule(rule_id, json.dumps({"version": version, "rule": rule}).encode())


def told(worker: Worker, event: str, rule_id: str) -> int:
    """How often the worker logged it."""
    lines = [json.loads(line) for line in worker.log.read_text().splitlines() if line.startswith("{")]
    return sum(line["event"] == event and rule_id in (line.get("rule_id"), line.get("key")) for line in lines)


def counts(rows: list[dict[str, Any]]) -> dict[tuple[str, int], int]:
    """(device, start ms) to the number of rows, without the windows left open by a watermark 10 s behind."""
    newest = {row["device_id"]: row["ts"] for row in rows}
    found: dict[tuple[str, int], int] = {}
    for row in rows:
        key = (row["device_id"], row["ts"] // MINUTE_MS * MINUTE_MS)
        found[key] = found.get(key, 0) + 1
    return {key: count for key, count in found.items() if key[1] + MINUTE_MS <= newest[key[0]] - 10_000}


def counted(stage: Stage, rule_id: str) -> dict[tuple[str, int], int]:
    return {key: count for key, (_value, count, _revision) in stage.windows(rule_id).items()}


@pytest.mark.parametrize(
    "broker", ["embedded_broker", pytest.param("apache_kafka", marks=pytest.mark.prove(only=True))], indirect=True
)
def test_a_rule_is_added_kept_over_a_kill_changed_and_deleted(stage: Stage) -> None:
    rule_id, rows = f"{stage.name}-live", recording(["a", "b"], minutes=12)
    parts = [[row for row in rows if row["ts"] - START_MS < minute * MINUTE_MS] for minute in (2, 5, 7, 10, 13)]
    before, added, over_kill, changed, after = (
        part[len(last) :] for part, last in zip(parts, [[], *parts], strict=False)
    )
    worker = stage.start_ready()
    stage.publish(singles(before))
    wait_until(lambda: worker.counter("events") >= len(before))
    stage.say_rule(f"{rule_id}-broken", b'{"rule": {"aggregation_function": "guess"}}')
    say(stage, rule_id, 1)
    wait_until(lambda: told(worker, "rule_taken_up", rule_id) == 1)
    assert told(worker, "rule_skipped", f"{rule_id}-broken") == 1
    stage.publish(singles(added))
    wait_until(lambda: counted(stage, rule_id) == counts(added))

    worker.kill()
    stage.publish(singles(over_kill))
    worker = stage.start_ready()
    wait_until(lambda: counted(stage, rule_id) == counts([*added, *over_kill]))

    # Before it began to read, or it would have read on without the rule's windows.
    log = worker.log.read_text()
    assert log.rindex('"rule_taken_up"') < log.rindex('"stream_worker_starting"')

    told_before = told(worker, "rule_taken_up", rule_id)
    say(stage, rule_id, 2, aggregation_function="sum", value_field="cpu_percent")
    wait_until(lambda: told(worker, "rule_taken_up", rule_id) == told_before + 1)
    stage.publish(singles(changed))
    expected = counts([*added, *over_kill]) | counts(changed)
    wait_until(lambda: counted(stage, rule_id) == expected)
    assert all(stage.windows(rule_id)[key][0] != count for key, count in counts(changed).items())

    stage.say_rule(rule_id, None)
    wait_until(lambda: told(worker, "rule_dropped", rule_id) == 1)
    stage.publish(singles(after))
    wait_until(lambda: counted(stage, stage.name) == counts(rows))
    assert counted(stage, rule_id) == expected


@pytest.mark.parametrize("broker", ["embedded_broker"], indirect=True)
async def test_a_follower_tells_of_differences_and_of_nothing_that_is_no_rule(stage: Stage) -> None:
    told: list[tuple[str, str]] = []
    ready = asyncio.Event()

    async def take_up(rule_id: str, rule: AggregationRule | None) -> None:
        told.append((rule_id.removeprefix(stage.name), rule.aggregation_function.value if rule else "none"))
        if rule is not None and rule.aggregation_function == "first":
            raise ConfigurationError("more partitions than snapshots have")
        if rule_id.endswith("end"):
            ready.set()

    def write(changes: dict[str, str | bytes | None]) -> None:
        for name, function in changes.items():
            if isinstance(function, str):
                say(stage, stage.name + name, 1, aggregation_function=function, value_field="cpu_percent")
            else:
                stage.say_rule(stage.name + name, function)

    (configured,) = parse_rules([{**RULE, "rule_id": f"{stage.name}configured"}], "test")
    follower = RuleFollower(stage.broker.bootstrap_servers, [configured], take_up)
    await ensure_rules_topic(stage.broker.bootstrap_servers)
    foreign = json.dumps({"version": 1, "rule": {**RULE, "rule_id": "another"}}).encode()
    await asyncio.to_thread(
        write, {"configured": "max", "kept": "max", "gone": "max", "not": b"[1]", "key": foreign, "cannot": "first"}
    )
    await follower.catch_up()
    assert sorted(told) == [("cannot", "first"), ("cannot", "none"), ("gone", "max"), ("kept", "max")]
    told.clear()
    await asyncio.to_thread(write, {"gone": None, "kept": b"{", "new": "min", "end": "sum"})
    following = asyncio.create_task(follower.follow())
    await asyncio.wait_for(ready.wait(), 10)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert sorted(told) == [("end", "sum"), ("gone", "none"), ("new", "min")]


# The bundled broker has no second member: it never forgets one.
@pytest.mark.prove(only=True)
@pytest.mark.parametrize("broker", ["apache_kafka"], indirect=True)
def test_workers_take_up_a_rule_of_another_topic_each_with_its_partitions(stage: Stage) -> None:
    rule_id, topic, rows = f"{stage.name}-live", f"{stage.name}.other", recording(DEVICES, minutes=6)
    workers = [stage.start_ready("worker-0"), stage.start_ready("worker-1")]
    say(stage, rule_id, 1, source_topic=topic)
    # They write one log.
    wait_until(lambda: workers[0].log.read_text().count('"subscription_changed"') == 2, 40)
    wait_until(lambda: all(worker.is_ready for worker in workers), 40)
    stage.publish(singles(rows), topic)
    stage.publish(singles(rows))
    wait_until(lambda: counted(stage, rule_id) == counts(rows), 40)
    wait_until(lambda: counted(stage, stage.name) == counts(rows), 40)
    assert all(worker.stop()[0] == 0 for worker in workers)
