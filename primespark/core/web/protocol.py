"""uvicorn's HTTP protocol with bounds on a request's head and on connections, which it has none of (0.54).

Its other implementation (h11) bounds the bytes but not the time, and costs 1.8 times the CPU of a small request.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterable
from typing import ClassVar

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from primespark.core.web.problems import problem

# Beside a body: request line, headers, framing of chunks, trailers.
MAX_HEAD_BYTES = 64 * 1024
HEAD_TIMEOUT_S = 30.0
# Within which a client takes the next 48 KiB of what waits for it: the distance between asyncio's two marks.
WRITE_TIMEOUT_S = 60.0
# Within which a body under way comes to its end when the server stops.
STOP_TIMEOUT_S = 3.0
MAX_CONNECTIONS = 512
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request head is too large (431), or not whole in time, or whose client does not read.

    Where there are too many, a new one takes the place of the one that has been idle for longest; where none is, its
    request is told 429. So who opens connections and says nothing keeps nobody out.
    """

    head_timeout_s: ClassVar[float] = HEAD_TIMEOUT_S
    write_timeout_s: ClassVar[float] = WRITE_TIMEOUT_S
    stop_timeout_s: ClassVar[float] = STOP_TIMEOUT_S
    # Who has just come, or was just answered, is about to ask.
    least_idle_s: ClassVar[float] = 5.0
    most_connections: ClassVar[int] = MAX_CONNECTIONS

    _is_in_head = False
    _beside_body_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the first head, if there is room."""
        others = [other for other in self.connections if not other.transport.is_closing()]
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        most = self.max_connections()
        if len(others) >= most and not self._end_an_idle_one(others):
            self.app = _refuse
        if len(others) < most + most // 2:
            self._expect_head()
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse, then look at what is left open."""
        self._beside_body_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._beside_body_bytes > MAX_HEAD_BYTES:
            self._refuse()
        elif self._is_in_head or (self._is_idle() and self.timeout_keep_alive_task is None):
            # The latter: blank lines, or the rest of a refused body, have ended uvicorn's own wait.
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave no timer behind."""
        self._end_wait()
        self._end_write_wait()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client has much to read; one that does not is left, or it would hold its answer for ever."""
        super().pause_writing()
        self._end_write_wait()
        self._write_timer = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads."""
        self._end_write_wait()
        super().resume_writing()

    def shutdown(self) -> None:
        """The server stops: wait for what is being answered, but not long for the rest of a request."""
        super().shutdown()
        self.loop.call_later(self.stop_timeout_s, self._leave_body)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._is_in_head = True

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._is_in_head = False
        self._beside_body_bytes = 0
        self._end_wait()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Whoever sends a body may send long."""
        self._beside_body_bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        """Idle, unless another request came behind."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def on_message_complete(self) -> None:
        """Count anew for the next request."""
        self._beside_body_bytes = 0
        super().on_message_complete()

    @classmethod
    def max_connections(cls) -> int:
        """Most at once, and half as many that are refused: each is a file, and other things need files too."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls.most_connections if files == resource.RLIM_INFINITY else min(cls.most_connections, files // 3)

    def _end_an_idle_one(self, others: Iterable[object]) -> bool:
        """Whether a connection was idle for some time, and is closed now."""
        before = self.loop.time() - self.least_idle_s
        idle = [other for other in others if isinstance(other, BoundedProtocol) and other._is_idle()]
        longest = min(idle, key=lambda other: other._idle_since, default=None)
        if longest is None or longest._idle_since > before:
            return False
        longest.transport.close()
        return True

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout_s, self.transport.close)

    def _end_wait(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _leave_body(self) -> None:
        if not self._is_idle() and self.cycle.more_body:
            self.transport.abort()

    def _end_write_wait(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _refuse(self) -> None:
        # In the middle of another request's answer a second one would only confuse.
        if self._is_idle():
            self.transport.write(_TOO_LARGE)
        self.transport.close()


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Tell any request that there are too many connections, and close this one."""
    remedy = "use fewer, and each for many requests"
    answer = problem(
        429, "too_many_connections", "too many connections at once", remedy=remedy, headers={"Connection": "close"}
    )
    await answer(scope, receive, send)
