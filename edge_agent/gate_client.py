"""The cloud's gate over HTTP: what it answers, or an error of our tree that says whether to try again."""

from __future__ import annotations

import contextlib
import json
import platform
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

import httpx2
from prometheus_client import Counter
from pydantic import BaseModel, ValidationError

from edge_agent.bandwidth import Bandwidth, limited_transport
from edge_agent.connectivity import LinkHealth, LinkState, fault_of
from edge_agent.device_clock import DeviceClock
from edge_agent.fair_link import Traffic
from edge_agent.outgoing import Batch
from edge_agent.reading import Position
from edge_agent.slots.download import BlobPart
from primespark.core.link_settings import BandwidthSettings
from primespark.core.settings import NetworkSettings
from primespark.errors import (
    AuthenticationError,
    AuthorizationError,
    ConfigurationError,
    ConflictError,
    DeadlineExceededError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    PermanentError,
    PrimeSparkError,
    TooLargeError,
    TransientError,
    UnavailableError,
)
from primespark.sync.chunks import ChunkList, UploadState
from primespark.sync.records import (
    EnrolRequest,
    EnrolResponse,
    EpochRequest,
    EpochResponse,
    PullResponse,
    PushResponse,
    TimeResponse,
)

MAX_ANSWER_BYTES = 64 * 1024 * 1024
_NO_CONTENT, _PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 204, 206, 416
_JSON = {"Content-Type": "application/json"}
_ERRORS: dict[int, type[PrimeSparkError]] = {
    400: InvalidInputError,
    401: AuthenticationError,
    403: AuthorizationError,
    404: NotFoundError,
    409: ConflictError,
    410: PermanentError,
    413: TooLargeError,
    415: InvalidInputError,
    422: InvalidInputError,
    429: OverloadedError,
    503: UnavailableError,
    504: DeadlineExceededError,
}

SENT = Counter("primespark_sync_bytes_total", "Bytes of bodies exchanged with the cloud.", ["direction"])
for _direction in ("push", "pull", "blob", "upload"):
    SENT.labels(_direction)

Answer = TypeVar("Answer", bound=BaseModel)


