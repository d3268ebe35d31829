# SPDX-License-Identifier: Apache-2.0
"""A server behind nginx, which says for whom it forwards: the client is whoever has asked nginx."""

from __future__ import annotations

from pathlib import Path

import pytest
from demo.receiver import Receiver
from servers import nginx, python_server
from stack import agent, to, wait_for_requests
from support.namespaces import Network

PORT = 8080
BEHIND = 9090


def ask(net: Network, host: str, path: str, lines: bytes) -> str:
    """Asks nginx; the address that was asked from."""
    with net.client.connect(host, PORT) as connection:
        own: str = connection.getsockname()[0]
        head = f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n".encode()
        connection.sendall(head + lines + b"\r\n")
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 "), answer
    return own


#: What a client may send, to be believed.
LINES = (
    b"",
    b"X-Forwarded-For: 203.0.113.9\r\n",
    b"X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-For: 127.0.0.1, unknown\r\n",
    b"X-Forwarded-For:\r\n",
    b"X-Forwarded-For: " + b"203.0.113.9, " * 60 + b"203.0.113.9\r\n",
    b"Forwarded: for=203.0.113.9\r\n",
)


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", None])
def test_the_client_is_who_has_asked_the_proxy(
    net: Network, receiver: Receiver, tmp_path: Path, header: str | None
) -> None:
    asked = ["--forwarded-by", "127.0.0.1", "--forwarded-header", header] if header else []
    with (
        python_server(net, tmp_path, "threading_server", BEHIND),
        nginx(net, tmp_path, PORT, upstream=BEHIND),
        agent(
            tmp_path, "--interface", "lo", "--port", BEHIND, "--netns", net.server.netns, *asked,
            environment=to(receiver),
        ) as running,
    ):  # fmt: skip
        running.wait_ready()
        clients = {}
        for host in (net.server.ipv4, net.server.ipv6):
            for number, lines in enumerate(LINES):
                path = f"/item-{number}/{'six' if ':' in host else 'four'}"
                clients[path] = ask(net, host, path, lines)
        requests = wait_for_requests(receiver, len(clients))
        running.stop().assert_clean(seen=len(clients))
    assert {request["url.path"] for request in requests} == set(clients)
    for request in requests:
        path = request["url.path"]
        assert request["network.peer.address"] == "127.0.0.1"
        told = request["client.address"], request["client.port"]
        if header == "x-forwarded-for":
            assert told == (clients[path], None)
        elif header and LINES[int(path[6])].startswith(b"Forwarded"):
            # nginx hands on what it does not write: so what is believed is to be named with care.
            assert told == ("203.0.113.9", None)
        else:
            assert told == ("127.0.0.1", request["network.peer.port"])
