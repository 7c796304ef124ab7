"""The application factory: what any service answers, whatever it is sent."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, Request
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response
from starlette.types import Message

from primespark.core.encoding import compress, content_digest
from primespark.core.web import Principal, Role, create_app, problems, read_json, read_model, require
from primespark.core.web.bodies import MAX_ANSWERED_BYTES, MINIMUM_BUDGET_BYTES, BodyBudget
from primespark.core.web.server import bind
from primespark.errors import AuthenticationError, ConfigurationError, OverloadedError

LIMIT = 10_000
KEYS = {"v": Role.VIEWER, "o": Role.OPERATOR, "a": Role.ADMIN, "d": Role.DEVICE}


class Reading(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: str
    value: float


async def authenticate(token: str) -> Principal:
    if token not in KEYS:
        raise AuthenticationError("unknown key")
    return Principal(token, KEYS[token])


def router() -> APIRouter:
    routes = APIRouter()

    @routes.post("/readings")
    async def readings(request: Request, _: Annotated[Principal, Depends(require(Role.OPERATOR))]) -> dict[str, Any]:
        reading = await read_model(request, Reading)
        return {"value": reading.value}

    @routes.post("/anything")
    async def anything(request: Request, _: Annotated[Principal, Depends(require(Role.VIEWER))]) -> dict[str, Any]:
        return {"type": type(await read_json(request)).__name__}

    @routes.get("/busy")
    async def busy(_: Annotated[Principal, Depends(require(Role.VIEWER))]) -> None:
        raise OverloadedError("queue is full", remedy="wait", retry_after_s=1.2, code="queue_full")

    @routes.get("/crash")
    async def crash(_: Annotated[Principal, Depends(require(Role.VIEWER))]) -> None:
        raise RuntimeError("a secret of the inside")

    return routes


def make(
    routers: list[APIRouter],
    missing: dict[str, str] | None = None,
    open_health: bool = False,
    limit: int = LIMIT,
    members: dict[str, problems.Members] | None = None,
) -> Any:
    async def readiness() -> dict[str, str]:
        return missing or {}

    async def summary() -> dict[str, Any]:
        return {"status": "fine"}

    return create_app(
        title="t",
        authenticate=authenticate,
        routers=routers,
        readiness=readiness,
        summary=summary,
        max_body_bytes=limit,
        open_health=open_health,
        problem_members=members,
    )


class Client:
    """Synchronous calls on the application, in process."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, method: str, path: str, key: str | None = "a", **arguments: Any) -> httpx2.Response:
        headers = dict(arguments.pop("headers", {}))
        if key:
            headers["Authorization"] = f"Bearer {key}"

        async def call() -> httpx2.Response:
            transport = httpx2.ASGITransport(app=self._app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://t") as client:
                return await client.request(method, path, headers=headers, **arguments)

        return asyncio.run(call())


@pytest.fixture(scope="module")
def client() -> Client:
    return Client(make([router()]))


def test_a_route_without_a_policy_is_refused_at_start() -> None:
    routes = APIRouter()

    @routes.get("/open")
    async def forgotten() -> None: ...

    with pytest.raises(ConfigurationError, match="/open"):
        make([routes])


@pytest.mark.parametrize(
    ("key", "status"), [(None, 401), ("nobody", 401), ("v", 403), ("d", 403), ("o", 200), ("a", 200)]
)
def test_roles(client: Client, key: str | None, status: int) -> None:
    answer = client("POST", "/readings", key, json={"name": "a", "value": 1.5})
    assert answer.status_code == status
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] in {"unauthenticated", "forbidden"}


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/busy", "queue_full"),
        ("GET", "/crash", "internal"),
        ("GET", "/nothing", "not_found"),
        ("PUT", "/busy", "method_not_allowed"),
        ("POST", "/readings", "unsupported_media"),
    ],
)
def test_every_error_under_a_prefix_has_its_further_members(method: str, path: str, code: str) -> None:
    def members(problem: Mapping[str, Any]) -> dict[str, Any]:
        return {"error": f"{problem['code']}: {problem['detail']}"}

    routes = APIRouter()
    for prefix in ("/v2", "/v20"):
        routes.include_router(router(), prefix=prefix)
    client = Client(make([routes], members={"/v2": members}))
    answer, elsewhere = (client(method, prefix + path).json() for prefix in ("/v2", "/v20"))
    assert (answer["code"], answer["error"]) == (code, f"{code}: {answer['detail']}")
    assert (elsewhere["code"], elsewhere.get("error")) == (code, None)


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b'{"name":"a","value":NaN}', JSON, 422, "invalid_input"),
        (b'{"name":"a","value":1e999}', JSON, 422, "invalid_input"),
        (b'{"name":"a","value":"1"}', JSON, 422, "invalid_input"),
        (b'{"name":"a","value":true}', JSON, 422, "invalid_input"),
        (b'{"name":"a","value":1,"extra":1}', JSON, 422, "invalid_input"),
        (b'{"name":"\\ud800","value":1}', JSON, 400, "malformed"),
        (b'{"name":"\xff","value":1}', JSON, 400, "malformed"),
        (b'{"name":"a"', JSON, 400, "malformed"),
        (b"[" * 5000, JSON, 400, "malformed"),
        (b"", JSON, 400, "malformed"),
        (b"x" * (LIMIT + 1), JSON, 413, "too_large"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "unsupported_media"),
        (b"{}", {**JSON, "Content-Encoding": "gzip"}, 415, "unsupported_media"),
        (b"{}", {**JSON, "Content-Encoding": "zstd"}, 400, "bad_encoding"),
        (compress(b"x" * 10_000_000), {**JSON, "Content-Encoding": "zstd"}, 413, "too_large"),
        (compress(b"{}")[:-2], {**JSON, "Content-Encoding": "zstd"}, 400, "bad_encoding"),
        (b"{}", {**JSON, "Content-Digest": content_digest(b"other")}, 400, "bad_digest"),
    ],
)
def test_bad_bodies_are_refused_with_a_stable_code(
    client: Client, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = client("POST", "/readings", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert client("GET", "/livez", None).status_code == 200


@given(st.binary(max_size=300))
def test_no_bytes_make_a_server_error(body: bytes) -> None:
    client = Client(make([router()]))
    for path in ("/readings", "/anything"):
        assert client("POST", path, content=body, headers=JSON).status_code in {200, 400, 422}


@pytest.mark.parametrize("body", [b"[1e999]", b'{"a":"\\udfff"}', b"[Infinity]", b"[" * 100_000, b"1" * 5000])
def test_free_json_is_strict_too(client: Client, body: bytes) -> None:
    answer = client("POST", "/anything", content=body, headers=JSON)
    assert answer.status_code in {400, 413}


def test_a_route_that_is_not_there_is_named(client: Client) -> None:
    answer = client("GET", "/reading").json()
    assert (answer["code"], answer["detail"]) == ("not_found", "no route /reading")
    assert answer["remedy"]


def test_errors_carry_code_remedy_and_retry_after(client: Client) -> None:
    answer = client("GET", "/busy")
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "2"
    assert answer.json()["code"] == "queue_full"
    assert answer.json()["remedy"] == "wait"


@pytest.mark.parametrize(("status", "is_there"), [(429, True), (503, True), (422, False)])
def test_retry_after_is_never_missing(status: int, is_there: bool) -> None:
    assert ("retry-after" in problems.problem(status, "code", "detail").headers) is is_there


def test_codes_without_a_class_are_explained() -> None:
    page = (Path(__file__).parents[3] / "docs" / "errors.md").read_text(encoding="utf-8")
    codes = {*problems.CODES.values(), problems.OTHER_CODE}
    assert {code for code in codes if f"`{code}`" not in page} == set()


def test_of_many_faults_the_first_are_described(client: Client) -> None:
    answer = client("POST", "/readings", json={f"k{number}": 1 for number in range(500)})
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 20
    assert answer.json()["detail"].endswith("; and 499 more")
    answer = client("POST", "/readings", json={f"{number}": 1 for number in range(1000)})
    assert (answer.status_code, answer.json()["detail"]) == (422, "1002 faults, too many to name")
    answer = client("POST", "/readings", json={"k" * 9000: 1})
    assert len(answer.content) < 2000


def test_a_long_body_is_parsed_off_the_loop_alike() -> None:
    large = Client(make([router()], limit=1_000_000))
    for body, status in ((json.dumps({"name": "n" * 100_000, "value": 1.5}), 200), ("[" * 100_000, 400)):
        assert large("POST", "/readings", content=body.encode(), headers=JSON).status_code == status
        assert large("POST", "/anything", content=body.encode(), headers=JSON).status_code == status


def test_a_body_is_not_read_before_the_caller_is_known(client: Client) -> None:
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(True)
        yield b"{}"

    assert client("POST", "/readings", "nobody", content=body(), headers=JSON).status_code == 401
    assert not read


def test_bodies_in_flight_are_bounded_together() -> None:
    app = make([router()])
    client = Client(app)
    other: dict[str, Any] = {}
    body = json.dumps({"name": "a", "value": 1.5}).encode()
    for sent, headers in ((body, JSON), (compress(body), {**JSON, "Content-Encoding": "zstd"}), (b"{", JSON)):
        client("POST", "/readings", content=sent, headers=headers)
    # All is given back, or this would be refused.
    app.state.body_budget.take(other, MINIMUM_BUDGET_BYTES)
    answer = client("POST", "/readings", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
    assert answer.headers["retry-after"] == "1"
    app.state.body_budget.release(other)
    assert client("POST", "/readings", content=body, headers=JSON).status_code == 200


def test_large_answers_are_bounded_together_but_one_has_any_size() -> None:
    budget = BodyBudget(1)
    first: dict[str, Any] = {}
    second: dict[str, Any] = {}
    budget.take_answer(first, 10 * MAX_ANSWERED_BYTES)
    with pytest.raises(OverloadedError):
        budget.take_answer(second, 1)
    budget.release(first)
    for _ in range(2):
        budget.take_answer(first, MAX_ANSWERED_BYTES // 4)
    budget.take_answer(second, MAX_ANSWERED_BYTES // 2)
    with pytest.raises(OverloadedError):
        budget.take_answer(second, 1)
    for scope in (first, second, second):
        budget.release(scope)
    budget.take_answer(second, MAX_ANSWERED_BYTES)


@pytest.mark.parametrize("size", [0, 1, 262_144, 262_145, 1_000_000])
async def test_a_large_answer_is_sent_in_pieces(size: int) -> None:
    routes, sent, body = APIRouter(), [], random.Random(size).randbytes(size)

    @routes.get("/large")
    async def large(_: Annotated[Principal, Depends(require(Role.VIEWER))]) -> Response:
        return Response(body)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/large", "query_string": b"", "headers": [
        (b"authorization", b"Bearer v")]}  # fmt: skip
    await make([routes])(scope, receive, send)
    pieces = sent[1:]
    assert b"".join(piece["body"] for piece in pieces) == body
    assert max(len(piece["body"]) for piece in pieces) <= 262_144
    assert [piece.get("more_body", False) for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert dict(sent[0]["headers"])[b"content-length"] == str(size).encode()


def test_a_credential_of_blanks_is_none(client: Client) -> None:
    for token in ("\xa0", " ", "\x85"):
        answer = client("POST", "/readings", None, headers={b"Authorization": b"Bearer " + token.encode("latin-1")})
        assert (answer.status_code, answer.json()["detail"]) == (401, "no credential")


def test_an_unexpected_error_tells_nothing_of_the_inside(client: Client) -> None:
    answer = client("GET", "/crash")
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in answer.json()["remedy"]


def test_unknown_paths_and_methods(client: Client) -> None:
    assert client("GET", "/nothing").json()["code"] == "not_found"
    assert client("GET", "/readings").json()["code"] == "method_not_allowed"


def test_health_pages() -> None:
    closed = Client(make([], {"store": "no answer"}))
    assert closed("GET", "/readyz", None).status_code == 503
    assert closed("GET", "/readyz", None).json()["missing"] == {"store": "no answer"}
    assert closed("GET", "/health", None).status_code == 401
    assert closed("GET", "/health", "v").json() == {"status": "fine"}
    opened = Client(make([], open_health=True))
    assert opened("GET", "/health", None).status_code == 200
    assert "primespark_http_requests_total" in opened("GET", "/metrics", None).text


async def test_answers_are_not_held_back_by_nagle() -> None:
    listener = bind("127.0.0.1", 0)
    listener.listen()
    accepted: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()

    async def on_connection(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(writer.get_extra_info("socket"))

    async with await asyncio.start_server(on_connection, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        connection = await accepted
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        writer.close()
