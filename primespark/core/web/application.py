"""The application factory: every service of the project is made here."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from primespark.core.clock import to_rfc3339, utc_now
from primespark.core.logging import get_logger
from primespark.core.web import problems
from primespark.core.web.access import Authenticator, allow_anyone, check_policies, require_viewer_unless_local
from primespark.core.web.bodies import BodyBudget, Turns

_PIECE_BYTES = 256 * 1024

log = get_logger(__name__)

REQUESTS = Counter("primespark_http_requests_total", "Requests answered.", ["route", "method", "status"])
DURATION = Histogram("primespark_http_request_duration_seconds", "Time to the last byte of the answer.", ["route"])

Readiness = Callable[[], Awaitable[dict[str, str]]]
Summary = Callable[[], Awaitable[dict[str, Any]]]


def create_app(
    *,
    title: str,
    authenticate: Authenticator,
    routers: Sequence[APIRouter],
    readiness: Readiness,
    summary: Summary,
    max_body_bytes: int,
    open_health: bool,
    lifespan: Any = None,
    problem_members: Mapping[str, problems.Members] | None = None,
) -> FastAPI:
    """A service with health and metrics pages, problem+json errors, and access refused unless a route allows it.

    Args:
        title: Name of the service.
        authenticate: Turns a bearer token into its principal, or raises AuthenticationError.
        routers: The service's own routes, each with a `require(...)` policy.
        readiness: What is not ready, cause by name; empty when all is.
        summary: The object `/health` answers.
        max_body_bytes: Bound of a request body, as sent and as decoded.
        open_health: Whether `/health` and `/metrics` are open from loopback.
        lifespan: As in Starlette.
        problem_members: By prefix of the path (`/v1`), what errors there have beside the members of a problem. No
            prefix is the beginning of another.

    Raises:
        ConfigurationError: A route states no policy.
    """
    app = FastAPI(
        title=title, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan
    )
    app.state.authenticate = authenticate
    app.state.problem_members = dict(problem_members or {})
    app.state.max_body_bytes = max_body_bytes
    app.state.body_budget = budget = BodyBudget(max_body_bytes)
    app.state.json_turns = Turns()
    problems.install(app)
    app.include_router(_health_router(readiness, summary, open_health))
    for router in routers:
        app.include_router(router)
    check_policies(app)
    app.add_middleware(_Observed, budget=budget)
    return app


def _health_router(readiness: Readiness, summary: Summary, open_health: bool) -> APIRouter:
    router = APIRouter()
    guarded = Depends(require_viewer_unless_local(open_health))

    @router.get("/livez", dependencies=[Depends(allow_anyone)])
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @router.get("/readyz")
    async def readyz(_: Annotated[None, Depends(allow_anyone)]) -> Response:
        missing = await readiness()
        if missing:
            return JSONResponse({"status": "not ready", "missing": missing}, 503)
        return JSONResponse({"status": "ready"})

    @router.get("/health", dependencies=[guarded])
    async def health() -> dict[str, Any]:
        return await summary()

    @router.get("/metrics", dependencies=[guarded])
    def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return router


def _pieces(message: Message) -> Iterator[Message]:
    """A large body in pieces: uvicorn (0.54) takes whatever it is given at once and keeps it for a slow client.

    So a request is over when the last of its answer is on its way, and not before: what it holds is counted until then.
    """
    body: bytes = message.get("body", b"")
    last = max(len(body) - 1, 0) // _PIECE_BYTES * _PIECE_BYTES
    for begin in range(0, last, _PIECE_BYTES):
        yield {"type": message["type"], "body": body[begin : begin + _PIECE_BYTES], "more_body": True}
    yield {**message, "body": body[last:]} if last else message


class _Observed:
    """Gives each request an id, counts and times it, and answers 500 as problem+json when all else failed.

    Args:
        app: The application.
        budget: Of what requests hold until they are answered.
    """

    def __init__(self, app: ASGIApp, budget: BodyBudget) -> None:
        self._app = app
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, started, status = uuid.uuid4().hex, time.perf_counter(), 0

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                held_ms = (time.perf_counter() - started) * 1000
                message["headers"] += [
                    # Together they tell a device the time, whatever a long poll or an upload took.
                    (b"server-time", to_rfc3339(utc_now()).encode()),
                    (b"server-timing", f"total;dur={held_ms:.3f}".encode()),
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            for piece in _pieces(message):
                await send(piece)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, observed_send)
            except Exception:
                # The outermost place a request can fail: told as ours, never a traceback to the caller.
                log.exception("request_crashed", path=scope["path"])
                if status == 0:
                    remedy = f"see the log: {request_id}"
                    answer = problems.problem(500, "internal", "an error of ours", remedy=remedy, scope=scope)
                    await answer(scope, receive, observed_send)
            finally:
                self._budget.release(scope)
        route = getattr(scope.get("route"), "path", "unmatched")
        REQUESTS.labels(route, scope["method"], str(status)).inc()
        DURATION.labels(route).observe(time.perf_counter() - started)
