"""Live rules over HTTP: what is refused, who may, how versions rise, and the topic that follows the store."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from primespark.cli.main import app
from primespark.cloud.main import build, build_app
from primespark.cloud.rule_publisher import RulePublisher, ensure_rules_topic
from primespark.core.clock import to_rfc3339, utc_now
from primespark.core.settings import load_settings
from primespark.errors import UnavailableError
from primespark.store import access, server, stream_rules
from tests.integration.cloud.test_gate import Gate, batch, fact, gate
from tests.kafka.brokers import Broker

__all__ = ["gate"]
ROOT = Path(__file__).parents[3]
PATH = "/api/v1/streams/rules"
TOPIC = "primespark-streams-rules"
GOOD: dict[str, Any] = {
    "rule_id": "hot", "source_topic": "edge.telemetry", "target_topic": "cloud.hot", "aggregation_function": "avg",
    "value_field": "temperature_c", "window_config": {"size_seconds": 60},
}  # fmt: skip


@pytest.fixture(params=["embedded_broker", pytest.param("apache_kafka", marks=pytest.mark.prove(only=True))])
def broker(request: pytest.FixtureRequest) -> Broker:
    broker: Broker = request.getfixturevalue(request.param)
    return broker


@pytest.fixture
async def rules(broker: Broker, store_engine: Engine, tmp_path: Path) -> AsyncIterator[Gate]:
    """A cloud with a broker, in whose topic of rules are those of a store that is gone."""
    await ensure_rules_topic(broker.bootstrap_servers)
    await write(broker, "stray", b'{"version":7,"rule":{}}')
    url = store_engine.url.render_as_string(hide_password=False)
    kafka = {"bootstrap_servers": broker.bootstrap_servers, "embedded": broker.embedded}
    settings = load_settings(overrides={"cloud": {"store": {"url": url}, "kafka": kafka}})
    cloud = await asyncio.to_thread(build, settings, tmp_path)
    served = build_app(cloud)
    async with (
        served.router.lifespan_context(served),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=served), base_url="http://cloud") as client,
    ):
        client.publisher = served.state.rule_publisher  # type: ignore[attr-defined]
        yield Gate(client, cloud, (tmp_path / "cloud" / "admin.key").read_text())
    cloud.engine.dispose()


async def write(broker: Broker, rule_id: str, value: bytes | None) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    await producer.start()
    try:
        await producer.send_and_wait(TOPIC, value, key=rule_id.encode(), partition=0)
    finally:
        await producer.stop()


async def published(broker: Broker) -> dict[str, tuple[int, dict[str, Any]]]:
    """What the topic says: version and rule by name."""
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap_servers, enable_auto_commit=False)
    await consumer.start()
    try:
        partition = TopicPartition(TOPIC, 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        last: dict[str, bytes | None] = {}
        while await consumer.position(partition) < end:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                last.update({record.key.decode(): record.value for record in records})
    finally:
        await consumer.stop()
    found = {key: json.loads(value) for key, value in last.items() if value is not None}
    return {key: (value["version"], value["rule"]) for key, value in found.items()}


async def post(gate: Gate, rule: dict[str, Any], **headers: str) -> httpx2.Response:
    return await gate.client.post(PATH, json=rule, headers={**gate.admin, **headers})


async def test_a_rule_is_added_changed_and_deleted_and_the_topic_says_so_each_time(
    rules: Gate, broker: Broker
) -> None:  # fmt: skip
    first = await post(rules, GOOD)
    assert (first.status_code, first.json()["changed_by"]) == (201, "person:admin")
    version = first.json()["version"]
    assert first.headers["etag"] == f'"{version}"'
    said = await published(broker)
    assert said.keys() == {"hot"}
    assert said["hot"] == (version, first.json()["rule"])

    again = await post(rules, GOOD)
    assert (again.status_code, again.json()) == (200, first.json())
    other = {**GOOD, "aggregation_function": "max"}
    refused = await post(rules, other)
    assert (refused.status_code, refused.json()["code"]) == (412, "rule_exists")
    changed = await post(rules, other, **{"If-Match": first.headers["etag"]})
    assert changed.status_code == 200
    assert changed.json()["version"] > version
    assert (await post(rules, GOOD, **{"If-Match": first.headers["etag"]})).status_code == 412
    assert (await published(broker))["hot"][1]["aggregation_function"] == "max"

    shown = await rules.client.get(f"{PATH}/hot", headers=rules.admin)
    assert shown.json() == changed.json()
    known = {**rules.admin, "If-None-Match": shown.headers["etag"]}
    assert (await rules.client.get(f"{PATH}/hot", headers=known)).status_code == 304
    listed = (await rules.client.get(PATH, headers=rules.admin)).json()["items"]
    assert [(item["rule_id"], item["origin"]) for item in listed][-1] == ("hot", "live")
    assert {item["origin"] for item in listed[:-1]} == {"file"}

    stale = {**rules.admin, "If-Match": first.headers["etag"]}
    assert (await rules.client.delete(f"{PATH}/hot", headers=stale)).status_code == 412
    assert (await rules.client.delete(f"{PATH}/hot", headers=rules.admin)).status_code == 204
    assert await published(broker) == {}
    assert (await rules.client.delete(f"{PATH}/hot", headers=rules.admin)).status_code == 404
    assert (await post(rules, GOOD)).json()["version"] > changed.json()["version"]


@asynccontextmanager
async def listening(gate: Gate) -> AsyncIterator[int]:
    """The cloud at a port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        shell = uvicorn.Server(uvicorn.Config(gate.client._transport.app, lifespan="off", log_level="error"))  # type: ignore[attr-defined]
        serving = asyncio.create_task(shell.serve(sockets=[listener]))
        yield listener.getsockname()[1]
        shell.should_exit = True
        await serving


