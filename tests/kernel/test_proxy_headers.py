# SPDX-License-Identifier: Apache-2.0
"""What proxies say before HTTP, over real connections: whose a request is, and its stamps."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import numpy as np
import pytest
from lab import CLIENT_IPV4, CLIENT_IPV6, PORT, SERVER_IPV4, SERVER_IPV6, SPARE_PORT
from messages import CHUNKED, OK, chunks, request
from meter import WHOLE, Meter, address, attached_meter, flags, stamps

from otelbpf.kernel.records import Counter, Stamp
from otelbpf.policy.proxies import network

pytestmark = pytest.mark.guest

CLIENT, CLIENT_PORT = "192.0.2.7", 4711
ENDS = ipaddress.ip_address(CLIENT).packed + bytes(4) + CLIENT_PORT.to_bytes(2, "big") + b"\0\x50"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LINE = f"PROXY TCP4 {CLIENT} 198.51.100.1 {CLIENT_PORT} 80\r\n".encode()
OCTETS = SIGNATURE + b"\x21\x11" + (len(ENDS) + 100).to_bytes(2, "big") + ENDS + bytes(100)
HEADERS = pytest.mark.parametrize("header", [LINE, OCTETS], ids=["line", "octets"])
#: What a request that is one segment has; who reads it is this thread, which is awake.
STAMPED = (
    Stamp.NIC, Stamp.TC, Stamp.TCP, Stamp.QUEUED, Stamp.READ, Stamp.WRITE, Stamp.TC_OUT,
    Stamp.ACKED,
)  # fmt: skip


@pytest.fixture(scope="module")
def _behind_a_proxy() -> Iterator[Meter]:
    with attached_meter(proxies=(network(CLIENT_IPV4), network("fd00:6f74::/64"))) as meter:
        yield meter


@pytest.fixture
def behind_a_proxy(_behind_a_proxy: Meter) -> Iterator[Meter]:
    """Programs that read headers of the lab's client, which is a proxy."""
    _behind_a_proxy.begin()
    yield _behind_a_proxy
    _behind_a_proxy.end()


def assert_told(record: np.void, target: str, peer: str = CLIENT_IPV4) -> None:
    """It is the client's, from the proxy, and whole."""
    assert record["http1"]["request_line"] == f"GET {target} HTTP/1.1".encode()
    assert record["peer_address"].tobytes() == address(peer)
    assert record["client_told"]
    assert record["client_address"].tobytes() == address(CLIENT)
    assert record["client_port"] == CLIENT_PORT
    assert record["status"] == 200
    assert record["request_bytes"] == len(request(target=target))
    assert flags(record) == WHOLE


@HEADERS
@pytest.mark.parametrize("host", [SERVER_IPV4, SERVER_IPV6])
def test_each_request_of_the_connection_is_the_clients(
    behind_a_proxy: Meter, header: bytes, host: str
) -> None:
    meter = behind_a_proxy
    peer = CLIENT_IPV4 if host == SERVER_IPV4 else CLIENT_IPV6
    pair = meter.lab.connect(host)
    pair.ask(header + request(target="/0"))
    pair.answer(OK)
    for number in range(1, 20):
        pair.exchange(request(target=f"/{number}"), OK)
    records = meter.records(20)
    for number, record in enumerate(records):
        assert_told(record, f"/{number}", peer)
        assert record["peer_port"] == pair.peer_port
        assert record["ordinal"] == number
    meter.assert_stamped(records, STAMPED)
    assert meter.losses() == {}


@HEADERS
def test_a_header_in_a_segment_of_its_own_has_no_part_in_the_stamps(
    behind_a_proxy: Meter, header: bytes
) -> None:
    meter = behind_a_proxy
    for number in range(5):
        pair = meter.lab.connect()
        pair.ask(header)
        pair.exchange(request(target=f"/{number}"), OK)
    records = meter.records(5)
    for number, record in enumerate(records):
        assert_told(record, f"/{number}")
        made = stamps(record)
        way = [made[stamp] for stamp in STAMPED if stamp in made]
        assert way == sorted(way)
    meter.assert_stamped(records, STAMPED)


@HEADERS
def test_byte_by_byte(behind_a_proxy: Meter, header: bytes) -> None:
    pair = behind_a_proxy.lab.connect()
    for octet in header + request(target="/slow"):
        pair.send_segment(bytes([octet]))
        pair.server.recv(1)
    pair.answer(OK)
    assert_told(behind_a_proxy.record(), "/slow")
    assert behind_a_proxy.losses() == {}


def test_who_comes_next_has_nothing_of_it(behind_a_proxy: Meter) -> None:
    """From the same port, and so in the same place; and the proxy's own requests."""
    meter = behind_a_proxy
    begins = [LINE, b"", SIGNATURE + b"\x20\0\0\0", b"PROXY UNKNOWN\r\n", b""]
    for number, begin in enumerate(begins):
        pair = meter.lab.connect(port=SPARE_PORT if number % 2 else PORT, from_port=30_123)
        pair.exchange(begin + request(target=f"/{number}"), OK)
        record = meter.record()
        assert bool(record["client_told"]) == (begin.startswith(b"PROXY"))
        if begin.startswith(b"PROXY UNKNOWN"):
            assert record["client_address"].tobytes() == bytes(16)
        meter.lab.close_connections()
        meter.wait_for(Counter.CONNECTIONS_CLOSED, number + 1)


def test_chunks_behind_a_header(behind_a_proxy: Meter) -> None:
    pair = behind_a_proxy.lab.connect()
    body = chunks([b"a" * 100, b"b" * 3000])
    pair.ask(OCTETS + request("POST", "/chunks", CHUNKED) + body)
    pair.answer(OK)
    record = behind_a_proxy.record()
    assert record["request_body_bytes"] == 3100
    assert record["client_address"].tobytes() == address(CLIENT)
    behind_a_proxy.assert_next_is_right(pair, 1)


@pytest.mark.parametrize(
    "wrong",
    [LINE.replace(b"TCP4", b"TCP6"), SIGNATURE + b"\x31\x11\0\x0c" + ENDS],
    ids=["line", "octets"],
)
def test_a_wrong_header_is_none(behind_a_proxy: Meter, wrong: bytes) -> None:
    pair = behind_a_proxy.lab.connect()
    pair.ask(wrong + request())
    pair.answer(OK)
    assert behind_a_proxy.counted(Counter.CONNECTIONS_NOT_HTTP) == 1
    assert behind_a_proxy.counted(Counter.SEEN) == 0