class GateClient:
    """Requests of one device.

    Args:
        url: Of the cloud.
        network: Timeouts.
        clock: Learns the time from answers.
        link: Is told whether there are any.
        bandwidth: How fast bodies may travel.
    """

    def __init__(
        self,
        url: str,
        network: NetworkSettings,
        clock: DeviceClock | None = None,
        link: LinkHealth | None = None,
        bandwidth: Bandwidth | None = None,
    ) -> None:
        self._bandwidth = bandwidth or Bandwidth(BandwidthSettings())
        self.url = url
        self.link = link or LinkHealth()
        self._clock = clock
        self._timeout_s = network.request_timeout_s
        self._connect_timeout_s = network.connect_timeout_s
        try:
            self._client = httpx2.AsyncClient(
                base_url=url,
                timeout=self._timeout(0),
                follow_redirects=False,
                transport=limited_transport(self._bandwidth),
            )
        except httpx2.InvalidURL as error:
            raise ConfigurationError(f"network.cloud_url: {error}", remedy="give an http or https URL") from None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def use_key(self, key: str) -> None:
        """Send `key` from now on."""
        self._client.headers["Authorization"] = f"Bearer {key}"

    async def enrol(self, token: str, device_id: str) -> EnrolResponse:
        """Exchange a token for a key.

        Raises:
            AuthenticationError: Code `bad_token`, of the gate, or of a length no token has.
        """
        try:
            request = EnrolRequest(
                token=token,
                device_id=device_id,
                capabilities={"engines": ["onnx"], "architecture": platform.machine()},
                versions={"primespark": version("primespark"), "python": platform.python_version()},
            )
        except ValidationError:
            # The error would tell the token.
            raise AuthenticationError(
                f"a token of {len(token)} characters is none",
                remedy="ask for a new token: primespark device token",
                code="bad_token",
            ) from None
        body = request.model_dump_json().encode()
        return _parse(await self._send("POST", "/sync/v1/enroll", content=body, headers=_JSON), EnrolResponse)

    async def begin_epoch(self, request: EpochRequest) -> EpochResponse:
        """A new epoch for this device."""
        body = request.model_dump_json().encode()
        return _parse(await self._send("POST", "/sync/v1/epoch", content=body, headers=_JSON), EpochResponse)

    async def learn_time(self) -> None:
        """Ask for the time, where no answer has told it yet."""
        if self._clock is not None and self._clock.reading is None:
            _parse(await self._send("GET", "/sync/v1/time"), TimeResponse)

    async def push(self, batch: Batch) -> PushResponse:
        """Send a batch."""
        SENT.labels("push").inc(len(batch.body))
        # The length, else the body would go in pieces with their own framing.
        headers = {**_JSON, **batch.headers, "Content-Length": str(len(batch.body))}
        body = self._bandwidth.paced(batch.body)
        return _parse(await self._send("POST", "/sync/v1/push", content=body, headers=headers), PushResponse)

    async def pull(self, position: Position, limit: int, wait_s: float) -> PullResponse:
        """Changes after a position; waits up to `wait_s` for some."""
        parameters = {
            "cursor": position.cursor, "snapshot": position.snapshot, "groups": ",".join(position.groups),
            "limit": limit, "wait": wait_s,
        }  # fmt: skip
        answer = await self._send("GET", "/sync/v1/pull", params=parameters, timeout=self._timeout(wait_s))
        SENT.labels("pull").inc(len(answer.content))
        return _parse(answer, PullResponse)

    @contextlib.asynccontextmanager
    async def blob_from(self, sha256: str, offset: int, end: int | None = None) -> AsyncIterator[BlobPart]:
        """A blob's bytes from `offset` up to `end`, all of them where what answers knows no ranges; none are kept here.

        Raises:
            UnavailableError: No answer, or the link broke; also while the chunks are read.
            PermanentError: The gate refuses.
        """
        await self._bandwidth.until_low_may_go()
        # Ranges are of the bytes sent: packed, they would be others.
        headers = {"Accept-Encoding": "identity"}
        if offset or end is not None:
            last = "" if end is None else end - 1
            headers |= {"Range": f"bytes={offset}-{last}", "If-Range": f'"{sha256}"'}
        request = self._client.build_request("GET", f"/sync/v1/blobs/{sha256}", headers=headers)
        try:
            reply = await self._client.send(request, stream=True)
            try:
                if reply.status_code == _RANGE_NOT_SATISFIABLE:
                    yield BlobPart(0, _nothing())
                    return
                if not reply.is_success:
                    raise _explain(_Answer(reply.status_code, reply.headers, await self._read_bounded(reply)))
                yield BlobPart(_offset_of(reply), self._counted(reply), reply.status_code == _PARTIAL_CONTENT)
            finally:
                await reply.aclose()
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise self._no_answer(error) from None

    async def chunks_of(self, sha256: str) -> ChunkList:
        """What a blob is made of."""
        await self._bandwidth.until_low_may_go()
        answer = await self._send("GET", f"/sync/v1/blobs/{sha256}/chunks")
        SENT.labels("blob").inc(len(answer.content))
        return _parse(answer, ChunkList)

    async def name_chunks(self, blob: ChunkList) -> UploadState:
        """Say what a blob is made of; what of it the cloud lacks."""
        answer = await self._send_paced(f"/sync/v1/blobs/{blob.sha256}/chunks", blob.to_json(), _JSON)
        return _parse(answer, UploadState)

    async def send_chunk(self, sha256: str, data: bytes) -> None:
        """Send a chunk of a blob whose chunks were named."""
        await self._send_paced(f"/sync/v1/chunks/{sha256}", data, {"Content-Type": "application/octet-stream"})

    async def _send_paced(self, path: str, body: bytes, headers: dict[str, str]) -> _Answer:
        SENT.labels("upload").inc(len(body))
        # The length, else the body would go in pieces with their own framing.
        headers = {**headers, "Content-Length": str(len(body))}
        return await self._send("PUT", path, content=self._bandwidth.paced(body, Traffic.BLOBS), headers=headers)

    async def _send(self, method: str, path: str, *, timeout: Any = None, **parts: Any) -> _Answer:
        request = self._client.build_request(method, path, timeout=timeout or self._timeout(0), **parts)
        sent_ns = self._clock.monotonic_ns() if self._clock is not None else 0
        try:
            reply = await self._client.send(request, stream=True)
            if self._clock is not None and reply.is_success:
                self._clock.learn_from(reply.headers, sent_ns)
            try:
                answer = _Answer(reply.status_code, reply.headers, await self._read_bounded(reply))
            finally:
                await reply.aclose()
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise self._no_answer(error) from None
        # What stands between, as a portal that wants a password, answers with a page.
        if reply.status_code == _NO_CONTENT or "json" in reply.headers.get("content-type", ""):
            self.link.answered()
        else:
            self.link.failed(LinkState.NO_GATE)
        if reply.is_success:
            return answer
        raise _explain(answer)

    def _no_answer(self, error: Exception) -> UnavailableError:
        fault = fault_of(error)
        self.link.failed(fault)
        cause = f"no answer from the cloud: {type(error).__name__}: {error}"[:200]
        if fault is LinkState.NOT_CONNECTED:
            return UnavailableError(cause, remedy="check the link", code="not_connected")
        return UnavailableError(cause, remedy="check the way back, and the cloud", code="no_answer")

    async def _read_bounded(self, reply: httpx2.Response) -> bytes:
        chunks, size, arrived = [], 0, 0
        async for chunk in reply.aiter_bytes():
            size += len(chunk)
            if size > MAX_ANSWER_BYTES:
                raise UnavailableError(
                    f"an answer of more than {MAX_ANSWER_BYTES} bytes", remedy="check what answers there"
                )
            chunks.append(chunk)
            # As they came, packed.
            await self._bandwidth.received(reply.num_bytes_downloaded - arrived)
            arrived = reply.num_bytes_downloaded
        return b"".join(chunks)

    async def _counted(self, reply: httpx2.Response) -> AsyncIterator[bytes]:
        async for chunk in reply.aiter_raw():
            SENT.labels("blob").inc(len(chunk))
            yield chunk
            await self._bandwidth.received(len(chunk), Traffic.BLOBS)

    def _timeout(self, wait_s: float) -> httpx2.Timeout:
        return httpx2.Timeout(self._timeout_s + wait_s, connect=self._connect_timeout_s)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: httpx2.Headers
    content: bytes


