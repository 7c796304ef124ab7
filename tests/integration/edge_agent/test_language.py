"""The language model: the engine itself, and a real device asked by OpenAI's own client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from edge_agent.language_service import MAX_WAITING, LanguageService
from primespark.core.settings import LanguageSettings
from primespark.errors import (
    ConflictError,
    DeadlineExceededError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from primespark.inference.llama_engine import ChatMessage, LlamaEngine
from tests.helpers import wait_until
from tests.kafka.brokers import free_port
from tests.language_model import HOME

PARIS: list[ChatMessage] = [
    {"role": "user", "content": "What is the capital of France? Answer in one sentence."},
]
STORY: list[ChatMessage] = [{"role": "user", "content": "Tell me a long story about a river."}]


@pytest.fixture(scope="module")
def engine(language_model: Path) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(language_model, threads=1, context_tokens=512)
    yield engine
    engine.close()


def test_a_question_is_answered(engine: LlamaEngine) -> None:
    pieces: list[str] = []

    def listen(piece: str) -> bool:
        pieces.append(piece)
        return True

    answer = engine.complete(PARIS, max_tokens=32, on_text=listen)
    assert "Paris" in answer["text"]
    assert answer["text"] == "".join(pieces)
    assert answer["finish_reason"] == "stop"
    assert 20 < answer["prompt_tokens"] < 60
    assert 0 < len(pieces) <= answer["completion_tokens"] <= 32
    assert engine.complete(PARIS, max_tokens=32)["text"] == answer["text"]


def test_an_answer_is_cut_at_its_limit(engine: LlamaEngine) -> None:
    answer = engine.complete(STORY, max_tokens=5)
    assert (answer["finish_reason"], answer["completion_tokens"]) == ("length", 5)


def test_who_does_not_listen_any_more_ends_the_answer(engine: LlamaEngine) -> None:
    pieces: list[str] = []

    def listen(piece: str) -> bool:
        pieces.append(piece)
        return len(pieces) < 3

    answer = engine.complete(STORY, max_tokens=400, on_text=listen)
    assert answer["finish_reason"] == "cancelled"
    assert len(pieces) == 3


def test_a_conversation_that_is_too_long_or_none_is_refused(engine: LlamaEngine) -> None:
    with pytest.raises(InvalidInputError) as caught:
        engine.complete([{"role": "user", "content": "word " * 3000}], max_tokens=5)
    assert caught.value.code == "context_too_long"
    broken: Any = [{"role": "user"}]
    with pytest.raises(InvalidInputError) as caught:
        engine.complete(broken, max_tokens=5)
    assert caught.value.code == "bad_conversation"
    assert "Paris" in engine.complete(PARIS, max_tokens=32)["text"]


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF" + bytes(2000)])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    for file in (tmp_path / "bad.gguf", tmp_path / "absent.gguf"):
        with pytest.raises(IntegrityError) as caught:
            LlamaEngine(file)
        assert caught.value.code == "bad_model"


def test_a_closed_model_says_so(language_model: Path) -> None:
    engine = LlamaEngine(language_model, context_tokens=256)
    engine.close()
    engine.close()
    with pytest.raises(ConflictError):
        engine.complete(PARIS, max_tokens=5)


def test_nobody_gets_an_answer_from_the_port_the_library_opens(engine: LlamaEngine) -> None:
    ports = [
        connection.laddr.port
        for connection in psutil.Process().net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert ports
    for port in ports:
        for path in ("/v1/models", "/completion", "/props", "/slots", "/v1/chat/completions"):
            body = None if path in ("/v1/models", "/props", "/slots") else b'{"prompt": "x", "messages": []}'
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=5)
            assert caught.value.code == 401, path


@pytest.fixture
async def service(language_model: Path) -> Any:
    service = LanguageService(LanguageSettings(file=language_model, context_tokens=512))
    yield service
    await asyncio.to_thread(service.close)


async def test_conversations_wait_for_each_other_up_to_a_bound(service: LanguageService) -> None:
    async def ask() -> str:
        try:
            return (await service.complete(STORY, 3, 0))["finish_reason"]
        except OverloadedError as error:
            return error.code

    found = await asyncio.gather(*(ask() for _ in range(MAX_WAITING + 3)))
    assert sorted(found) == ["inference_busy"] * 3 + ["length"] * MAX_WAITING
    assert await ask() == "length"


async def test_an_answer_that_takes_too_long_is_told(language_model: Path) -> None:
    service = LanguageService(LanguageSettings(file=language_model, context_tokens=512, answer_timeout_s=0.001))
    with pytest.raises(DeadlineExceededError):
        await service.complete(STORY, 400, 0)
    await asyncio.to_thread(service.close)


async def test_who_goes_away_frees_the_model(service: LanguageService) -> None:
    answers = service.stream(STORY, 400, 0)
    assert isinstance(await anext(answers), str)
    await answers.aclose()
    async with asyncio.timeout(30):
        assert (await service.complete(STORY, 2, 0))["finish_reason"] == "length"


async def test_without_a_model_the_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRIMESPARK_HOME", str(tmp_path))
    service = LanguageService(LanguageSettings())
    assert service.model is None
    with pytest.raises(NotFoundError) as caught:
        await service.complete(PARIS, 5, 0)
    assert "primespark models fetch" in str(caught.value.remedy)


@pytest.fixture(scope="module")
def device(language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A device of its own, with the fetched model where `models fetch` puts it."""
    with talking(tmp_path_factory.mktemp("device")) as client:
        yield client


