"""Errors on the wire: RFC 9457 problem+json with the stable `code` of the error tree."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from primespark.core.logging import get_logger
from primespark.errors import PrimeSparkError

MEDIA_TYPE = "application/problem+json"
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media"}

log = get_logger(__name__)


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    remedy: str = "",
    errors: list[dict[str, object]] | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """A problem+json answer."""
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
    # ASCII, so that a lone surrogate quoted from a request cannot break the answer.
    return Response(json.dumps(body, ensure_ascii=True), status, headers, MEDIA_TYPE)


def from_error(error: PrimeSparkError) -> Response:
    """The answer for one of our errors."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if error.http_status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return problem(
        error.http_status, error.code, error.message, remedy=error.remedy, errors=error.errors, headers=headers
    )


def install(app: FastAPI) -> None:
    """Answer every error of `app` as problem+json."""

    @app.exception_handler(PrimeSparkError)
    async def _ours(_request: Request, error: PrimeSparkError) -> Response:
        if error.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.warning("request_failed", code=error.code, cause=error.message)
        return from_error(error)

    @app.exception_handler(HTTPException)
    async def _http(_request: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "http_error")
        return problem(error.status_code, code, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def _validation(_request: Request, error: RequestValidationError) -> Response:
        errors = [describe(item) for item in error.errors()]
        return problem(422, "invalid_input", summarise(errors), errors=errors)

    @app.exception_handler(ClientDisconnect)
    async def _gone(_request: Request, _error: ClientDisconnect) -> Response:
        return problem(400, "truncated_body", "the connection ended before the body did", remedy="send it again")


def describe(item: Any) -> dict[str, object]:
    """One fault of a validation, without the input: echoing a NaN would break the answer."""
    return {"loc": ".".join(str(part) for part in item["loc"]), "msg": item["msg"], "type": item["type"]}


def summarise(errors: list[dict[str, object]]) -> str:
    """The first faults in one line."""
    shown = "; ".join(f"{error['loc'] or 'body'}: {error['msg']}" for error in errors[:3])
    return shown + (f"; and {len(errors) - 3} more" if len(errors) > 3 else "")
