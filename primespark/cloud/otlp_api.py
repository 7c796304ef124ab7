"""`POST /v1/metrics`: metrics from OpenTelemetry's exporters and collectors, by its protocol over HTTP (OTLP)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.routing import APIRoute
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from starlette.responses import Response

from primespark.cloud import otlp
from primespark.cloud.intake import MAX_BODY_BYTES, Door, Intake, store, told
from primespark.cloud.state import Cloud, cloud_of
from primespark.core.encoding import GZIP, gunzip
from primespark.core.web import Role, read_body, require
from primespark.core.web.bodies import turns_of
from primespark.core.web.json_bounds import check_json_size
from primespark.errors import MalformedError, PrimeSparkError, UnsupportedMediaError

_PROTOBUF, _JSON = "application/x-protobuf", "application/json"
_UNPACKERS = {GZIP: gunzip}
CloudState = Annotated[Cloud, Depends(cloud_of)]


class _StatusRoute(APIRoute):
    """Tells errors as the protocol does: a `google.rpc.Status` in the encoding of the request."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except PrimeSparkError as error:
                text, headers = told(error)
                return _encoded(request, Status(message=text), error.http_status, headers)

        return answer


router = APIRouter(route_class=_StatusRoute)


@router.post("/v1/metrics", dependencies=[Depends(require(Role.OPERATOR))])
async def export_metrics(request: Request, cloud: CloudState) -> Response:
    """Store what can be stored of a request, in one transaction; the answer tells how many data points cannot be."""
    media_type = _media_type(request)
    if media_type not in (_PROTOBUF, _JSON):
        raise UnsupportedMediaError(f"Content-Type {media_type[:60]!r}", remedy=f"send {_PROTOBUF} or {_JSON}")
    body = await read_body(request, MAX_BODY_BYTES, _UNPACKERS)

    def read() -> Intake:
        return otlp.read(_from_json(body) if media_type == _JSON else _from_protobuf(body))

    intake = await turns_of(request).run(len(body), read)
    await store(cloud, intake, Door.OTLP)
    answer = ExportMetricsServiceResponse()
    if intake.refused:
        answer.partial_success.rejected_data_points = intake.refused
        answer.partial_success.error_message = intake.reason
    return _encoded(request, answer)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _from_protobuf(body: bytes) -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    try:
        request.ParseFromString(body)
    except DecodeError:
        raise MalformedError("not an ExportMetricsServiceRequest", remedy="send one as protobuf") from None
    return request


def _from_json(body: bytes) -> ExportMetricsServiceRequest:
    check_json_size(body)
    if not body.lstrip().startswith(b"{"):
        raise MalformedError("not a JSON object", remedy="send an ExportMetricsServiceRequest")
    request = ExportMetricsServiceRequest()
    try:
        # The protocol has receivers ignore what they do not know.
        json_format.Parse(body, request, ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise MalformedError(f"not an ExportMetricsServiceRequest: {error}"[:200], remedy="see the protocol") from None
    return request


def _encoded(request: Request, message: Message, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A message as the request asks: in JSON if it is, else as protobuf."""
    if _media_type(request) == _JSON:
        return Response(json_format.MessageToJson(message, indent=None), status, headers, _JSON)
    return Response(message.SerializeToString(), status, headers, _PROTOBUF)
