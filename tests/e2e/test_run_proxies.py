# SPDX-License-Identifier: Apache-2.0
"""A server behind a proxy that says for whom it speaks: nginx logs the same client as we do."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path

import pytest
from demo.receiver import Receiver
from servers import nginx
from stack import agent, to, wait_for_requests, wait_for_word
from support.namespaces import Network
from support.waiting import wait_until

PORT = 8080
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def octets(client: str, server: str, port: int, more: bytes = b"") -> bytes:
    """A header of version 2."""
    ends = ipaddress.ip_address(client), ipaddress.ip_address(server)
    addresses = b"".join(end.packed for end in ends) + struct.pack("!HH", port, 80)
    family = 0x11 if ends[0].version == 4 else 0x21
    return SIGNATURE + struct.pack("!BBH", 0x21, family, len(addresses + more)) + addresses + more


#: By the path that is asked for.
HEADERS = {
    "/line/4": b"PROXY TCP4 203.0.113.9 192.0.2.2 4711 80\r\n",
    "/line/6": b"PROXY TCP6 2001:db8::9 2001:db8::1 4712 443\r\n",
    "/line/nobody": b"PROXY UNKNOWN\r\n",
    "/octets/4": octets("203.0.113.10", "192.0.2.2", 4713),
    "/octets/6": octets("2001:db8::10", "2001:db8::1", 4714),
    "/octets/more": octets("203.0.113.11", "192.0.2.2", 4715, b"\x04\0\x10" + bytes(16)),
    "/octets/proxy": SIGNATURE + b"\x20\0\0\0",
}


def ask(net: Network, path: str, header: bytes, cuts: tuple[int, ...]) -> None:
    """A proxy's connection: a header and a request, in segments that end there."""
    asked = header + f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode()
    with net.client.connect(net.server.ipv4, PORT) as connection:
        for start, end in zip((0, *cuts), (*cuts, len(asked)), strict=True):
            connection.sendall(asked[start:end])
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 404 "), answer


def test_clients_are_those_that_the_server_knows(
    net: Network, receiver: Receiver, tmp_path: Path
) -> None:
    with nginx(net, tmp_path, PORT, proxied=True):
        measuring = agent(
            tmp_path, "--interface", net.server.interface, "--port", PORT,
            "--netns", net.server.netns, "--proxy-protocol", net.client.ipv4,
            environment=to(receiver),
        )  # fmt: skip
        with measuring as running:
            running.wait_ready()
            for path, header in HEADERS.items():
                ask(net, path, header, ())
                ask(net, f"{path}/apart", header, (len(header),))
            requests = wait_for_requests(receiver, 2 * len(HEADERS))
            running.stop().assert_clean(seen=2 * len(HEADERS))
        log = tmp_path / "proxied.log"
        wait_until(lambda: len(log.read_text().splitlines()) == len(requests), "nginx wrote it")
        known = {line.split()[0]: line.split()[1:] for line in log.read_text().splitlines()}

    assert len(known) == len(requests)
    for request in requests:
        path = request["url.path"]
        address, port, peer = known[path]
        assert request["network.peer.address"] == peer == net.client.ipv4
        assert request["http.response.status_code"] == 404
        request.assert_tiled()
        told = request["client.address"], request["client.port"]
        if "proxy" in path:
            assert address == "-"
            assert told == (peer, request["network.peer.port"])
        elif "nobody" in path:
            assert address == "-"
            assert told == (None, None)
        else:
            assert told == (address, int(port))


@pytest.mark.parametrize("path", ["/line/4", "/octets/4"])
def test_whose_headers_are_not_read_is_told(net: Network, tmp_path: Path, path: str) -> None:
    with nginx(net, tmp_path, PORT, proxied=True):
        measuring = agent(
            tmp_path, "--interface", net.server.interface, "--port", PORT,
            "--netns", net.server.netns, "--proxy-protocol", net.server.ipv4,
            environment={"OTEL_TRACES_EXPORTER": "none"},
        )  # fmt: skip
        with measuring as running:
            running.wait_ready()
            ask(net, path, HEADERS[path], ())
            wait_for_word(running, "1 connection to port 8080 begins with a header", "--proxy-prot")
            running.stop().assert_clean(seen=0)
