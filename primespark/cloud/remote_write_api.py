"""`POST /api/v1/write`: samples from a Prometheus, by its remote write 1.0."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.routing import APIRoute
from starlette.responses import PlainTextResponse, Response

from primespark.cloud import remote_write
from primespark.cloud.intake import MAX_BODY_BYTES, Door, store, told
from primespark.cloud.state import Cloud, cloud_of
from primespark.core.web import Role, read_body, require
from primespark.core.web.bodies import turns_of
from primespark.errors import MalformedError, PrimeSparkError, UnsupportedMediaError

_PROTOBUF, _MESSAGE = "application/x-protobuf", "prometheus.WriteRequest"
_VERSION_HEADER, _VERSION = "X-Prometheus-Remote-Write-Version", "0.1.0"
# By its number, the specification 1.0 has senders say 0.1.0.
_VERSIONS = ("0.1.", "1.")
_UNPACKERS = {remote_write.SNAPPY: remote_write.unpack}
CloudState = Annotated[Cloud, Depends(cloud_of)]


class _PlainTextRoute(APIRoute):
    """Tells errors as the protocol does: as text, and with a 5xx whatever may be sent again.

    A sender throws away what is answered with a 4xx, a 429 among them where it is not told otherwise.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except PrimeSparkError as error:
                text, headers = told(error)
                status = 503 if error.retryable and error.http_status < 500 else error.http_status
                return PlainTextResponse(f"{text}\n", status, headers)

        return answer


router = APIRouter(route_class=_PlainTextRoute)


@router.post("/api/v1/write", status_code=204, dependencies=[Depends(require(Role.OPERATOR))])
async def remote_write_samples(request: Request, cloud: CloudState) -> None:
    """Store what can be stored of a request, in one transaction; an error where that is not all of it."""
    _check_form(request)
    body = await read_body(request, MAX_BODY_BYTES, _UNPACKERS)
    intake = await turns_of(request).run(len(body), partial(remote_write.read, body))
    await store(cloud, intake, Door.REMOTE_WRITE)
    if intake.refused:
        raise MalformedError(
            f"{intake.refused} samples cannot be stored, the first since: {intake.reason}",
            remedy="the others are",
            code="samples_refused",
        )


def _check_form(request: Request) -> None:
    """Refuse every form but that of version 1, which senders of another one may fall back to."""
    content_type = request.headers.get("content-type", "")
    media_type, *parameters = [part.strip() for part in content_type.split(";")]
    messages = [parameter[6:] for parameter in parameters if parameter.lower().startswith("proto=")]
    version = request.headers.get(_VERSION_HEADER, _VERSION)
    is_message = media_type.lower() == _PROTOBUF and all(message == _MESSAGE for message in messages)
    # Without any, what is packed could be taken for a message that has nothing of interest.
    is_packed = request.headers.get("content-encoding") == remote_write.SNAPPY
    if not (is_message and is_packed and version.startswith(_VERSIONS)):
        raise UnsupportedMediaError(
            f"Content-Type {content_type[:80]!r} of remote write {version[:20]!r}, or Content-Encoding",
            remedy=f"send remote write 1.0: {_PROTOBUF}, {remote_write.SNAPPY}, {_VERSION_HEADER}: {_VERSION}",
        )
