# SPDX-License-Identifier: Apache-2.0
"""An HTTP client that knows to the byte what it sent and got. The protocol is h11's."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

import h11
from support.namespaces import Network

USER_AGENT = "otelbpf-tests/1"


@dataclass(frozen=True)
class Exchange:
    """One request and its response, as the client saw them.

    Attributes:
        request_bytes, response_bytes: as on the wire: head and body.
        body: of the response, without chunk framing.
    """

    method: str
    target: str
    status: int
    request_bytes: int
    response_bytes: int
    request_body_bytes: int
    body: bytes


class Client:
    """One connection that is kept alive.

    Attributes:
        address, port: its own end.
    """

    def __init__(self, sock: socket.socket, host: str, port: int) -> None:
        self._socket = sock
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._protocol = h11.Connection(h11.CLIENT)
        self.host = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.address, self.port = sock.getsockname()[:2]

    @classmethod
    def of(cls, network: Network, port: int, host: str | None = None) -> Client:
        """Connects from the client's namespace, by default over the first veth and IPv4."""
        host = host or network.server.ipv4
        return cls(network.client.connect(host, port), host, port)

    @classmethod
    def local(cls, network: Network, port: int) -> Client:
        """Connects inside the server's namespace, over its loopback."""
        return cls(network.server.connect("127.0.0.1", port), "127.0.0.1", port)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def ask(
        self,
        target: str = "/",
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        chunked: bool = False,
    ) -> Exchange:
        """Sends a request and reads its whole response."""
        lines = {"Host": self.host, "User-Agent": USER_AGENT, **(headers or {})}
        if chunked:
            lines["Transfer-Encoding"] = "chunked"
        elif body:
            lines["Content-Length"] = str(len(body))
        protocol = self._protocol
        if protocol.our_state is h11.DONE:
            protocol.start_next_cycle()
        request = protocol.send(h11.Request(method=method, target=target, headers=[*lines.items()]))
        for start in range(0, len(body), 10_000):
            request += protocol.send(h11.Data(data=body[start : start + 10_000]))
        request += protocol.send(h11.EndOfMessage())
        self._socket.sendall(request)

        status, response_bytes, response = 0, 0, bytearray()
        while type(event := protocol.next_event()) is not h11.EndOfMessage:
            if event is h11.NEED_DATA:
                data = self._socket.recv(1 << 16)
                response_bytes += len(data)
                protocol.receive_data(data)
            elif type(event) is h11.Response:
                status = event.status_code
            elif type(event) is h11.Data:
                response += event.data
        assert protocol.trailing_data == (b"", False)
        return Exchange(
            method, target, status, len(request), response_bytes, len(body), bytes(response)
        )


def ask_at_once(network: Network, port: int, *, clients: int, each: int) -> None:
    """Many connections, and on each a few requests, all at the same time.

    They are for /MS/CONNECTION/TURN, where a server takes as long as the path's first part says.
    """

    def ask(number: int) -> None:
        with Client.of(network, port) as client:
            for turn in range(each):
                ms = (number * 7 + turn * 13) % 30
                assert client.ask(f"/{ms}/{number}/{turn}").status == 200

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
