"""A link that can be cut: a TCP relay between devices and their cloud, for demonstrations and tests of outages.

Real bytes over real sockets; what it can do to them is what a network can do: refuse, break off, lose a reply, and
let nothing back.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Self

_CHUNK_BYTES = 64 * 1024


@dataclass(slots=True)
class LinkCounts:
    """What went over a link."""

    connections: int = 0
    refused: int = 0
    replies_lost: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class Link:
    """Relays connections from its own port on loopback to a target until it is cut.

    Args:
        target_port: Port of the target on loopback.
        port: Port to listen on; 0 takes a free one, read it from `port` after `start`.
    """

    def __init__(self, target_port: int, port: int = 0) -> None:
        self.counts = LinkCounts()
        self.port = port
        self._target_port = target_port
        self._is_cut = False
        self._lose_reply_to: bytes | None = None
        self._is_way_back_open = asyncio.Event()
        self._is_way_back_open.set()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Where devices reach the cloud through this link."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        self.cut()
        self._is_way_back_open.set()

    def cut(self) -> None:
        """Break off every connection and refuse new ones."""
        self._is_cut = True
        for writer in list(self._open):
            writer.transport.abort()

    def hold_replies(self) -> None:
        """Deliver requests and, until `heal`, none of their replies, as a network that is broken one way."""
        self._is_way_back_open.clear()

    def heal(self) -> None:
        """Let connections through again, and what was held back."""
        self._is_cut = False
        self._is_way_back_open.set()

    def lose_next_reply(self, request_prefix: bytes) -> None:
        """Deliver the next request that starts with `request_prefix`, then break off before its reply arrives."""
        self._lose_reply_to = request_prefix

    def _was_cut_meanwhile(self) -> bool:
        return self._is_cut

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            self.counts.refused += 1
            writer.transport.abort()
            return
        self.counts.connections += 1
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, upstream_writer}
        self._open |= pair
        if self._was_cut_meanwhile():
            self.cut()
        losing = asyncio.Event()
        up = asyncio.create_task(self._up(reader, upstream_writer, losing))
        try:
            await self._down(upstream_reader, writer, losing)
            # Everything came through: what is still in our buffer goes out before the end does.
            writer.close()
            await writer.wait_closed()
        except OSError:
            pass
        finally:
            self._open -= pair
            up.cancel()
            for end in pair:
                end.transport.abort()
            await asyncio.gather(up, return_exceptions=True)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                if self._lose_reply_to is not None and chunk.startswith(self._lose_reply_to):
                    self._lose_reply_to = None
                    losing.set()
                self.counts.bytes_up += len(chunk)
                writer.write(chunk)
                await writer.drain()
            writer.write_eof()
        except OSError:
            writer.transport.abort()  # which ends the other direction

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            if losing.is_set():
                self.counts.replies_lost += 1
                raise ConnectionAbortedError("the reply is lost")
            await self._is_way_back_open.wait()
            self.counts.bytes_down += len(chunk)
            writer.write(chunk)
            await writer.drain()
