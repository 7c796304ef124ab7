"""Request bodies: bounded while they arrive, digest-checked, decoded, parsed strictly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from primespark.core.encoding import Unpacker, decode_body
from primespark.core.web.json_bounds import check_json_size
from primespark.core.web.problems import describe, summarise
from primespark.errors import (
    InvalidInputError,
    MalformedError,
    OverloadedError,
    TooLargeError,
    UnsupportedMediaError,
)

Model = TypeVar("Model", bound=BaseModel)
Answer = TypeVar("Answer")
# A sender slower than this holds a connection for nothing.
BODY_TIMEOUT_S = 60.0
# Above this, decoding and parsing would hold up the event loop.
INLINE_BYTES = 64 * 1024
MINIMUM_BUDGET_BYTES = 64 * 1024 * 1024
# All faults are built at once or none (pydantic 2.14), so of a body with more than this none is described.
_MAX_FAULTS = 1000
MAX_ANSWERED_BYTES = 64 * 1024 * 1024
_HELD, _ANSWERED = "primespark_body_bytes", "primespark_answer_bytes"


class BodyBudget:
    """Bytes of bodies that a service holds at once, as sent and as decoded; used on one event loop.

    Large answers have a budget of their own: they are held for as long as their clients take to read them.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self._free = max(MINIMUM_BUDGET_BYTES, 4 * max_body_bytes)
        self._answered = 0

    def take(self, scope: MutableMapping[str, Any], size: int) -> None:
        """Count `size` more bytes for a request.

        Raises:
            OverloadedError: They are not free.
        """
        if size > self._free:
            raise OverloadedError("too many large requests at once", remedy="try again later", retry_after_s=1)
        self._free -= size
        scope[_HELD] = scope.get(_HELD, 0) + size

    def take_answer(self, scope: MutableMapping[str, Any], size: int) -> None:
        """Count `size` bytes of a request's large answer, which is about to be made; alone it may have any size.

        Raises:
            OverloadedError: Others are being read, and they are not free beside them.
        """
        if self._answered and self._answered + size > MAX_ANSWERED_BYTES:
            raise OverloadedError("too many large answers at once", remedy="try again later", retry_after_s=1)
        self._answered += size
        scope[_ANSWERED] = scope.get(_ANSWERED, 0) + size

    def release(self, scope: MutableMapping[str, Any]) -> None:
        """Give back what a request holds; it has been answered."""
        self._free += scope.pop(_HELD, 0)
        self._answered -= scope.pop(_ANSWERED, 0)


class Turns:
    """One large piece of JSON at a time: its values take many times the memory of its text."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(1)

    async def run(self, size: int, work: Callable[[], Answer]) -> Answer:
        """What `work` answers; at once, without a turn, where the `size` in bytes takes no time worth one."""
        if size <= INLINE_BYTES:
            return work()
        async with self._turn:
            return await asyncio.to_thread(work)


def turns_of(request: Request) -> Turns:
    """The application's, for use with `Depends`."""
    turns: Turns = request.app.state.json_turns
    return turns


async def read_raw(request: Request, max_bytes: int | None = None) -> bytes:
    """The bytes of the body as sent.

    Args:
        request: The request.
        max_bytes: A bound of the route's own; the service's when absent.

    Raises:
        TooLargeError: Over the limit; the rest is not read.
        OverloadedError: The service holds too many bodies.
        MalformedError: The body did not arrive in time.
    """
    budget: BodyBudget = request.app.state.body_budget
    limit = _limit(request, max_bytes)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    chunks, size = [], 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                budget.take(request.scope, len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise MalformedError(f"no whole body within {BODY_TIMEOUT_S:.0f} s", code="truncated_body") from None
    return b"".join(chunks)


async def read_body(
    request: Request, max_bytes: int | None = None, unpackers: Mapping[str, Unpacker] | None = None
) -> bytes:
    """The decoded body, its `Content-Digest` checked; bounded as sent and as decoded, see `read_raw`, `decode_body`."""
    raw = await read_raw(request, max_bytes)
    decode = partial(
        decode_body,
        raw,
        encoding=request.headers.get("content-encoding"),
        digest=request.headers.get("content-digest"),
        max_bytes=_limit(request, max_bytes),
        unpackers=unpackers,
    )
    payload = await _off_loop(len(raw), decode)
    if payload is not raw:
        request.app.state.body_budget.take(request.scope, len(payload))
    return payload


async def read_json(request: Request) -> Any:
    """The body as JSON, `application/json` or a `+json` type."""
    _check_media_type(request)
    body = await read_body(request)
    return await turns_of(request).run(len(body), partial(parse_json, body))


async def read_model(request: Request, model: type[Model], max_bytes: int | None = None) -> Model:
    """The body as `model`, strictly: no coercion, no unknown fields.

    Args:
        request: The request.
        model: What its body is.
        max_bytes: A bound of the route's own; the service's when absent.

    Raises:
        TooLargeError: Over the limit, or code `too_many_values`.
        MalformedError: Not JSON.
        InvalidInputError: JSON that is not a `model`; `errors` names each field.
    """
    _check_media_type(request)
    body = await read_body(request, max_bytes)
    return await turns_of(request).run(len(body), partial(parse_model, body, model))


def parse_model(body: bytes, model: type[Model]) -> Model:
    """JSON bytes as `model`, strictly.

    Raises:
        MalformedError: Not JSON.
        TooLargeError: Code `too_many_values`.
        InvalidInputError: JSON that is not a `model`; `errors` names each field.
    """
    return parse_with(model.model_validate_json, body)


def parse_with(read: Callable[[bytes], Model], body: bytes) -> Model:
    """As `parse_model`, with what reads the model; it raises pydantic's ValidationError."""
    check_json_size(body)
    try:
        return read(body)
    except ValidationError as error:
        _refuse(error)


def parse_json(body: bytes) -> Any:
    """JSON without NaN, infinities, lone surrogates and excessive nesting.

    Raises:
        TooLargeError: Code `too_many_values`.
        MalformedError: Anything else.
    """
    check_json_size(body)
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"not JSON: {error}"[:200]) from None
    return value


def _check_media_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaError(f"Content-Type {media_type[:60]!r}", remedy="send application/json")


def _limit(request: Request, max_bytes: int | None) -> int:
    service: int = request.app.state.max_body_bytes
    return service if max_bytes is None else min(max_bytes, service)


async def _off_loop(size: int, work: Callable[[], Answer]) -> Answer:
    return work() if size <= INLINE_BYTES else await asyncio.to_thread(work)


def _refuse(error: ValidationError) -> NoReturn:
    if error.error_count() > _MAX_FAULTS:
        raise InvalidInputError(f"{error.error_count()} faults, too many to name") from None
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    errors = describe(faults)
    if faults[0]["type"] == "json_invalid":
        raise MalformedError(f"not JSON: {errors[0]['msg']}"[:200]) from None
    raise InvalidInputError(summarise(errors, len(faults)), errors=errors) from None


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"body of more than {limit} bytes", remedy="send less at once")
