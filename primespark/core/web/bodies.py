"""Request bodies: bounded while they arrive, digest-checked, decoded, parsed strictly."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from primespark.core.encoding import decode_body
from primespark.core.web.problems import describe, summarise
from primespark.errors import InvalidInputError, MalformedError, TooLargeError, UnsupportedMediaError

Model = TypeVar("Model", bound=BaseModel)
# A sender slower than this holds a connection for nothing.
BODY_TIMEOUT_S = 60.0


async def read_raw(request: Request) -> bytes:
    """The bytes of the body as sent.

    Raises:
        TooLargeError: Over the service's limit; the rest is not read.
        MalformedError: The body did not arrive in time.
    """
    limit: int = request.app.state.max_body_bytes
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
                chunks.append(chunk)
    except TimeoutError:
        raise MalformedError(f"no whole body within {BODY_TIMEOUT_S:.0f} s", code="truncated_body") from None
    return b"".join(chunks)


async def read_body(request: Request) -> bytes:
    """The decoded body, its `Content-Digest` checked; bounded as sent and as decoded."""
    raw = await read_raw(request)
    return decode_body(
        raw,
        encoding=request.headers.get("content-encoding"),
        digest=request.headers.get("content-digest"),
        max_bytes=request.app.state.max_body_bytes,
    )


async def read_json(request: Request) -> Any:
    """The body as JSON, `application/json` or a `+json` type."""
    _check_media_type(request)
    return parse_json(await read_body(request))


async def read_model(request: Request, model: type[Model]) -> Model:
    """The body as `model`, strictly: no coercion, no unknown fields.

    Raises:
        MalformedError: Not JSON.
        InvalidInputError: JSON that is not a `model`; `errors` names each field.
    """
    _check_media_type(request)
    return parse_model(await read_body(request), model)


def parse_model(body: bytes, model: type[Model]) -> Model:
    """JSON bytes as `model`, strictly.

    Raises:
        MalformedError: Not JSON.
        InvalidInputError: JSON that is not a `model`; `errors` names each field.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        _refuse(error)


def parse_json(body: bytes) -> Any:
    """JSON without NaN, infinities, lone surrogates and excessive nesting.

    Raises:
        MalformedError: Anything else.
    """
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


def _refuse(error: ValidationError) -> NoReturn:
    errors = [describe(item) for item in error.errors(include_url=False, include_input=False, include_context=False)]
    if any(item["type"] == "json_invalid" for item in errors):
        raise MalformedError(f"not JSON: {errors[0]['msg']}"[:200]) from None
    raise InvalidInputError(summarise(errors), errors=errors) from None


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"body of more than {limit} bytes", remedy="send less at once")
