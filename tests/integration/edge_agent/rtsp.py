"""A small RTSP server (RFC 2326) that sends JPEG over RTP (RFC 2435) in the control connection, as cameras do."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Iterator

_PAYLOAD_TYPE = 26
_CLOCK_HZ = 90_000
_FRAGMENT = 1200
_INLINE_TABLES = 255
_SDP = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\na=control:track1\r\n"


class RtspCamera:
    """Sends `picture` for ever, while it `flows`."""

    def __init__(self, picture: bytes) -> None:
        self.picture = picture
        self.flows = asyncio.Event()
        self.flows.set()
        self.url = ""

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a client's methods, then play."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            method = ""
            while method != "PLAY":
                request = (await reader.readuntil(b"\r\n\r\n")).decode()
                method = request.split(" ", 1)[0]
                sequence = next(line for line in request.split("\r\n") if line.lower().startswith("cseq:"))
                writer.write(self._answer(method, sequence).encode())
            for packet in self._packets():
                await self.flows.wait()
                # Interleaved (RFC 2326, 10.12): channel 0 and the packet's length before each.
                writer.write(b"$\0" + struct.pack(">H", len(packet)) + packet)
                await writer.drain()
                if packet[1] & 0x80:
                    await asyncio.sleep(0.02)  # the camera's frame rate
        writer.close()

    def _answer(self, method: str, sequence: str) -> str:
        extra, body = "", ""
        if method == "OPTIONS":
            extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY\r\n"
        elif method == "DESCRIBE":
            body = _SDP
            extra = f"Content-Base: {self.url}/\r\nContent-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
        elif method == "SETUP":
            extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
        return f"RTSP/1.0 200 OK\r\n{sequence}\r\nSession: 1\r\n{extra}\r\n{body}"

    def _packets(self) -> Iterator[bytes]:
        number, time = 0, 0
        while True:
            tables, width, height, scan = _parts(self.picture)
            for offset in range(0, len(scan), _FRAGMENT):
                fragment = scan[offset : offset + _FRAGMENT]
                marker = 0x80 if offset + _FRAGMENT >= len(scan) else 0
                rtp = struct.pack(">BBHII", 0x80, marker | _PAYLOAD_TYPE, number & 0xFFFF, time & 0xFFFFFFFF, 1)
                # Type 1 is 4:2:0; sizes are in blocks of eight.
                jpeg = struct.pack(">IBBBB", offset, 1, _INLINE_TABLES, width // 8, height // 8)
                if offset == 0:
                    jpeg += struct.pack(">BBH", 0, 0, len(tables)) + tables
                yield rtp + jpeg + fragment
                number += 1
            time += _CLOCK_HZ // 50


def _parts(jpeg: bytes) -> tuple[bytes, int, int, bytes]:
    """Quantisation tables, width, height and entropy-coded scan of a baseline JPEG file."""
    tables, width, height, at = b"", 0, 0, 2
    while True:
        marker, length = struct.unpack(">HH", jpeg[at : at + 4])
        segment = jpeg[at + 4 : at + 2 + length]
        at += 2 + length
        if marker == 0xFFDB:
            tables += b"".join(segment[start + 1 : start + 65] for start in range(0, len(segment), 65))
        elif marker == 0xFFC0:
            height, width = struct.unpack(">HH", segment[1:5])
        elif marker == 0xFFDA:
            return tables, width, height, jpeg[at:-2]


@contextlib.asynccontextmanager
async def rtsp_camera(picture: bytes) -> AsyncIterator[RtspCamera]:
    """A camera at work on a free port of 127.0.0.1; `picture` is a 4:2:0 JPEG with sides divisible by 16."""
    camera = RtspCamera(picture)
    server = await asyncio.start_server(camera.serve_one, "127.0.0.1", 0)
    camera.url = f"rtsp://127.0.0.1:{server.sockets[0].getsockname()[1]}/live"
    try:
        yield camera
    finally:
        server.close()
