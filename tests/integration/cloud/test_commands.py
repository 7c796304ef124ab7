"""Commands as people issue them and devices are told them: each sent until it is answered, and answered once."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from primespark.cli.main import app
from primespark.core.clock import to_rfc3339, utc_now
from primespark.store import access, commands, documents, rounds, tombstones
from primespark.sync.records import Command, PullResponse
from tests.integration.cloud.test_gate import Gate, batch, fact, gate

__all__ = ["gate"]
PATH = "/api/v1/devices/edge-1/commands"
HOUR = timedelta(hours=1)


async def issue(gate: Gate, name: str = "sync_now", **fields: Any) -> dict[str, Any]:
    answer = await gate.client.post(PATH, json={"name": name, **fields}, headers=gate.admin)
    assert answer.status_code == 202, answer.text
    issued: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"{PATH}/{issued['command_id']}"
    return issued


async def show(gate: Gate, issued: dict[str, Any]) -> dict[str, Any]:
    answer = await gate.client.get(f"{PATH}/{issued['command_id']}", headers=gate.admin)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


async def pull(gate: Gate, key: dict[str, str], cursor: int = 0, **query: Any) -> dict[str, Any]:
    answer = await gate.client.get("/sync/v1/pull", params={"cursor": cursor, "groups": "", **query}, headers=key)
    assert answer.status_code == 200
    page: dict[str, Any] = answer.json()
    return page


def sent(page: dict[str, Any]) -> list[str]:
    return [item["change"]["command_id"] for item in page["changes"] if item["change"]["data_class"] == "commands"]


def result(seq: int, command_id: str, outcome: str = "succeeded", **other: Any) -> dict[str, Any]:
    return fact(seq, "command_results", value={"command_id": command_id, "outcome": outcome, **other})


def pull_at(gate: Gate, cursor: int, ahead: timedelta) -> PullResponse:
    """What a device pulls when it is later."""
    with gate.cloud.engine.begin() as connection:
        return tombstones.pull(connection, "edge-1", cursor, 100, utc_now() + ahead)


async def test_a_command_is_sent_until_it_is_answered(gate: Gate) -> None:
    key = await gate.enrol()
    issued = await issue(gate, "clear_cache", arguments={"tier": "l0"})
    assert (issued["state"], issued["issued_by"]) == ("queued", "person:admin")
    page = await pull(gate, key)
    (change,) = (item["change"] for item in page["changes"])
    assert (change["name"], change["arguments"]) == ("clear_cache", {"tier": "l0"})
    assert 3590 < change["expires_in_s"] <= 3600
    assert (await show(gate, issued))["state"] == "delivered"
    # The reply was lost.
    assert sent(await pull(gate, key)) == [issued["command_id"]]
    assert sent(await pull(gate, key, page["next_cursor"])) == []
    answer = await gate.push(key, batch(1, [result(1, issued["command_id"], output={"cleared": {"l0": 3}})]))
    assert answer.json()["results"] == []
    found = await show(gate, issued)
    assert (found["state"], found["output"], found["code"]) == ("succeeded", {"cleared": {"l0": 3}}, None)
    assert sent(await pull(gate, key)) == []


async def test_a_device_of_before_commands_is_sent_none(gate: Gate) -> None:
    key = await gate.enrol()
    issued = await issue(gate)
    page = (await gate.client.get("/sync/v1/pull", headers=key)).json()
    assert page["changes"] == []
    assert (await show(gate, issued))["state"] == "queued"


async def test_commands_and_documents_come_in_the_order_of_their_commits(gate: Gate) -> None:
    key = await gate.enrol()
    expected = []
    for number in range(6):
        if number % 2:
            expected.append((await issue(gate))["command_id"])
        else:
            with gate.cloud.engine.begin() as connection:
                documents.write_cloud(connection, "edge-1", f"key-{number}", {"desired": {"n": number}})
            expected.append(f"key-{number}")
    found, cursor, has_more = [], 0, True
    while has_more:
        page = await pull(gate, key, cursor, limit=1)
        assert [item["cursor"] for item in page["changes"]] == sorted(item["cursor"] for item in page["changes"])
        found += [item["change"].get("command_id") or item["change"]["key"] for item in page["changes"]]
        cursor, has_more = page["next_cursor"], page["has_more"]
    assert found == expected


async def test_a_waiting_pull_is_answered_with_the_command_of_its_device(gate: Gate) -> None:
    await gate.enrol("edge-2")
    key = await gate.enrol()
    cursor = (await pull(gate, key))["next_cursor"]
    waiting = asyncio.create_task(pull(gate, key, cursor, wait=30))
    with gate.cloud.engine.begin() as connection:
        now = utc_now()
        commands.issue(connection, "edge-2", "sync_now", {}, "test", now, now + HOUR)
    issued = await issue(gate)
    assert sent(await waiting) == [issued["command_id"]]


async def test_an_expired_command_is_sent_only_where_the_device_may_have_it(gate: Gate) -> None:
    key = await gate.enrol()
    soon = to_rfc3339(utc_now() + timedelta(minutes=1))
    delivered = await issue(gate, expires_at=soon)
    await pull(gate, key)
    await issue(gate, expires_at=soon)
    changes = [item.change for item in pull_at(gate, 0, 2 * HOUR).changes]
    assert [change.command_id for change in changes if isinstance(change, Command)] == [delivered["command_id"]]
    assert all(isinstance(change, Command) and change.expires_in_s < 0 for change in changes)
    with gate.cloud.engine.begin() as connection:
        states = [row.state for row in commands.page(connection, "edge-1", None, 10, utc_now() + 2 * HOUR)]
    assert states == ["expired", "delivered"]


async def test_what_a_lost_database_may_have_run_is_not_sent_again(gate: Gate) -> None:
    key = await gate.enrol()
    first = await issue(gate)
    await pull(gate, key)
    second = await issue(gate)
    assert (await gate.client.post("/sync/v1/epoch", headers=key)).status_code == 200
    found = await show(gate, first)
    assert (found["state"], found["code"]) == ("failed", "interrupted")
    assert sent(await pull(gate, key)) == [second["command_id"]]


async def test_the_first_answer_of_the_device_itself_stands(gate: Gate) -> None:
    key, other = await gate.enrol(), await gate.enrol("edge-2")
    issued = await issue(gate)
    await pull(gate, key)
    await gate.push(other, batch(1, [result(1, issued["command_id"])], "edge-2"))
    assert (await show(gate, issued))["state"] == "delivered"
    failed = result(1, issued["command_id"], "failed", code="not_allowed", message="no")
    again = result(2, issued["command_id"])
    unknown = result(3, "f" * 32)
    assert (await gate.push(key, batch(1, [failed, again, unknown]))).json()["results"] == []
    found = await show(gate, issued)
    assert (found["state"], found["code"], found["message"]) == ("failed", "not_allowed", "no")


@pytest.mark.parametrize(
    "value",
    [
        {}, {"command_id": "f" * 32}, {"command_id": "x", "outcome": "failed"},
        {"command_id": "f" * 32, "outcome": "queued"}, {"command_id": "f" * 32, "outcome": "failed", "more": 1},
        {"command_id": "f" * 32, "outcome": "failed", "message": "x" * 201},
    ],
)  # fmt: skip
async def test_what_is_no_result_is_rejected_alone(gate: Gate, value: dict[str, Any]) -> None:
    key = await gate.enrol()
    answer = await gate.push(key, batch(1, [fact(1, "command_results", value=value), fact(1)]))
    assert [(entry["index"], entry["code"]) for entry in answer.json()["results"]] == [(0, "bad_command_result")]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (PATH, {"name": "Sync"}, 422, "invalid_input"),
        (PATH, {"name": "sync_now", "more": 1}, 422, "invalid_input"),
        (PATH, {"name": "sync_now", "arguments": {"a": "x" * 4096}}, 413, "too_large"),
        (PATH, {"name": "sync_now", "expires_at": "2020-01-01T00:00:00Z"}, 422, "bad_expiry"),
        (PATH, {"name": "sync_now", "expires_at": "2990-01-01T00:00:00Z"}, 422, "bad_expiry"),
        (PATH, {"name": "sync_now", "expires_at": "2990-01-01T00:00:00"}, 422, "invalid_input"),
        ("/api/v1/devices/nobody/commands", {"name": "sync_now"}, 404, "not_found"),
    ],
)
async def test_bad_commands_are_refused(gate: Gate, path: str, body: Any, status: int, code: str) -> None:
    await gate.enrol()
    answer = await gate.client.post(path, json=body, headers=gate.admin)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert gate.count("sync.command") == 0


async def test_who_may_read_may_not_command(gate: Gate) -> None:
    key = await gate.enrol()
    with gate.cloud.engine.begin() as connection:
        viewer = {"Authorization": f"Bearer {access.create_api_key(connection, 'somebody', 'viewer')}"}
    for headers in (viewer, key):
        assert (await gate.client.post(PATH, json={"name": "sync_now"}, headers=headers)).status_code == 403
    issued = await issue(gate)
    assert (await gate.client.get(PATH, headers=viewer)).json()["items"] == [issued]
    assert (await gate.client.get(PATH, headers=key)).status_code == 403
    missing = await gate.client.get(f"{PATH}/{'0' * 32}", headers=viewer)
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_command")


async def test_no_more_than_a_hundred_wait(gate: Gate) -> None:
    await gate.enrol()
    with gate.cloud.engine.begin() as connection:
        now = utc_now()
        for _ in range(commands.MAX_OPEN):
            commands.issue(connection, "edge-1", "sync_now", {}, "test", now, now + HOUR)
    answer = await gate.client.post(PATH, json={"name": "sync_now"}, headers=gate.admin)
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_commands")
    # Pages of the list join without a gap.
    found: list[str] = []
    cursor: int | None = None
    while cursor is not None or not found:
        query = {"limit": 30} | ({"cursor": cursor} if cursor is not None else {})
        page = (await gate.client.get(PATH, params=query, headers=gate.admin)).json()
        found += [item["command_id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert len(set(found)) == len(found) == commands.MAX_OPEN


async def test_what_ended_long_ago_is_removed(gate: Gate) -> None:
    key = await gate.enrol()
    answered = await issue(gate)
    await pull(gate, key)
    await gate.push(key, batch(1, [result(1, answered["command_id"])]))
    await issue(gate)

    def collect(ahead: timedelta) -> int:
        with gate.cloud.engine.begin() as connection:
            return commands.collect(connection, utc_now() + ahead, timedelta(days=7))

    assert collect(timedelta(days=7) - HOUR) == 0
    assert collect(timedelta(days=7, seconds=1)) == 1
    assert collect(timedelta(days=7, hours=2)) == 1
    assert gate.count("sync.command") == 0


async def test_a_round_wakes_who_missed_a_command(gate: Gate) -> None:
    key = await gate.enrol()
    await pull(gate, key)
    await issue(gate)
    with gate.cloud.engine.begin() as connection:
        connection.execute(text("UPDATE sync.command SET issued_at = issued_at - interval '3 minutes'"))
        rules = rounds.Rules(overdue_after=HOUR, tombstone_age=HOUR, inactive_after=HOUR)
        assert rounds.close_round(connection, utc_now(), rules).woken == ("edge-1",)


def run_command(gate: Gate, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    url = gate.cloud.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("PRIMESPARK_CLOUD__STORE__URL", url)
    return CliRunner().invoke(app, ["device", *arguments])


async def test_the_command_line_waits_for_the_answer(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    key = await gate.enrol()
    cursor = (await pull(gate, key))["next_cursor"]
    given = ["command", "edge-1", "clear_cache", "--argument", "tier=l0", "--argument", "n=3", "--wait"]
    with ThreadPoolExecutor(1) as pool:
        waiting = asyncio.get_running_loop().run_in_executor(pool, run_command, gate, monkeypatch, *given)
        page = await pull(gate, key, cursor, wait=30)
        (command_id,) = sent(page)
        assert page["changes"][0]["change"]["arguments"] == {"tier": "l0", "n": 3}
        await gate.push(key, batch(1, [result(1, command_id, output={"cleared": 2})]))
        ended = await waiting
    assert ended.exit_code == 0, ended.output
    first, rest = ended.stdout.split("\n", 1)
    assert (first, json.loads(rest)) == (command_id, {"cleared": 2})
    listed = json.loads(run_command(gate, monkeypatch, "commands", "edge-1", "--json").stdout)["items"]
    assert [(row["command_id"], row["state"]) for row in listed] == [(command_id, "succeeded")]
    assert listed[0]["issued_by"].startswith("shell:")
    assert "succeeded" in run_command(gate, monkeypatch, "commands", "edge-1").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["edge-1", "sync_now", "--expires", "1s", "--wait"], "sync_now at edge-1 is expired"),
        (["nobody", "sync_now"], "no device 'nobody'"), (["edge-1", "Sync"], "not a name of a command"),
        (["edge-1", "sync_now", "--argument", "a"], "not an argument"),
        (["edge-1", "sync_now", "--expires", "8d"], "between now and 7 days"),
    ],
)  # fmt: skip
async def test_the_command_line_says_what_is_wrong(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    await gate.enrol()
    ended = await asyncio.to_thread(run_command, gate, monkeypatch, "command", *arguments)
    assert ended.exit_code != 0
    assert words in str(ended.exception)
