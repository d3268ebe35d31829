# SPDX-License-Identifier: Apache-2.0
"""A server of asyncio streams: what it was sent comes back, chunked if `/chunked` asks for it.

`/never` is not answered. `/wait/MS` keeps the loop from reading for that long, after its answer.
With --log it prints what it was asked for.
"""

from __future__ import annotations

import asyncio
import sys
import time

import h11


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    protocol = h11.Connection(h11.SERVER)
    while True:
        method, target, body = b"", "", bytearray()
        while type(event := protocol.next_event()) is not h11.EndOfMessage:
            if event is h11.NEED_DATA:
                if protocol.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    writer.write(protocol.send(go_on))
                data = await reader.read(1 << 16)
                if not data:
                    writer.close()
                    return
                protocol.receive_data(data)
            elif type(event) is h11.Request:
                method, target = event.method, event.target.decode()
            elif type(event) is h11.Data:
                body += event.data
            else:
                writer.close()
                return
        if "--log" in sys.argv:
            print(target, flush=True)
        if target == "/never":
            await asyncio.sleep(3600)
        head, pieces = [], [f"{target}\n".encode(), bytes(body)]
        if not target.startswith("/chunked"):
            head = [("Content-Length", str(sum(map(len, pieces))))]
        response = protocol.send(h11.Response(status_code=200, headers=head))
        for piece in filter(None, pieces if method != b"HEAD" else []):
            response += protocol.send(h11.Data(data=piece))
        writer.write(response + protocol.send(h11.EndOfMessage()))
        await writer.drain()
        if target.startswith("/wait/"):
            time.sleep(int(target.removeprefix("/wait/")) / 1000)
        if protocol.our_state is h11.MUST_CLOSE:
            writer.close()
            return
        protocol.start_next_cycle()


async def main() -> None:
    server = await asyncio.start_server(serve, ["0.0.0.0", "::"], int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())
