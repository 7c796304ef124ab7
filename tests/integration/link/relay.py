"""The internet between two tunnel ends, as a program: datagrams are late, some are lost, and each way can be cut.

`python -m tests.integration.link.relay LISTEN PORT TARGET`; lines of JSON on its input change `delay_s`, `loss`,
`forth` and `back` (whether datagrams to and from the target go through). It says `ready` once it listens, and after
each change.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from typing import Any


class Way:
    """Datagrams in one direction."""

    def __init__(self) -> None:
        self.is_open, self.delay_s, self.loss = True, 0.0, 0.0
        self.target: asyncio.DatagramTransport | None = None
        self.address: Any = None
        self._chance = random.Random(7)

    def carry(self, data: bytes) -> None:
        if not self.is_open or self._chance.random() < self.loss or self.target is None:
            return
        # Jitter as large as the delay: datagrams overtake one another.
        delay_s = self.delay_s * self._chance.uniform(0.5, 1.5)
        asyncio.get_running_loop().call_later(delay_s, self.target.sendto, data, self.address)


class End(asyncio.DatagramProtocol):
    """One of the relay's two sockets; what comes in goes one way, and the other way learns where it came from."""

    def __init__(self, outward: Way, inward: Way) -> None:
        self._outward, self._inward = outward, inward

    def datagram_received(self, data: bytes, address: Any) -> None:
        self._inward.address = address
        self._outward.carry(data)

    def error_received(self, _: Exception) -> None:
        """Nobody listens there yet: the datagram is lost, as others are."""


async def main(listen: str, port: int, target: str) -> None:
    loop = asyncio.get_running_loop()
    forth, back = Way(), Way()
    back.target, _ = await loop.create_datagram_endpoint(lambda: End(forth, back), (listen, port))
    forth.target, _ = await loop.create_datagram_endpoint(lambda: End(back, forth), ("0.0.0.0", 0))
    forth.address = (target, port)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print("ready", flush=True)
    while line := await reader.readline():
        told = json.loads(line)
        for way in (forth, back):
            way.delay_s, way.loss = told.get("delay_s", way.delay_s), told.get("loss", way.loss)
        forth.is_open, back.is_open = told.get("forth", forth.is_open), told.get("back", back.is_open)
        print("ready", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
