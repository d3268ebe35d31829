# SPDX-License-Identifier: Apache-2.0
"""Interfaces that stand on each other: a packet that passes two that are measured is one packet."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from lab import INTERFACE, SERVER_IPV4, SERVER_IPV6, Lab, Pair, Worker, laboratory, receive
from messages import OK, request, response
from meter import WHOLE, Meter, flags, load, stamps
from strangers import Strangers
from support.commands import run
from support.waiting import wait_until
from test_lost_packets import unacknowledged
from test_netem import total_retransmits

from otelbpf.kernel import libbpf
from otelbpf.kernel.records import Counter, Stamp

UPPER = "upper0"


def ip(lab: Lab, *arguments: str) -> None:
    run("ip", "-n", lab.server_netns.name, *arguments)


def bridge(lab: Lab) -> None:
    ip(lab, "link", "add", UPPER, "type", "bridge", "forward_delay", "0")
    ip(lab, "link", "set", INTERFACE, "master", UPPER)


def macvlan(lab: Lab) -> None:
    ip(lab, "link", "add", UPPER, "link", INTERFACE, "type", "macvlan", "mode", "bridge")


def vlan(lab: Lab) -> None:
    """The packets of the lower one have a tag."""
    ip(lab, "link", "add", UPPER, "link", INTERFACE, "type", "vlan", "id", "5")
    client = lab.client_netns.name
    run("ip", "-n", client, "link", "add", UPPER, "link", "client0", "type", "vlan", "id", "5")
    run("ip", "-n", client, "addr", "flush", "dev", "client0")
    run("ip", "-n", client, "addr", "add", "198.18.0.2/24", "dev", UPPER)
    run("ip", "-n", client, "addr", "add", "fd00:6f74::2/64", "dev", UPPER, "nodad")
    run("ip", "-n", client, "link", "set", UPPER, "up")


def bond(lab: Lab) -> None:
    ip(lab, "link", "add", UPPER, "type", "bond", "mode", "active-backup")
    ip(lab, "link", "set", INTERFACE, "down")
    ip(lab, "link", "set", INTERFACE, "master", UPPER)


def put(upper: Callable[[Lab], None], lab: Lab) -> None:
    """Another interface on the server's, with its addresses."""
    ip(lab, "addr", "flush", "dev", INTERFACE)
    upper(lab)
    ip(lab, "addr", "add", f"{SERVER_IPV4}/24", "dev", UPPER)
    ip(lab, "addr", "add", f"{SERVER_IPV6}/64", "dev", UPPER, "nodad")
    ip(lab, "link", "set", INTERFACE, "up")
    ip(lab, "link", "set", UPPER, "up")


@pytest.fixture(scope="module", params=[bridge, macvlan, vlan, bond])
def _stacked(request: pytest.FixtureRequest) -> Iterator[Meter]:
    with laboratory() as lab:
        try:
            put(request.param, lab)
        except RuntimeError as error:
            pytest.skip(f"this kernel makes no {request.param.__name__} ({error})")
        meter = load(lab)
        try:
            with meter.attached(INTERFACE, UPPER):
                yield meter
        finally:
            meter.close()


@pytest.fixture
def stacked(_stacked: Meter) -> Iterator[Meter]:
    """Programs on both interfaces."""
    _stacked.begin()
    yield _stacked
    _stacked.end()
    assert _stacked.counted(Counter.RETRANSMITS_LATE) == 0


def assert_as_one(records: np.ndarray, sent_again: tuple[int, int] = (0, 0)) -> None:
    """They are as they would be at one interface.

    Args:
        sent_again: segments of the request and of the response.
    """
    for record in records:
        assert flags(record) == WHOLE
        assert (record["request_retransmits"], record["response_retransmits"]) == sent_again
        assert record["out_of_order"] == 0
        at = stamps(record)
        way = (Stamp.TC, Stamp.TCP, Stamp.READ, Stamp.WRITE, Stamp.TC_OUT)
        assert sorted(at[stamp] for stamp in way) == [at[stamp] for stamp in way]


@pytest.mark.parametrize("host", [SERVER_IPV4, SERVER_IPV6])
def test_each_request_is_one(stacked: Meter, host: str) -> None:
    pair = stacked.lab.connect(host)
    for _ in range(23):
        pair.exchange(request(), OK)
    records = stacked.records(23)
    assert records["ordinal"].tolist() == list(range(23))
    assert_as_one(records)
    assert not any(Stamp.TC_OUT_LAST in stamps(record) for record in records)
    assert stacked.counted(Counter.CONNECTIONS_OPENED) == 1


