"""Documents over HTTP: a device and the cloud, the fleet's and a device's own, all answer alike."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from primespark.cli.main import app as cli
from primespark.store import document_lists, documents
from tests.integration.cloud.test_gate import Gate, gate
from tests.integration.cloud.watching import Watching, watching
from tests.integration.edge_agent.test_api import asked

__all__ = ["gate"]
FLEET = "/api/v1/fleet/records/configurations"
OWN = "/api/v1/devices/edge-1/records/configurations"


class Place:
    """Documents at an address."""

    def __init__(self, client: httpx2.AsyncClient, path: str, scope: str, key: Mapping[str, str], app: FastAPI) -> None:
        self.client, self.path, self.scope, self._key, self.app = client, path, scope, key, app

    async def ask(self, method: str, key: str = "", body: Any = None, **headers: str) -> httpx2.Response:
        """A request; `if_match` is the header If-Match."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        path = f"{self.path}/{key}" if key and not key.startswith("?") else f"{self.path}{key}"
        return await self.client.request(method, path, json=body, headers={**self._key, **named})

    def watch(self, key: str = "") -> AbstractAsyncContextManager[Watching]:
        """See it change."""
        return watching(self.app, f"{self.path}/{key}" if key else self.path, self._key)


def app_of(client: httpx2.AsyncClient) -> FastAPI:
    """What a client asks."""
    transport = client._transport
    assert isinstance(transport, httpx2.ASGITransport)
    app: FastAPI = transport.app  # type: ignore[assignment]
    return app


@pytest.fixture(params=["device", "cloud", "fleet"])
async def place(request: pytest.FixtureRequest, tmp_path: Path, gate: Gate) -> AsyncIterator[Place]:
    if request.param == "device":
        nothing: Future[Any] = Future()
        nothing.set_result(None)
        async with asked(tmp_path / "edge", nothing, capture=False) as client:
            yield Place(client, "/api/v1/records/configurations", "edge-1", client.headers, app_of(client))
        return
    await gate.enrol()
    path, scope = (OWN, "edge-1") if request.param == "cloud" else (FLEET, "fleet")
    yield Place(gate.client, path, scope, gate.admin, app_of(gate.client))


async def test_a_document_lives_as_it_is_told(place: Place) -> None:
    assert (await place.ask("GET", "a")).status_code == 404
    made = await place.ask("PUT", "a", {"rate": 1, "mode": {"night": True}})
    assert (made.status_code, made.json()["scope"], made.json()["deleted"]) == (201, place.scope, False)
    assert made.headers["etag"] == f'"{made.json()["hlc"]}"'
    again = await place.ask("PUT", "a", {"rate": 1, "mode": {"night": True}})
    assert (again.status_code, again.json()) == (200, made.json())
    changed = await place.ask("PATCH", "a", {"mode": {"night": None, "day": 2}})
    assert (changed.status_code, changed.json()["value"]) == (200, {"rate": 1, "mode": {"day": 2}})
    replaced = await place.ask("PUT", "a", {"rate": 3})
    assert replaced.json()["vv"].keys() == made.json()["vv"].keys()
    assert (await place.ask("GET", "a")).json() == replaced.json()
    assert (await place.ask("DELETE", "a")).status_code == 204
    assert [(await place.ask(method, "a")).status_code for method in ("DELETE", "GET")] == [404, 404]
    assert (await place.ask("GET")).json() == {"items": [], "next_cursor": None}
    back = await place.ask("PATCH", "a", {"rate": 4})
    assert (back.status_code, back.json()["value"]) == (201, {"rate": 4})


async def test_preconditions_guard_it(place: Place) -> None:
    assert (await place.ask("PUT", "a", {"n": 1}, if_match="*")).status_code == 412
    made = await place.ask("PUT", "a", {"n": 1}, if_none_match="*")
    etag = made.headers["etag"]
    assert made.status_code == 201
    assert (await place.ask("PUT", "a", {"n": 2}, if_none_match="*")).json()["code"] == "precondition_failed"
    assert (await place.ask("PATCH", "a", {"n": 2}, if_match=f'"x", {etag}')).status_code == 200
    for method in ("PUT", "PATCH", "DELETE"):
        assert (await place.ask(method, "a", {"n": 3}, if_match=etag)).status_code == 412
        assert (await place.ask(method, "a", {"n": 3}, if_match=f"W/{etag}")).status_code == 412
        assert (await place.ask(method, "a", {"n": 3}, if_match="n=2")).status_code == 400
    now = await place.ask("GET", "a", if_none_match=etag)
    assert (now.status_code, now.json()["value"]) == (200, {"n": 2})
    known = await place.ask("GET", "a", if_none_match=f"W/{now.headers['etag']}")
    assert (known.status_code, known.content) == (304, b"")
    assert (await place.ask("DELETE", "a", if_match=now.headers["etag"])).status_code == 204
    # What is deleted is not there, whatever its tag was.
    assert (await place.ask("PUT", "a", {"n": 4}, if_match=now.headers["etag"])).status_code == 412


