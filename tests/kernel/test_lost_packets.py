# SPDX-License-Identifier: Apache-2.0
"""Packets that the network loses: TCP sends them again, and the ledger shows the wait."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from lab import Lab, Pair, Worker, receive, wait_until
from messages import OK, request, response
from meter import WHOLE, Meter, flags, stages, stamps
from strangers import Strangers

from otelbpf import libbpf
from otelbpf.records import RequestFlag, Stamp

RTO_NS = 190_000_000  # the least is 200 ms, by the kernel's coarse clock
MIB = 1 << 20


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


def test_a_lost_response_waits_between_tc_out_and_acked_only(
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
    assert Stamp.TC_OUT_LAST not in stamps(record)
    lengths = stages(record)
    assert lengths.pop((Stamp.TC_OUT, Stamp.ACKED)) > RTO_NS
    assert max(lengths.values()) < RTO_NS // 4
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
    assert max(stages(record).values()) < RTO_NS // 4
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
    assert at[Stamp.QUEUED] - at[Stamp.NIC] < RTO_NS // 4
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
    assert flags(record) == WHOLE | RequestFlag.OUT_OF_ORDER
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
