# SPDX-License-Identifier: Apache-2.0
"""Packets that the network loses: TCP sends them again, and the ledger shows the wait."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import numpy as np
import pytest
from lab import Lab, Pair, Worker, receive
from messages import CHUNKED, OK, chunks, request, response
from meter import WHOLE, Meter, flags, stages, stamps
from strangers import Strangers
from support.waiting import wait_until

from otelbpf.kernel import libbpf
from otelbpf.kernel.records import Stamp

RTO_NS = 190_000_000  # the least is 200 ms, by the kernel's coarse clock
MIB = 1 << 20
#: Every request has these.
STAMPS = {
    Stamp.NIC, Stamp.TC, Stamp.TCP, Stamp.QUEUED, Stamp.READ, Stamp.WRITE, Stamp.TC_OUT,
    Stamp.ACKED,
}  # fmt: skip


@pytest.fixture
def lossy_towards_client(lab: Lab, stranger: Strangers) -> Iterator[Strangers]:
    """Loses what the client is to receive, once it is told to."""
    with stranger.attached(lab, "lose", "client", libbpf.BPF_TCX_INGRESS):
        yield stranger
        stranger.lose(0)


@pytest.fixture
def lossy_towards_server(lab: Lab, stranger: Strangers) -> Iterator[Strangers]:
    """Loses what the server is to receive, between XDP and TC."""
    with stranger.attached(lab, "lose", "server", libbpf.BPF_TCX_INGRESS, first=True):
        yield stranger
        stranger.lose(0)


@pytest.fixture
def lossy_on_the_way(lab: Lab, stranger: Strangers) -> Iterator[Strangers]:
    """Loses what the client sends, before it comes to the server's interface."""
    with stranger.attached(lab, "lose", "client", libbpf.BPF_TCX_EGRESS):
        yield stranger
        stranger.lose(0)


def test_a_lost_response_has_left_when_it_is_sent_again(
    lab: Lab, meter: Meter, lossy_towards_client: Strangers
) -> None:
    pair = lab.connect()
    answered = response(body=bytes(500))
    pair.exchange(request(), OK)
    meter.record()
    pair.ask(request())
    lossy_towards_client.lose(2, least_length=500)
    pair.answer(answered)
    assert lossy_towards_client.still_to_lose() == 0
    record = meter.record()
    assert flags(record) == WHOLE
    assert record["response_bytes"] == len(answered)
    assert record["response_retransmits"] == 2
    lengths = stages(record)
    assert lengths.pop((Stamp.TC_OUT, Stamp.TC_OUT_LAST)) > RTO_NS
    assert max(lengths.values()) < RTO_NS
    meter.assert_next_is_right(pair, 2)


def test_a_lost_request_begins_with_the_packet_that_came_through(
    lab: Lab, meter: Meter, lossy_towards_server: Strangers
) -> None:
    pair = lab.connect()
    pair.exchange(request(), OK)
    meter.record()
    lossy_towards_server.lose(2, least_length=80)
    pair.exchange(request(headers={"Padding": "p" * 100}), OK)
    assert lossy_towards_server.still_to_lose() == 0
    record = meter.record()
    assert flags(record) == WHOLE
    assert record["request_retransmits"] == 0
    assert Stamp.NIC in stamps(record)
    assert max(stages(record).values()) < RTO_NS
    meter.assert_next_is_right(pair, 2)


def unacknowledged(sock: socket.socket) -> int:
    """How many segments of this side the other one has not acknowledged."""
    tcpi_unacked = slice(24, 28)
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    return int.from_bytes(info[tcpi_unacked], "little")


def test_a_request_sent_again_for_want_of_an_acknowledgement(
    lab: Lab, meter: Meter, lossy_towards_client: Strangers
) -> None:
    pair = lab.connect()
    lossy_towards_client.lose(1)
    pair.client.sendall(request())
    wait_until(lambda: lossy_towards_client.still_to_lose() == 0, "the acknowledgement was lost")
    wait_until(lambda: unacknowledged(pair.client) == 0, "the request was sent again")
    receive(pair.server, len(request()))
    pair.answer(OK)
    record = meter.record()
    assert flags(record) == WHOLE
    assert record["request_retransmits"] == 1
    assert record["request_bytes"] == len(request())
    # It arrived when it first did.
    at = stamps(record)
    assert at[Stamp.QUEUED] - at[Stamp.NIC] < RTO_NS
    assert Stamp.NIC_LAST not in at
    meter.assert_next_is_right(pair, 1)


def upload(pair: Pair, data: bytes) -> None:
    with Worker(lambda: receive(pair.server, len(data))):
        pair.client.sendall(data)


@pytest.mark.parametrize("count", [1, 3])
def test_an_upload_with_holes_is_whole_in_the_end(
    lab: Lab, meter: Meter, lossy_towards_server: Strangers, count: int
) -> None:
    pair = lab.connect()
    asked = request("PUT", "/holes", body=bytes(MIB))
    upload(pair, asked)  # so that many packets are on their way at once
    pair.answer(OK)
    meter.record()
    head = len(asked) - MIB
    pair.ask(asked[:head])
    lossy_towards_server.lose(count, least_length=1000)
    upload(pair, asked[head:])
    wait_until(lambda: lossy_towards_server.still_to_lose() == 0, "the packets were lost")
    pair.answer(OK)
    record = meter.record()
    assert flags(record) == WHOLE
    assert record["out_of_order"] >= 1
    assert record["request_bytes"] == len(asked)
    assert record["request_body_bytes"] == MIB
    assert stamps(record)[Stamp.READ] < stamps(record)[Stamp.READ_LAST]
    meter.assert_next_is_right(pair, 2)