async def test_a_list_is_read_page_by_page(place: Place) -> None:
    keys = [f"k{number:02d}" for number in range(7)] + ["line/1", "line/2"]
    for key in keys:
        assert (await place.ask("PUT", key, {"key": key})).status_code == 201
    await place.ask("DELETE", "k03")
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await place.ask("GET", f"?limit=3&after={cursor}" if cursor else "?limit=3")).json()
        assert len(page["items"]) <= 3
        found += page["items"]
        cursor = page["next_cursor"]
    assert [item["key"] for item in found] == [key for key in keys if key != "k03"]
    assert found[-1] == (await place.ask("GET", "line/2")).json()
    assert (await place.ask("GET", "?limit=0")).status_code == 422


REFUSED = [
    ("PUT", "a", [1], 422, "invalid_input"),
    ("PUT", "a", {}, 422, "empty_document"),
    ("PATCH", "a", {"n": None}, 422, "empty_document"),
    ("PUT", "a", {"n": "\0"}, 422, "unstorable_value"),
    ("PUT", "-a", {"n": 1}, 422, "invalid_input"),
    ("PUT", "a", {"desired": {"n": 1}, "reported": {"n": 1}}, 403, "not_owner"),
]


async def test_what_is_no_document_is_refused(place: Place) -> None:
    for method, key, body, status, code in REFUSED:
        answer = await place.ask(method, key, body)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert (await place.ask("GET")).json()["items"] == []


async def test_what_the_other_side_owns_stays(gate: Gate) -> None:
    await gate.enrol()
    write = {**gate.admin, "Content-Type": "application/json"}
    assert (await gate.client.put(f"{OWN}/a", content='{"n": 1}', headers=write)).status_code == 201
    with gate.cloud.engine.begin() as connection:
        known = documents.read_stored(connection, "edge-1", "a", for_update=True)
        known.document.value["reported"] = {"n": 1}
        known.document.leaf_hlc["/reported/n"] = known.document.hlc
        documents.store_write(connection, "edge-1", "a", known, known.document, None, 1, known.document.hlc)
    refused = [
        await gate.client.put(f"{OWN}/a", content='{"n": 2}', headers=write),
        await gate.client.delete(f"{OWN}/a", headers=write),
    ]
    assert [(answer.status_code, answer.json()["code"]) for answer in refused] == [(403, "not_owner")] * 2
    answer = await gate.client.put(f"{OWN}/a", content='{"n": 2, "reported": {"n": 1}}', headers=write)
    assert (answer.status_code, answer.json()["value"]) == (200, {"n": 2, "reported": {"n": 1}})


async def test_only_operators_write_and_only_for_devices_there_are(gate: Gate) -> None:
    device = await gate.enrol()
    assert (await gate.client.put(f"{FLEET}/a", json={"n": 1}, headers=device)).status_code == 403
    assert (await gate.client.get(f"{FLEET}/a")).status_code == 401
    stranger = OWN.replace("edge-1", "edge-9")
    assert (await gate.client.put(f"{stranger}/a", json={"n": 1}, headers=gate.admin)).status_code == 404
    for odd in ("fleet", "cloud", "Edge", "group:x"):
        answer = await gate.client.put(f"{OWN.replace('edge-1', odd)}/a", json={"n": 1}, headers=gate.admin)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")


