"""A small gate over real HTTP that keeps its own account of what a device sent, and can refuse it."""

from __future__ import annotations

import asyncio
import base64
import socket
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from primespark.core.encoding import content_digest, decode_body
from primespark.core.manifests import SigningKey
from primespark.core.web.server import bind
from primespark.sync.documents import Document, merge
from primespark.sync.records import PushRequest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TOKEN = "token-of-sixteen-characters"
HLC = "1790000000000-0000-cloud"


class GateOracle:
    """What the cloud would hold; written from the protocol in DESIGN section 5, not from the device's code."""

    def __init__(self, signing_key: SigningKey | None = None) -> None:
        self.signing_key = signing_key
        self.tokens = {TOKEN}
        self.keys: dict[str, str] = {}
        self.epochs: dict[str, int] = {}
        self.facts: list[dict[str, Any]] = []
        self.lost: list[dict[str, Any]] = []
        self.documents: dict[tuple[str, str], dict[str, Any]] = {}
        self.log: list[tuple[str, str]] = []
        self.blobs: dict[str, bytes] = {}
        self.answers: dict[tuple[str, int, int], tuple[str, dict[str, Any]]] = {}
        self.watermarks: dict[tuple[str, int, str], int] = {}
        self.faults: deque[tuple[int, str]] = deque()
        # Of each push, the number of the dictionary it is packed with; 0 without.
        self.dictionaries: list[int] = []
        self.pull_faults: deque[tuple[int, str]] = deque()
        self.blob_faults: deque[tuple[int, str]] = deque()
        # After how many bytes a blob's next answers break off, or all stand still; and what was asked for.
        self.blob_stall: int | None = None
        self.blob_cuts: deque[int] = deque()
        self.blob_ranges: list[str | None] = []
        self.refuses_batch: Callable[[dict[str, Any]], bool] = lambda _: False
        self.refuses_record: Callable[[dict[str, Any]], bool] = lambda _: False
        self.batches = self.requests = self.replays = self.probes = 0
        self.changed = asyncio.Event()

    def put_document(self, scope: str, key: str, change: dict[str, Any]) -> None:
        """The cloud's newest state of a document."""
        self.documents[scope, key] = change
        self.log.append((scope, key))

    def values(self, stream: str) -> list[Any]:
        """Values `n` of a stream in the order they were applied."""
        return [fact["value"]["n"] for fact in self.facts if fact["stream"] == stream]

    def enrol(self, body: dict[str, Any]) -> Response:
        if body["token"] not in self.tokens:
            return problem(401, "bad_token")
        device = body["device_id"]
        self.epochs[device] = self.epochs.get(device, 0) + 1
        self.keys[device] = f"key-{device}-{self.epochs[device]}"
        trust = []
        if self.signing_key is not None:
            public = base64.b64encode(self.signing_key.public_bytes).decode()
            trust = [{"key_id": self.signing_key.key_id, "ed25519_public": public}]
        return JSONResponse(
            {
                "replica_id": device, "key": self.keys[device], "epoch": self.epochs[device], "server_epoch": 1,
                "limits": {"max_body_bytes": 1_000_000, "max_records": 5000},
                "server_time": datetime.now(UTC).isoformat(), "trust": trust,
            }
        )  # fmt: skip

    def begin_epoch(self, device: str) -> Response:
        self.epochs[device] += 1
        return JSONResponse(
            {"epoch": self.epochs[device], "server_epoch": 1, "server_time": datetime.now(UTC).isoformat()}
        )

    def push(self, device: str, raw: bytes, headers: Any) -> Response:
        self.requests += 1
        self.dictionaries.append(zstd.get_frame_info(raw).dictionary_id if "content-encoding" in headers else 0)
        if self.faults:
            return problem(*self.faults.popleft())
        assert headers["content-digest"] == content_digest(raw)
        payload = decode_body(
            raw, encoding=headers.get("content-encoding"), digest=headers["content-digest"], max_bytes=1_000_000
        )
        batch = PushRequest.model_validate_json(payload)
        key = (device, batch.epoch, batch.batch_seq)
        assert headers["idempotency-key"] == "/".join(map(str, key))
        if key in self.answers:
            digest, answer = self.answers[key]
            if digest != content_digest(raw):
                return problem(409, "replica_cloned")
            self.replays += 1
            return JSONResponse({**answer, "status": "replayed"})
        if batch.epoch != self.epochs[device]:
            return problem(409, "stale_epoch")
        if batch.batch_seq != self._last_batch(device) + 1:
            return problem(409, "batch_gap")
        records = [record.model_dump(mode="json") for record in batch.records]
        if any(self.refuses_batch(record) for record in records):
            return problem(422, "invalid_input")
        return self._apply(key, content_digest(raw), records)

    def _apply(self, key: tuple[str, int, int], digest: str, records: list[dict[str, Any]]) -> Response:
        device, epoch, batch_seq = key
        watermarks, results, facts, lost = dict(self.watermarks), [], [], []
        for index, record in enumerate(records):
            if record["op"] in ("put", "del"):
                self._merge(record)
                continue
            is_lost = record["op"] == "lost"
            first, last = (record["seq_from"], record["seq_to"]) if is_lost else (record["seq"], record["seq"])
            place = (device, epoch, record["stream"])
            if first != watermarks.get(place, 0) + 1:
                return problem(409, "seq_gap")
            watermarks[place] = last
            if is_lost:
                lost.append(record)
            elif self.refuses_record(record):
                results.append({"index": index, "status": "rejected", "code": "bad_label"})
            else:
                facts.append({**record, "device": device, "epoch": epoch})
        self.watermarks = watermarks
        self.facts += facts
        self.lost += lost
        self.batches += 1
        answer = {
            "status": "applied", "ack_batch_seq": batch_seq, "results": results, "server_hlc": HLC, "server_epoch": 1,
        }  # fmt: skip
        self.answers[key] = (digest, answer)
        return JSONResponse(answer)

    def _merge(self, record: dict[str, Any]) -> None:
        known = self.documents.get((record["scope"], record["key"]), {"value": {}, "vv": {}, "leaf_hlc": {}})
        ours, theirs = (Document(change["value"] or {}, change["vv"], change["leaf_hlc"]) for change in (known, record))
        merged = merge(ours, theirs)
        change = {"value": merged.value, "vv": merged.vv, "leaf_hlc": merged.leaf_hlc, "hlc": merged.hlc}
        self.put_document(record["scope"], record["key"], {**record, **change})

    def blob(self, sha256: str, data: bytes, headers: Any) -> Response:
        """The blob or, by RFC 9110, the part of it that is asked for; broken off where the test says so."""
        asked = headers.get("range")
        self.blob_ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if asked and headers.get("if-range") != f'"{sha256}"':
            start = 0
        if start >= len(data):
            return problem(416, "range")
        answer = {"Content-Length": str(len(data) - start)}
        if start:
            answer["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        end = start + self.blob_cuts.popleft() if self.blob_cuts else len(data)

        async def send() -> AsyncIterator[bytes]:
            for place in range(start, min(end, len(data)), 1000):
                while self.blob_stall is not None and place >= self.blob_stall:  # noqa: ASYNC110 (set by a test's thread)
                    await asyncio.sleep(0.01)
                yield data[place : min(place + 1000, end)]

        return StreamingResponse(send(), 206 if start else 200, answer)

    def pull(self, device: str, cursor: int) -> dict[str, Any]:
        seen = enumerate(self.log, start=1)
        newest = {name: place for place, name in seen if place > cursor and name[0] in (device, "fleet")}
        changes = [{"cursor": place, "change": self.documents[name]} for name, place in newest.items()]
        return {
            "changes": changes, "next_cursor": len(self.log), "has_more": False, "server_epoch": 1, "server_hlc": HLC,
        }  # fmt: skip

    def _last_batch(self, device: str) -> int:
        mine = (seq for name, epoch, seq in self.answers if (name, epoch) == (device, self.epochs[device]))
        return max(mine, default=0)


def problem(status: int, code: str) -> Response:
    return JSONResponse({"code": code, "detail": code, "status": status}, status, media_type="application/problem+json")


def build(oracle: Callable[[], GateOracle]) -> Starlette:  # noqa: C901 (seven short routes)
    """The gate's routes over the oracle of the moment."""

    def device_of(request: Request) -> str | None:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        return next((device for device, own in oracle().keys.items() if own == key), None)

    async def enrol(request: Request) -> Response:
        return oracle().enrol(await request.json())

    async def tell_time(request: Request) -> Response:
        if device_of(request) is None:
            return problem(401, "unauthenticated")
        now = datetime.now(UTC).isoformat()
        return JSONResponse({"server_time": now}, headers={"Server-Time": now, "Server-Timing": "total;dur=0.0"})

    async def livez(_: Request) -> Response:
        oracle().probes += 1
        return JSONResponse({"status": "alive"})

    async def epoch(request: Request) -> Response:
        device = device_of(request)
        return oracle().begin_epoch(device) if device else problem(401, "unauthenticated")

    async def push(request: Request) -> Response:
        raw, device = await request.body(), device_of(request)
        return oracle().push(device, raw, request.headers) if device else problem(401, "unauthenticated")

    async def pull(request: Request) -> Response:
        device = device_of(request)
        if device is None:
            return problem(401, "unauthenticated")
        if oracle().pull_faults:
            return problem(*oracle().pull_faults.popleft())
        deadline = asyncio.get_running_loop().time() + float(request.query_params["wait"])
        while True:
            page = oracle().pull(device, int(request.query_params["cursor"]))
            if page["changes"] or asyncio.get_running_loop().time() > deadline:
                return JSONResponse(page)
            await asyncio.sleep(0.01)

    async def blob(request: Request) -> Response:
        if device_of(request) is None:
            return problem(401, "unauthenticated")
        if oracle().blob_faults:
            return problem(*oracle().blob_faults.popleft())
        sha256 = request.path_params["sha256"]
        data = oracle().blobs.get(sha256)
        return oracle().blob(sha256, data, request.headers) if data is not None else problem(404, "not_found")

    return Starlette(
        routes=[
            Route("/sync/v1/enroll", enrol, methods=["POST"]),
            Route("/sync/v1/time", tell_time),
            Route("/livez", livez),
            Route("/sync/v1/epoch", epoch, methods=["POST"]),
            Route("/sync/v1/push", push, methods=["POST"]),
            Route("/sync/v1/pull", pull),
            Route("/sync/v1/blobs/{sha256}", blob),
        ]
    )


class RunningGate:
    """The gate on a port of its own; `oracle` may be exchanged between tests."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.oracle = GateOracle()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serve_gate() -> Iterator[RunningGate]:
    """The gate, served on a thread."""
    listener = bind("127.0.0.1", 0)
    gate = RunningGate(listener.getsockname()[1])
    with serve_on_thread(build(lambda: gate.oracle), listener):
        yield gate


@contextmanager
def serve_on_thread(app: ASGIApp, listener: socket.socket, lifespan: Literal["on", "off"] = "off") -> Iterator[None]:
    """Serve an application on a bound socket, on a thread; who connects before it is up waits for it."""
    # uvicorn listens only once its loop runs; a socket that is bound and does not listen refuses.
    listener.listen()
    config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1, lifespan=lifespan)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(5)