async def test_the_example_of_the_documentation_from_a_shell(
    rules: Gate, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = (ROOT / "docs" / "streams.md").read_text(encoding="utf-8").split("## Live rules")[1]
    example = section.split("```yaml\n")[1].split("```")[0]
    commands = section.split("```sh\n")[1].split("```")[0].splitlines()
    (tmp_path / "hot.yaml").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRIMESPARK_HOME", str(tmp_path))

    async def run(line: str) -> str:
        done = await asyncio.to_thread(CliRunner().invoke, app, line.split()[1:])
        assert done.exit_code == 0, done.output or done.exception
        # The cloud logs to the same stream.
        return "\n".join(said for said in done.stdout.splitlines() if "[info" not in said)

    async with listening(rules) as port:
        monkeypatch.setenv("PRIMESPARK_CLOUD__PORT", str(port))
        tried, added, listed = [await run(line) for line in commands[:3]]
        assert json.loads(tried)["records"] == 0
        assert added.startswith("hot is live, version ")
        assert "│ hot " in listed
        assert (await published(broker))["hot"][1]["percentile"] == 95
        (tmp_path / "hot.yaml").write_text(example.replace("95", "99"))
        changed = await run(f"{commands[1]} --replace")
        assert changed > added
        assert (await published(broker))["hot"][1]["percentile"] == 99
        await run(commands[3])
    assert await published(broker) == {}


async def test_the_topic_becomes_what_the_store_says_whoever_died_or_wrote_late(rules: Gate, broker: Broker) -> None:
    publisher: RulePublisher = rules.client.publisher  # type: ignore[attr-defined]

    def stored_and_died(connection: Any) -> Any:
        return stream_rules.put(connection, "hot", {"rule_id": "hot"}, "x", lambda _: None, most=9)[0]

    stored = await rules.cloud.transact(stored_and_died)
    await publisher.publish()
    assert await published(broker) == {"hot": (stored.version, {"rule_id": "hot"})}
    await write(broker, "hot", b'{"version":0,"rule":{}}')
    await write(broker, "other", b"no rule")
    await publisher.publish()
    assert await published(broker) == {"hot": (stored.version, {"rule_id": "hot"})}


async def test_a_topic_that_was_lost_is_made_and_filled_again(rules: Gate, broker: Broker) -> None:
    assert (await post(rules, GOOD)).status_code == 201
    before = await published(broker)
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        await admin.delete_topics([TOPIC])
    finally:
        await admin.close()
    # While the broker is still deleting it, who asks is told to ask again.
    async with asyncio.timeout(90):
        while True:
            with suppress(UnavailableError):
                await rules.client.publisher.publish()  # type: ignore[attr-defined]
                break
    assert await published(broker) == before


REFUSED: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"aggregation_function": "guess"}, 422, "bad_rule", "hot.aggregation_function"),
    ({"window_config": {"window_type": "sliding", "size_seconds": 10, "slide_seconds": 20}}, 422, "bad_rule",
     "hot.window_config"),
    ({"window_config": {"window_type": "session", "session_gap_seconds": 0}}, 422, "bad_rule",
     "hot.window_config.session_gap_seconds"),
    ({"aggregation_function": "percentile", "percentile": 101}, 422, "bad_rule", "hot.percentile"),
    ({"filters": [["cpu", "~", 1]]}, 422, "bad_rule", "hot.filters"),
    ({"rule_id": "a b"}, 422, "bad_rule", "a b.rule_id"),
    ({"target_topic": "primespark-streams-rules"}, 422, "bad_rule", None),
    ({"surprise": 1}, 422, "bad_rule", "hot.surprise"),
    ({"filters": [["a", "==", "\x00"]]}, 422, "unstorable_value", None),
    ({"filters": [["a", "==", "x" * 20_000]]}, 422, "bad_rule", None),
    ({"rule_id": "cpu_avg_per_minute"}, 409, "rule_of_file", None),
]  # fmt: skip


