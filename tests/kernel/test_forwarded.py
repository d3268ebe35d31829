# SPDX-License-Identifier: Apache-2.0
"""For whom proxies say that they have forwarded a request, over real connections."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from lab import CLIENT_IPV4, CLIENT_IPV6, SERVER_IPV4, SERVER_IPV6, laboratory
from messages import OK, request
from meter import WHOLE, Meter, address, flags, load

from otelbpf.policy.proxies import Forwarding, Header, network

pytestmark = pytest.mark.guest

NETWORKS = tuple(map(network, (CLIENT_IPV4, "fd00:6f74::/64", "10.0.0.0/8")))
NOBODY = bytes(16)


@pytest.fixture(scope="module", params=list(Header))
def _behind_proxies(request: pytest.FixtureRequest) -> Iterator[tuple[Meter, Header]]:
    with laboratory() as lab:
        meter = load(lab, forwarding=Forwarding(NETWORKS, request.param))
        try:
            with meter.attached():
                yield meter, request.param
        finally:
            meter.close()


@pytest.fixture
def behind_proxies(_behind_proxies: tuple[Meter, Header]) -> Iterator[tuple[Meter, Header]]:
    """Programs that keep a header; the lab's client is a proxy that is believed."""
    meter, header = _behind_proxies
    meter.begin()
    yield meter, header
    meter.end()


def lines_of(header: Header, *nodes: str) -> bytes:
    """A line of each, as a proxy adds them; of the other header there is one, too."""
    other = next(each for each in Header if each is not header)
    lines = [f"{other}: {_value(other, '203.0.113.99')}\r\n"]
    lines += [f"{header.title()}: {_value(header, node)}\r\n" for node in nodes]
    return "".join(lines).encode()


def _value(header: Header, node: str) -> str:
    return node if header is Header.X_FORWARDED_FOR else f'proto=http;for="{node}"'


def asked(header: Header, target: str, *nodes: str) -> bytes:
    return request(target=target)[: -len(b"\r\n")] + lines_of(header, *nodes) + b"\r\n"


def assert_told(record: np.void, client: bytes | None, port: int = 0) -> None:
    assert flags(record) == WHOLE
    assert bool(record["client_told"]) == (client is not None)
    if client is not None:
        assert record["client_address"].tobytes() == client
        assert record["client_port"] == port


@pytest.mark.parametrize("host", [SERVER_IPV4, SERVER_IPV6])
def test_each_request_has_its_own_client(behind_proxies: tuple[Meter, Header], host: str) -> None:
    meter, header = behind_proxies
    pair = meter.lab.connect(host)
    nodes = {
        "/one": (("198.51.100.1",), address("198.51.100.1"), 0),
        "/none": ((), None, 0),
        "/chain": (("1.1.1.1", "198.51.100.2:4711", "10.0.0.1"), address("198.51.100.2"), 4711),
        "/six": (("[2001:db8::7]:5", "10.1.1.1", "10.2.2.2"), address("2001:db8::7"), 5),
        "/hidden": (("198.51.100.3", "_hidden"), NOBODY, 0),
        "/all": (("10.3.3.3", "10.1.1.1"), address("10.3.3.3"), 0),
        "/long": ((*["198.51.100.4"] * 12, "10.1.1.1"), address("198.51.100.4"), 0),
    }
    for target, (told, _, _) in nodes.items():
        pair.exchange(asked(header, target, *told), OK)
    for record, (target, (_, client, port)) in zip(
        meter.records(len(nodes)), nodes.items(), strict=True
    ):
        assert record["http1"]["request_line"] == f"GET {target} HTTP/1.1".encode()
        peer = CLIENT_IPV4 if host == SERVER_IPV4 else CLIENT_IPV6
        assert record["peer_address"].tobytes() == address(peer)
        assert_told(record, client, port)
    assert meter.losses() == {}


def test_byte_by_byte(behind_proxies: tuple[Meter, Header]) -> None:
    meter, header = behind_proxies
    pair = meter.lab.connect()
    for octet in asked(header, "/slow", "198.51.100.1", "10.1.1.1"):
        pair.send_segment(bytes([octet]))
        pair.server.recv(1)
    pair.answer(OK)
    assert_told(meter.record(), address("198.51.100.1"))
    assert meter.losses() == {}


def test_many_more_lines_than_there_is_room_for(behind_proxies: tuple[Meter, Header]) -> None:
    meter, header = behind_proxies
    pair = meter.lab.connect()
    pair.exchange(asked(header, "/", *["198.51.100.1"] * 20, "198.51.100.2"), OK)
    assert_told(meter.record(), address("198.51.100.2"))
    pair.exchange(asked(header, "/", "198.51.100.1", *["10.100.100.100"] * 20), OK)
    assert_told(meter.record(), NOBODY)
    assert meter.losses() == {}
