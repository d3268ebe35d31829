# SPDX-License-Identifier: Apache-2.0
"""As little of a server as answers: one process, one loop, no parser."""

from __future__ import annotations

import asyncio
import sys

RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHello"


class Server(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(RESPONSE * data.count(b"\r\n\r\n"))


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, ["0.0.0.0", "::"], int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())