async def test_what_cannot_work_is_refused_with_its_place(gate: Gate) -> None:
    gate.client._transport.app.state.rule_publisher = RulePublisher(gate.cloud, 0)  # type: ignore[attr-defined]
    for change, status, code, place in REFUSED:
        answer = await post(gate, {**GOOD, **change})
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (status, code), problem
        assert problem["remedy"]
        if place is not None:
            assert [entry["loc"] for entry in problem["errors"]] == [place]
    assert gate.count("control.stream_rule") == 0


async def test_operators_change_rules_and_viewers_see_them(gate: Gate) -> None:
    with gate.cloud.engine.begin() as connection:
        viewer = {"Authorization": f"Bearer {access.create_api_key(connection, 'eve', 'viewer')}"}
    device = await gate.enrol()
    for headers, read, change in (({}, 401, 401), (device, 403, 403), (viewer, 200, 403), (gate.admin, 200, 503)):
        assert (await gate.client.get(PATH, headers=headers)).status_code == read
        assert (await gate.client.post(PATH, json=GOOD, headers=headers)).status_code == change
        assert (await gate.client.delete(f"{PATH}/hot", headers=headers)).status_code == change
    refused = (await post(gate, GOOD)).json()
    assert (refused["code"], gate.count("control.stream_rule")) == ("streams_off", 0)


async def test_a_rule_that_the_broker_has_not_taken_is_stored_and_said_to_be(gate: Gate) -> None:
    gate.client._transport.app.state.rule_publisher = RulePublisher(gate.cloud, 0.05)  # type: ignore[attr-defined]
    for _ in range(2):
        answer = await post(gate, GOOD)
        assert (answer.status_code, answer.json()["code"]) == (503, "rules_not_published")
    assert gate.count("control.stream_rule") == 1


async def test_a_dry_run_says_what_the_newest_facts_make_of_a_rule_and_stores_nothing(gate: Gate) -> None:
    key, start = await gate.enrol(), utc_now().replace(second=0, microsecond=0) - timedelta(minutes=30)
    facts = [
        fact(seq, time=to_rfc3339(start + timedelta(seconds=10 * (seq - 1))), value={"temperature_c": float(seq)})
        for seq in range(1, 31)
    ]
    for number in range(3):
        answer = await gate.push(key, batch(number + 1, facts[number * 10 : number * 10 + 10]))
        assert answer.status_code == 200, answer.text
    rule = {**GOOD, "window_config": {"size_seconds": 60, "watermark_scope": "key"}, "aggregation_function": "sum"}

    async def ask(rule: dict[str, Any], **query: int) -> dict[str, Any]:
        answer = await gate.client.post(f"{PATH}/dry-run", params=query, json=rule, headers=gate.admin)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def minutes(said: dict[str, Any]) -> list[tuple[float, float, int]]:
        start_ms = start.timestamp() * 1000
        return [((one["window_start"] - start_ms) / 60_000, one["value"], one["count"]) for one in said["results"]]

    # Rows 1 to 6 are the first minute; the last minute's end is 10 s ahead of the newest row less the disorder.
    whole = [(minute, float(sum(range(6 * minute + 1, 6 * minute + 7))), 6) for minute in range(4)]
    said = await ask(rule)
    assert (said["records"], said["complete"], minutes(said)) == (30, True, whole)
    newest = await ask({**rule, "filters": [["temperature_c", "!=", 24.0]]}, records=9)
    assert (newest["records"], newest["counters"]["filtered"]) == (9, 1)
    assert minutes(newest) == [(3, 22.0 + 23.0, 2)]
    async with gate.client._transport.app.state.trials:  # type: ignore[attr-defined]
        busy = await gate.client.post(f"{PATH}/dry-run", json=rule, headers=gate.admin)
    assert (busy.status_code, busy.json()["code"]) == (429, "overloaded")
    refused = await gate.client.post(f"{PATH}/dry-run", json={**rule, "source_topic": "x"}, headers=gate.admin)
    assert (refused.status_code, refused.json()["code"]) == (422, "topic_not_kept")
    assert gate.count("control.stream_rule") == 0


async def test_a_store_restored_from_a_backup_gives_no_version_again(gate: Gate) -> None:
    def put(connection: Any, name: str) -> int:
        return stream_rules.put(connection, "hot", {"name": name}, "x", lambda _: None, most=9)[0].version

    def restored(connection: Any) -> int:
        connection.execute(text("SELECT setval('control.stream_rule_version', 1)"))
        return server.begin_epoch(connection, utc_now(), "test")

    versions = [await gate.cloud.transact(partial(put, name=name)) for name in ("a", "b", "c")]
    epochs = []
    for name in ("d", "e"):
        epochs.append(await gate.cloud.transact(restored))
        versions.append(await gate.cloud.transact(partial(put, name=name)))
    assert versions == sorted(set(versions))
    assert epochs[1] > epochs[0]
