"""Errors under `/v1` as OpenAI's own client reads them, of a running device without a language model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from tests.helpers import wait_until
from tests.integration.edge_agent.test_process import Process, running


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("device"), PRIMESPARK_FEATURES__CAPTURE="false") as running_device:
        wait_until(lambda: running_device.sees(0), 60)
        yield running_device


@pytest.fixture(scope="module")
def client(device: Process) -> openai.OpenAI:
    key = (device.folder / "local.key").read_text().strip()
    return openai.OpenAI(base_url=f"{device.url}/v1", api_key=key, max_retries=0)


def ask(client: openai.OpenAI, **changes: Any) -> Any:
    asked: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}], **changes}
    return client.chat.completions.create(**asked)


def test_a_model_that_is_not_here_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="primespark models fetch smollm2") as caught:
        ask(client)
    assert (caught.value.code, caught.value.type, caught.value.param) == (
        "unknown_model",
        "invalid_request_error",
        None,
    )


@pytest.mark.parametrize("call", ["embeddings", "models"])
def test_what_is_not_offered_is_not_found(client: openai.OpenAI, call: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        _ = client.embeddings.create(model="m", input="x") if call == "embeddings" else client.models.retrieve("m")
    assert (caught.value.code, caught.value.type) == ("not_found", "invalid_request_error")


def test_a_stranger_is_not_authenticated(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="wrong").models.list()
    assert (caught.value.code, caught.value.type) == ("unauthenticated", "authentication_error")


def test_a_damaged_body_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, extra_headers={"Content-Digest": f"sha-256=:{'A' * 43}=:"})
    assert (caught.value.code, caught.value.type) == ("bad_digest", "invalid_request_error")


def test_a_field_that_is_not_understood_is_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        ask(client, temperature=3)
    assert (caught.value.code, caught.value.param) == ("invalid_input", "temperature")


def test_a_problem_keeps_its_members_and_other_paths_get_none(device: Process) -> None:
    problem = httpx2.get(f"{device.url}/v1/models")
    assert problem.headers["content-type"] == "application/problem+json"
    assert problem.json()["code"] == problem.json()["error"]["code"] == "unauthenticated"
    for path in ("/v10/models", "/api/v1/events", "/v1models"):
        assert "error" not in httpx2.get(f"{device.url}{path}").json()
