"""Whether something serves, found out by a real connection."""

from __future__ import annotations

import asyncio
import ssl

import httpx2

# Trusts nobody: what we start here speaks plain HTTP, and to read the system's authorities takes 65 ms for each client.
PLAIN_HTTP = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_TIMEOUT_S = 2.0


async def tcp_accepts(port: int) -> bool:
    """Something accepts connections on this port of loopback."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def http_answers(url: str) -> bool:
    """A GET of `url` answers 200."""
    try:
        async with httpx2.AsyncClient(timeout=_TIMEOUT_S, verify=PLAIN_HTTP) as client:
            return (await client.get(url)).status_code == 200
    except (httpx2.HTTPError, OSError):
        return False


async def redis_answers(socket_path: str) -> bool:
    """A Redis or Valkey at this unix socket answers PING."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(socket_path)
            writer.write(b"PING\r\n")
            answer = await reader.readline()
    except (OSError, TimeoutError):
        return False
    writer.close()
    return answer.startswith(b"+PONG")