def test_long_messages_are_as_long_as_they_are(stacked: Meter) -> None:
    """Of many packets, merged and not."""
    asked, answered = request("POST", body=bytes(1 << 20)), response(body=bytes(3 << 20))
    pair = stacked.lab.connect()
    with Worker(lambda: receive(pair.server, len(asked))):
        pair.client.sendall(asked)
    with Worker(lambda: receive(pair.client, len(answered))):
        pair.server.sendall(answered)
    record = stacked.record()
    # Who waits long for a processor may probe, in vain, if the last segment was lost.
    assert_as_one([record], tuple(map(total_retransmits, (pair.client, pair.server))))
    assert (record["request_bytes"], record["response_bytes"]) == (len(asked), len(answered))


def lose_towards_client(
    stacked: Meter, stranger: Strangers, pair: Pair, meanwhile: Callable[[], None]
) -> None:
    """The next packet that the client is to receive is lost."""
    with stranger.attached(stacked.lab, "lose", "client", libbpf.BPF_TCX_INGRESS):
        stranger.lose(1)
        meanwhile()
        wait_until(lambda: stranger.still_to_lose() == 0, "a packet was lost")
        wait_until(lambda: not any(map(unacknowledged, (pair.client, pair.server))), "it came")


def test_a_response_that_is_sent_again_is_that_once(stacked: Meter, stranger: Strangers) -> None:
    pair = stacked.lab.connect()
    pair.exchange(request(), OK)
    pair.ask(request())
    lose_towards_client(stacked, stranger, pair, lambda: pair.server.sendall(OK))
    assert receive(pair.client, len(OK)) == OK
    first, second = stacked.records(2)
    assert (first["response_retransmits"], second["response_retransmits"]) == (0, 1)
    assert second["request_retransmits"] == 0
    stacked.assert_next_is_right(pair, 2)


def test_a_request_that_is_sent_again_is_that_once(stacked: Meter, stranger: Strangers) -> None:
    """Its acknowledgement was lost."""
    pair = stacked.lab.connect()
    pair.exchange(request(), OK)
    lose_towards_client(stacked, stranger, pair, lambda: pair.client.sendall(request()))
    assert receive(pair.server, len(request())) == request()
    pair.answer(OK)
    first, second = stacked.records(2)
    assert (first["request_retransmits"], second["request_retransmits"]) == (0, 1)
    assert (second["response_retransmits"], second["out_of_order"]) == (0, 0)
    stacked.assert_next_is_right(pair, 2)


def test_a_segment_that_comes_early_is_that_once(stacked: Meter, stranger: Strangers) -> None:
    """The one before it was lost on its way to the server."""
    pair = stacked.lab.connect()
    pair.exchange(request(), OK)
    asked = request("POST", body=bytes(200))
    pair.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with stranger.attached(stacked.lab, "lose", "client", libbpf.BPF_TCX_EGRESS):
        stranger.lose(1)
        pair.client.sendall(asked[:30])
        wait_until(lambda: stranger.still_to_lose() == 0, "a packet was lost")
        pair.client.sendall(asked[30:])
        assert receive(pair.server, len(asked)) == asked
    pair.answer(OK)
    first, second = stacked.records(2)
    assert (first["out_of_order"], second["out_of_order"]) == (0, 1)
    assert second["response_retransmits"] == 0
    assert second["request_bytes"] == len(asked)
    stacked.assert_next_is_right(pair, 2)


def test_what_passes_both_in_the_dark_does_not_come_again(stacked: Meter) -> None:
    """A client has lost the framing. Each packet that is read in the dark comes twice."""
    pair = stacked.lab.connect()
    pair.exchange(b"GET /unclear HTTP/1.1\r\nContent-Length: 1x\r\n\r\n", OK)
    pair.exchange(request("POST", "/unknown", body=bytes(5000)), OK)
    assert stacked.losses() == {Counter.LOST_PARSER: 1}
    stacked.begin()
    pair.exchange(request(target="/told"), OK)
    assert stacked.record()["http1"]["request_line"] == b"GET /told HTTP/1.1"