async def test_concurrent_makers_of_one_document_are_told_apart(gate: Gate) -> None:
    answers = await asyncio.gather(
        *(
            gate.client.put(f"{FLEET}/a", json={"n": number}, headers={**gate.admin, "If-None-Match": "*"})
            for number in range(8)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [201] + [412] * 7
    (made,) = (answer.json() for answer in answers if answer.status_code == 201)
    assert (await gate.client.get(f"{FLEET}/a", headers=gate.admin)).json() == made


def test_a_page_ends_by_bytes_and_goes_on_behind_them(store_engine: Engine) -> None:
    with store_engine.begin() as connection:
        for number in range(5):
            documents.write_cloud(connection, "fleet", f"k{number}", {"text": "x" * 600})
        sizes, after = [], ""
        while True:
            page = document_lists.page(connection, "fleet", after, 100, 1000)
            sizes.append(len(page.items))
            if page.next_after is None:
                break
            after = page.next_after
    assert sizes == [2, 2, 1]


async def test_a_group_is_joined_read_and_left(gate: Gate) -> None:
    key = await gate.enrol()
    member, light = "/api/v1/devices/edge-1/groups/line-a", "/api/v1/groups/line-a/records/configurations/light"
    assert (await gate.client.put(light, json={"n": 1}, headers=gate.admin)).json()["scope"] == "group:line-a"
    start = (await gate.client.get("/sync/v1/pull?groups=", headers=key)).json()
    assert (start["changes"], start["groups"]) == ([], [])
    waiting = f"/sync/v1/pull?cursor={start['next_cursor']}&snapshot={start['snapshot']}&wait=20&groups="
    told = asyncio.create_task(gate.client.get(waiting, headers=key))
    async with asyncio.timeout(5):
        while not gate.cloud.notifier._waiting:  # noqa: ASYNC110 (a dictionary, which sets no event)
            await asyncio.sleep(0.002)
    joined = [await gate.client.put(member, headers=gate.admin) for _ in range(2)]
    assert [answer.status_code for answer in joined] == [201, 200]
    assert joined[0].json() == {"device_id": "edge-1", "groups": ["line-a"]}
    async with asyncio.timeout(5):
        assert (await told).json()["groups"] == ["line-a"]
        # Whoever has not heard of it is told at once, and whoever has waits.
        assert (await gate.client.get(waiting, headers=key)).json()["groups"] == ["line-a"]
    page = (await gate.client.get("/sync/v1/pull?groups=line-a", headers=key)).json()
    assert [item["change"]["value"] for item in page["changes"]] == [{"n": 1}]
    # A device of an older version takes no field that it does not know.
    assert (await gate.client.get("/sync/v1/pull", headers=key)).json().keys() == page.keys() - {"snapshot", "groups"}
    shown = (await gate.client.get("/api/v1/devices/edge-1", headers=gate.admin)).json()
    assert shown["groups"] == ["line-a"]
    assert [(await gate.client.delete(member, headers=gate.admin)).status_code for _ in range(2)] == [204, 404]
    for odd in ("Line", "-a", "a%2fb", "%00"):
        assert not (await gate.client.put(member.replace("line-a", odd), headers=gate.admin)).is_success
        path = light.replace("line-a", odd)
        assert (await gate.client.get(path, headers=gate.admin)).status_code in {404, 422}
    assert (await gate.client.put(member, headers=key)).status_code == 403


async def test_a_group_is_made_by_command(gate: Gate, tmp_path: Path) -> None:
    await gate.enrol()
    url = gate.cloud.engine.url.render_as_string(hide_password=False)
    (tmp_path / "own.yaml").write_text(f"cloud:\n  store:\n    url: {url}\n")

    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, ["--config", str(tmp_path / "own.yaml"), "device", *words])

    results = [await asyncio.to_thread(run, *words) for words in (
        ("group", "add", "edge-1", "line-a"), ("group", "add", "edge-1", "line-a"), ("list", "--json"),
        ("group", "remove", "edge-1", "line-a"), ("group", "remove", "edge-1", "line-a"),
        ("group", "add", "edge-1", "A"),
    )]  # fmt: skip
    assert [result.exit_code == 0 for result in results] == [True, True, True, True, False, False]
    assert (results[0].output, results[1].output) == ("edge-1 is in line-a\n", "edge-1 was in line-a before\n")
    assert json.loads(results[2].output)["items"][0]["groups"] == ["line-a"]


async def test_who_watches_sees_what_there_is_and_every_last_change(place: Place) -> None:
    for key in ("a", "b", "gone"):
        await place.ask("PUT", key, {"n": 1})
    await place.ask("DELETE", "gone")
    async with place.watch() as watched, place.watch("b") as one:
        assert await watched.until_ready() == {"a": {"n": 1}, "b": {"n": 1}}
        assert await one.until_ready() == {"b": {"n": 1}}
        made = (await place.ask("PUT", "c", {"n": 2})).json()
        assert await watched.next() == ("record", made)
        await place.ask("DELETE", "a")
        name, value = await watched.next() or ("", {})
        assert (name, value["key"], value["value"], value["deleted"]) == ("record", "a", {}, True)
        changed = (await place.ask("PATCH", "b", {"n": 3})).json()
        assert await watched.next() == await one.next() == ("record", changed)


async def test_many_documents_are_seen_whole_before_ready(place: Place) -> None:
    for number in range(20):
        await place.ask("PUT", f"k{number}", {"n": number})
    async with place.watch() as watched:
        assert await watched.until_ready() == {f"k{number}": {"n": number} for number in range(20)}


async def test_only_so_many_watch_and_a_stop_ends_them(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("primespark.core.web.watching.MAX_WATCHERS", 1)
    app, watchers = app_of(gate.client), gate.cloud.watchers
    async with watching(app, FLEET, gate.admin) as watched:
        await watched.until_ready()
        refused = await gate.client.get(f"{FLEET}?watch=1", headers=gate.admin)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_watchers")
        assert (await gate.client.get(f"{FLEET}?watch=1")).status_code == 401
    assert watchers.count == 0
    async with watching(app, FLEET, gate.admin) as watched:
        await watched.until_ready()
        gate.cloud.notifier.close()
        assert await watched.next() is None
    assert watchers.count == 0
