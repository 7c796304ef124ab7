"""`/v2/health`: what is told of a device that is not ready, and to whom."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from edge_agent.open_inference.routes import PREFIX, error_members, health_router
from primespark.core.web import Principal, Role, create_app


async def asked(path: str, missing: dict[str, str], open_health: bool, host: str = "127.0.0.1") -> httpx2.Response:
    async def readiness() -> dict[str, str]:
        return missing

    async def summary() -> dict[str, Any]:
        return {}

    async def authenticate(token: str) -> Principal:
        return Principal(token, Role(token))

    app = create_app(
        title="t", authenticate=authenticate, routers=[health_router(readiness, open_health)], readiness=readiness,
        summary=summary, max_body_bytes=1000, open_health=open_health,
        problem_members={PREFIX: error_members},
    )  # fmt: skip
    transport = httpx2.ASGITransport(app=app, client=(host, 1))
    async with httpx2.AsyncClient(transport=transport, base_url="http://t") as client:
        return await client.get(path)


async def test_a_device_that_is_not_ready_is_alive_and_says_what_is_missing() -> None:
    missing = {"detector": "loading"}
    assert (await asked("/v2/health/live", missing, True)).json() == {"live": True}
    answer = await asked("/v2/health/ready", missing, True)
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "not_ready", "1")
    assert answer.json()["error"].startswith("not ready: detector: loading")
    assert (await asked("/v2/health/ready", {}, True)).json() == {"live": True, "ready": True}


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
async def test_it_is_open_from_loopback_alone_and_where_settings_say_so(path: str) -> None:
    assert (await asked(path, {}, True)).status_code == 200
    assert (await asked(path, {}, False)).status_code == 401
    assert (await asked(path, {}, True, host="192.0.2.1")).status_code == 401