@contextlib.contextmanager
def talking(home: Path, **settings: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client of a device at work."""
    (home / "models").symlink_to(HOME / "models")
    port = free_port()
    environment = {
        **os.environ, "PRIMESPARK_HOME": str(home), "PRIMESPARK_EDGE__DEVICE_ID": "talker",
        "PRIMESPARK_EDGE__PORT": str(port), "PRIMESPARK_FEATURES__CAPTURE": "false", **settings,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "primespark.cli.main", "edge"], env=environment, stderr=subprocess.DEVNULL
    )
    key = home / "edge" / "talker" / "local.key"

    def answers() -> bool:
        with socket.socket() as probe:
            return key.exists() and probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(answers, 30)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key.read_text().strip(), max_retries=0)
    finally:
        process.terminate()
        assert process.wait(15) == 0


def create(device: openai.OpenAI, **asked: Any) -> Any:
    return device.chat.completions.create(**asked)


def test_openais_client_gets_models_and_a_whole_answer(device: openai.OpenAI) -> None:
    assert [model.id for model in device.models.list()] == ["smollm2"]
    found = create(device, model="smollm2", messages=PARIS, temperature=0, max_tokens=32)
    assert "Paris" in found.choices[0].message.content
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_openais_client_gets_an_answer_in_pieces(device: openai.OpenAI) -> None:
    chunks = list(
        create(device, model="smollm2", messages=PARIS, temperature=0, max_tokens=32, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert len(chunks) > 4
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens > 3


def test_a_client_that_hangs_up_does_not_hold_the_model(device: openai.OpenAI) -> None:
    for _ in range(3):
        stream = create(device, model="smollm2", messages=STORY, max_tokens=400, stream=True)
        next(iter(stream))
        stream.close()
    found = create(device, model="smollm2", messages=PARIS, max_tokens=2, timeout=30)
    assert found.usage.completion_tokens == 2


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_hang_up_before_their_answer_begins_do_not_hold_the_model(
    device: openai.OpenAI, stream: bool
) -> None:
    body = json.dumps({"model": "smollm2", "messages": STORY, "max_tokens": 400, "stream": stream}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: edge\r\nAuthorization: Bearer {device.api_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    clients = []

    def is_full() -> bool:
        clients.append(socket.create_connection((device.base_url.host, device.base_url.port)))
        clients[-1].sendall(head + body)
        return is_busy(device)

    wait_until(is_full, 30)
    for client in clients:
        client.close()
    began = time.monotonic()
    wait_until(lambda: not is_busy(device), 30)
    found = create(device, model="smollm2", messages=PARIS, max_tokens=2, timeout=30)
    assert found.usage.completion_tokens == 2
    # Whole, the stories would take a minute and more.
    assert time.monotonic() - began < 30


def is_busy(device: openai.OpenAI) -> bool:
    """Whether as many conversations wait as may."""
    try:
        create(device, model="smollm2", messages=PARIS, max_tokens=1, timeout=0.2)
    except openai.RateLimitError:
        return True
    except openai.APITimeoutError:
        pass
    return False


async def test_a_device_that_stops_says_so_to_who_waits(service: LanguageService) -> None:
    pieces = service.stream(STORY, 400, 0)
    assert isinstance(await anext(pieces), str)
    waiting = asyncio.create_task(service.complete(PARIS, 400, 0))
    await asyncio.sleep(0)
    service.stop()
    async with asyncio.timeout(30):
        with pytest.raises(UnavailableError) as told:
            async for _ in pieces:
                pass
        with pytest.raises(UnavailableError) as told_too:
            await waiting
    assert told.value.code == told_too.value.code == "stopping"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"model": "gpt-9"}, 404),
        ({"messages": []}, 422),
        ({"messages": [{"role": "robot", "content": "x"}]}, 422),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, 422),
        ({"messages": [{"role": "user", "content": "word " * 5000}], "stream": True}, 422),
        ({"temperature": 3}, 422),
        ({"max_tokens": 0}, 422),
        ({"n": 2}, 422),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 422),
    ],
)
def test_what_is_not_understood_is_refused(device: openai.OpenAI, changes: dict[str, Any], status: int) -> None:
    asked: dict[str, Any] = {"model": "smollm2", "messages": PARIS, "max_tokens": 2, **changes}
    with pytest.raises(openai.APIStatusError) as caught:
        create(device, **asked)
    assert caught.value.status_code == status
    assert caught.value.type == "invalid_request_error"
    assert json.loads(caught.value.response.content)["code"] == caught.value.code


def test_an_answer_that_takes_too_long_ends_with_its_error_in_the_stream(language_model: Path, tmp_path: Path) -> None:
    pieces = []
    with talking(tmp_path, PRIMESPARK_EDGE__LANGUAGE__ANSWER_TIMEOUT_S="3") as client:
        with pytest.raises(openai.APIError, match="no whole answer in 3 s") as caught:
            pieces.extend(create(client, model="smollm2", messages=STORY, max_tokens=400, stream=True))
        assert not isinstance(caught.value, openai.APIStatusError)
        assert (caught.value.code, caught.value.type) == ("deadline_exceeded", "server_error")
    assert pieces


def test_many_at_once_are_answered_or_told(device: openai.OpenAI) -> None:
    outcomes: list[str | None] = []

    def ask() -> None:
        try:
            create(device, model="smollm2", messages=STORY, max_tokens=3)
            outcomes.append("answered")
        except openai.RateLimitError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=ask) for _ in range(2 * MAX_WAITING)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == 2 * MAX_WAITING
    assert set(outcomes) <= {"answered", "inference_busy"}
    assert outcomes.count("answered") >= MAX_WAITING