def test_a_download_with_holes_is_whole_in_the_end(
    lab: Lab, meter: Meter, lossy_towards_client: Strangers
) -> None:
    pair = lab.connect()
    answered = response(body=bytes(MIB))
    pair.ask(request())
    lossy_towards_client.lose(3, least_length=1000)
    with Worker(lambda: receive(pair.client, len(answered))):
        pair.server.sendall(answered)
    record = meter.record()
    assert flags(record) == WHOLE
    assert record["response_bytes"] == len(answered)
    assert record["response_body_bytes"] == MIB
    assert record["response_retransmits"] >= 1
    meter.assert_next_is_right(pair, 1)


def lose_the_first(pair: Pair, lossy: Strangers, first: bytes, second: bytes) -> None:
    """The client sends two segments of which the first, the longer, is lost; the server reads both.

    It is lost twice, since the client sends it again as soon as the early one is
    acknowledged.
    """
    headers = 14 + 20 + 20
    assert len(first) > len(second) + 40
    lossy.lose(2, least_length=headers + len(first))
    pair.client.sendall(first)
    pair.client.sendall(second)
    receive(pair.server, len(first + second))
    assert lossy.still_to_lose() == 0


PADDING = {"Padding": "p" * 200}


@pytest.mark.guest
@pytest.mark.parametrize("cut", [20, 40, 100])
def test_a_head_that_is_overtaken_by_its_end_is_whole(
    lab: Lab, meter: Meter, lossy_on_the_way: Strangers, cut: int
) -> None:
    pair = lab.connect()
    pair.exchange(request(), OK)
    meter.record()
    asked = request("POST", "/overtaken", PADDING | {"User-Agent": "late/1"}, b"0123456789")
    lose_the_first(pair, lossy_on_the_way, asked[:-cut], asked[-cut:])
    pair.answer(OK)
    record = meter.record()
    assert flags(record) == WHOLE
    assert record["http1"]["request_line"] == b"POST /overtaken HTTP/1.1"
    assert record["http1"]["user_agent"] == b"late/1"
    assert record["request_bytes"] == len(asked)
    assert record["out_of_order"] == 1
    assert record["request_retransmits"] == 0
    at = stamps(record)
    assert set(at) >= STAMPS
    # The end waited for the beginning.
    assert at[Stamp.NIC_LAST] < at[Stamp.NIC] < at[Stamp.TC] < at[Stamp.TCP] < at[Stamp.QUEUED]
    lengths = stages(record)
    assert at[Stamp.NIC_LAST] < at[Stamp.TC_LAST]
    assert lengths.pop((Stamp.TC_LAST, Stamp.NIC)) > RTO_NS
    assert max(lengths.values()) < RTO_NS
    meter.assert_next_is_right(pair, 2)


@pytest.mark.guest
def test_a_request_that_overtakes_another_waits_between_tcp_and_queued_only(
    lab: Lab, meter: Meter, lossy_on_the_way: Strangers
) -> None:
    pair = lab.connect()
    pair.exchange(request(), OK)
    meter.record()
    lose_the_first(
        pair, lossy_on_the_way, request(target="/late", headers=PADDING), request(target="/early")
    )
    pair.answer(2 * OK)
    late, early = np.sort(meter.records(2), order="ordinal")
    assert late["http1"]["request_line"] == b"GET /late HTTP/1.1"
    assert early["http1"]["request_line"] == b"GET /early HTTP/1.1"
    assert (late["out_of_order"], early["out_of_order"]) == (0, 1)
    for record in (late, early):
        assert flags(record) == WHOLE
        assert record["request_retransmits"] == 0
        assert set(stamps(record)) >= STAMPS
        assert Stamp.NIC_LAST not in stamps(record)
    at = stamps(early)
    arrived = stamps(late)[Stamp.NIC]
    assert at[Stamp.NIC] < at[Stamp.TC] < at[Stamp.TCP] < arrived < at[Stamp.QUEUED]
    lengths = stages(early)
    assert lengths.pop((Stamp.TCP, Stamp.QUEUED)) > RTO_NS
    assert max(lengths.values()) < RTO_NS
    meter.assert_next_is_right(pair, 3)


@pytest.mark.parametrize("cut", [600, 602, 700, 900])
def test_a_chunked_upload_with_a_hole_is_whole_in_the_end(
    lab: Lab, meter: Meter, lossy_on_the_way: Strangers, cut: int
) -> None:
    pair = lab.connect()
    pair.exchange(request(), OK)
    meter.record()
    head = request("PUT", "/chunky", CHUNKED)
    body = chunks(bytes(length) for length in range(1, 40))
    assert len(body) < 1200
    pair.ask(head)
    lose_the_first(pair, lossy_on_the_way, body[:cut], body[cut:])
    pair.answer(OK)
    record = meter.record()
    assert record["request_bytes"] == len(head + body)
    assert record["request_body_bytes"] == sum(range(1, 40))
    assert record["out_of_order"] == 1
    assert set(stamps(record)) >= STAMPS
    meter.assert_next_is_right(pair, 2)
