"""The language model in OpenAI's form: `/v1/models` and `/v1/chat/completions`."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse

from edge_agent.api import Device, Here, Operator, Viewer
from primespark.core.web import read_model
from primespark.errors import NotFoundError, PrimeSparkError
from primespark.inference.llama_engine import ChatMessage
from primespark.inference.predictions import Completion

Answer = TypeVar("Answer")

router = APIRouter(prefix="/v1")
_MAX_MESSAGES = 1000
# OpenAI's own names for what a client did wrong; all others are the server's.
_THEIR_FAULT = "invalid_request_error"
_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class _Asked(BaseModel):
    # What is not understood is refused: an answer that leaves out what was asked for would mislead.
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(_Asked):
    """A part of a turn."""

    type: Literal["text"]
    text: str


class Turn(_Asked):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]


class StreamOptions(_Asked):
    """How pieces are sent."""

    include_usage: bool = False


class ChatRequest(_Asked):
    """A conversation to go on with."""

    model: Annotated[str, Field(max_length=128)]
    messages: Annotated[list[Turn], Field(min_length=1, max_length=_MAX_MESSAGES, fail_fast=True)]
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    max_completion_tokens: Annotated[int, Field(gt=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    n: Literal[1] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: Annotated[str, Field(max_length=256)] | None = None


@router.get("/models", dependencies=[Viewer])
async def list_models(here: Here) -> dict[str, Any]:
    """The language model, if one is here."""
    name = here.language.model
    models = [{"id": name, "object": "model", "created": 0, "owned_by": here.device_id}] if name else []
    return {"object": "list", "data": models}


@router.post("/chat/completions")
async def complete(request: Request, here: Here, _: Operator) -> Response:
    """The model's next turn, whole or in pieces as they come."""
    asked = await read_model(request, ChatRequest)
    if here.language.model != asked.model:
        there_is = here.language.model or "none yet: primespark models fetch smollm2"
        raise NotFoundError(f"no language model {asked.model!r}", remedy=f"there is {there_is}", code="unknown_model")
    if not asked.stream:
        limit = asked.max_completion_tokens or asked.max_tokens
        answer = await _while_wanted(request, here.language.complete(_messages(asked), limit, asked.temperature))
        return JSONResponse(_whole(asked, answer))
    pieces = _stream(here, asked)
    # The first piece before the head, so that what cannot be answered gets its own status.
    first = await _while_wanted(request, _next(pieces))
    return StreamingResponse(_joined(first, pieces), media_type="text/event-stream")


async def _while_wanted(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """What `work` answers; it is ended when the client hangs up, which nobody else looks for before an answer's head.

    Raises:
        ClientDisconnect: The client has hung up.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait({working, leaving})


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _next(pieces: AsyncIterator[str]) -> str:
    return await anext(pieces)


def error_members(problem: Mapping[str, Any]) -> dict[str, Any]:
    """The member `error` as OpenAI's clients read it, from those of a problem.

    Args:
        problem: `status`, `code` and `detail`; `remedy` and `errors` where there are any.
    """
    status, faults, remedy = problem["status"], problem.get("errors"), problem.get("remedy")
    kind = _ERROR_TYPES.get(status, "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else _THEIR_FAULT)
    return {
        "error": {
            "message": f"{problem['detail']}; {remedy}" if remedy else problem["detail"],
            "type": kind,
            "param": faults[0]["loc"] or None if faults else None,
            "code": problem["code"],
        }
    }


async def _stream(here: Device, asked: ChatRequest) -> AsyncIterator[str]:
    identity = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}

    def chunk(choices: list[dict[str, Any]], **more: Any) -> str:
        return _event({**identity, "object": "chat.completion.chunk", "choices": choices, **more})

    delta: dict[str, Any] = {"role": "assistant"}
    limit = asked.max_completion_tokens or asked.max_tokens
    async with aclosing(here.language.stream(_messages(asked), limit, asked.temperature)) as pieces:
        async for piece in pieces:
            if isinstance(piece, str):
                yield chunk([{"index": 0, "delta": {**delta, "content": piece}, "finish_reason": None}])
                delta = {}
                continue
            yield chunk([{"index": 0, "delta": delta, "finish_reason": piece["finish_reason"]}])
            if asked.stream_options.include_usage:
                yield chunk([], usage=_usage(piece))
    yield "data: [DONE]\n\n"


async def _joined(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    try:
        async for event in rest:
            yield event
    except PrimeSparkError as error:
        # The status is sent; OpenAI's clients raise what stands under `error`.
        problem = {"status": error.http_status, "code": error.code, "detail": error.message, "remedy": error.remedy}
        yield _event(error_members(problem))


def _whole(asked: ChatRequest, answer: Completion) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer["text"]}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time()),
        "model": asked.model, "usage": _usage(answer),
        "choices": [{"index": 0, "message": message, "finish_reason": answer["finish_reason"]}],
    }  # fmt: skip


def _usage(answer: Completion) -> dict[str, int]:
    prompt, completion = answer["prompt_tokens"], answer["completion_tokens"]
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _messages(asked: ChatRequest) -> list[ChatMessage]:
    return [{"role": turn.role, "content": _text(turn.content)} for turn in asked.messages]


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
