"""Errors on the wire: RFC 9457 problem+json with the stable `code` of the error tree."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Scope

from primespark.core.logging import get_logger
from primespark.errors import PrimeSparkError

MEDIA_TYPE = "application/problem+json"
CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media"}

OTHER_CODE = "http_error"
MAX_DESCRIBED = 20
_MAX_TEXT = 200
_RETRY_AFTER_S = 1

# From the members of a problem to more of them, for clients that read errors in a form of their own.
Members = Callable[[Mapping[str, Any]], dict[str, Any]]

log = get_logger(__name__)


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    remedy: str = "",
    errors: list[dict[str, object]] | None = None,
    headers: dict[str, str] | None = None,
    scope: Scope | None = None,
) -> Response:
    """A problem+json answer; 429 and 503 always say when to try again.

    Args:
        status: Of HTTP.
        code: Stable, of the error tree.
        detail: What happened.
        remedy: What to do next.
        errors: Faults of a validation.
        headers: Further ones.
        scope: Of the request: its path may give the answer further members, see `create_app`.
    """
    headers = dict(headers or {})
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers.setdefault("Retry-After", str(_RETRY_AFTER_S))
    body: dict[str, Any] = {
        "type": f"urn:primespark:error:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
    }
    if remedy:
        body["remedy"] = remedy
    if errors:
        body["errors"] = errors
    if scope is not None:
        body |= _further_members(scope, body)
    # ASCII, so that a lone surrogate quoted from a request cannot break the answer.
    return Response(json.dumps(body, ensure_ascii=True), status, headers, MEDIA_TYPE)


def from_error(error: PrimeSparkError, scope: Scope | None = None) -> Response:
    """The answer for one of our errors, see `problem`."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if error.http_status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return problem(
        error.http_status, error.code, error.message, remedy=error.remedy, errors=error.errors, headers=headers,
        scope=scope,
    )  # fmt: skip


def _further_members(scope: Scope, body: Mapping[str, Any]) -> dict[str, Any]:
    by_prefix: Mapping[str, Members] = getattr(scope["app"].state, "problem_members", {})
    found = [members for prefix, members in by_prefix.items() if f"{scope['path']}/".startswith(f"{prefix}/")]
    return found[0](body) if found else {}


def install(app: FastAPI) -> None:
    """Answer every error of `app` as problem+json."""

    @app.exception_handler(PrimeSparkError)
    async def _ours(request: Request, error: PrimeSparkError) -> Response:
        if error.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.warning("request_failed", code=error.code, cause=error.message)
        return from_error(error, request.scope)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        code = CODES.get(error.status_code, OTHER_CODE)
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"no route {request.url.path[:_MAX_TEXT]}"
            return problem(
                404, code, detail, remedy="docs/http.md lists the routes", headers=headers, scope=request.scope
            )
        return problem(error.status_code, code, str(error.detail), headers=headers, scope=request.scope)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> Response:
        errors = describe(error.errors())
        summary = summarise(errors, len(error.errors()))
        return problem(422, "invalid_input", summary, errors=errors, scope=request.scope)

    @app.exception_handler(ClientDisconnect)
    async def _gone(request: Request, _error: ClientDisconnect) -> Response:
        detail = "the connection ended before the body did"
        return problem(400, "truncated_body", detail, remedy="send it again", scope=request.scope)


def describe(faults: Sequence[Any]) -> list[dict[str, object]]:
    """The first faults of a validation, without the input: echoing a NaN would break the answer."""
    return [
        {
            "loc": ".".join(str(part) for part in item["loc"])[:_MAX_TEXT],
            "msg": item["msg"].removeprefix("Value error, ")[:_MAX_TEXT],
            "type": item["type"],
        }
        for item in faults[:MAX_DESCRIBED]
    ]


def summarise(errors: list[dict[str, object]], count: int) -> str:
    """The first of `count` faults in one line."""
    shown = "; ".join(f"{error['loc'] or 'body'}: {error['msg']}" for error in errors[:3])
    return shown + (f"; and {count - 3} more" if count > 3 else "")