async def _nothing() -> AsyncIterator[bytes]:
    yield b""


def _offset_of(reply: httpx2.Response) -> int:
    """Where what is sent begins."""
    if reply.status_code != _PARTIAL_CONTENT:
        return 0
    found = re.match(r"bytes ([0-9]{1,15})-", reply.headers.get("content-range", ""))
    if found is None:
        raise UnavailableError(
            "a part of a blob that does not say which", remedy="check what stands between", code="no_gate"
        )
    return int(found[1])


def _parse(answer: _Answer, model: type[Answer]) -> Answer:
    try:
        return model.model_validate_json(answer.content)
    except ValidationError:
        raise _stranger(answer) from None


def _explain(answer: _Answer) -> PrimeSparkError:
    """The gate's problem as one of our errors; what is no problem of ours comes from something in between."""
    try:
        problem = json.loads(answer.content)
        code, detail, remedy = str(problem["code"]), str(problem["detail"]), str(problem.get("remedy", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return _stranger(answer)
    kind = _ERRORS.get(answer.status, TransientError)
    return kind(detail[:200], remedy=remedy[:200], code=code[:64], retry_after_s=_retry_after(answer))


def _stranger(answer: _Answer) -> UnavailableError:
    return UnavailableError(
        f"status {answer.status} and no answer of a gate",
        remedy="check network.cloud_url, and what stands between",
        retry_after_s=_retry_after(answer),
        code="no_gate",
    )


def _retry_after(answer: _Answer) -> float | None:
    text = answer.headers.get("retry-after", "")
    # Of some digits, as ², no number is made.
    return float(text) if text.isdecimal() else None
