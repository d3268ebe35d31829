# SPDX-License-Identifier: Apache-2.0
"""Which packets are of one connection: ports come back, and some agents come unattached."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest
from frames import Wire, fresh_port
from lab import CLIENT_IPV4, SERVER_IPV4, Lab, Pair, prepare, receive, reset
from messages import OK, request
from meter import UNKNOWN, WHOLE, Meter, flags, stamps
from support.frames import ACK, FIN, Frame

from otelbpf.host.interfaces import find_interfaces
from otelbpf.kernel import libbpf
from otelbpf.kernel.attach import attached
from otelbpf.kernel.hooks import without
from otelbpf.kernel.records import Counter, RequestFlag, Stamp


def leftover(meter: Meter, **segment: object) -> int:
    """A packet of a connection that is not there any more; gives the client's port."""
    port = fresh_port()
    Wire(meter, sockets=False).deliver(
        Frame(client=CLIENT_IPV4, server=SERVER_IPV4, client_port=port, **segment)
    )
    return port


@pytest.mark.parametrize("seq", [1000, 2**31, 2**32 - 1], ids=hex)
def test_a_new_connection_is_not_the_one_that_had_its_ports(
    lab: Lab, meter: Meter, seq: int
) -> None:
    """A request to a socket long closed leaves nothing behind."""
    port = leftover(meter, payload=request(target="/too-late"), seq=seq)
    assert meter.counted_all() == {"SEGMENTS_STRAY": 1}
    pair = lab.connect(from_port=port)
    for ordinal in range(2):
        pair.exchange(request(target="/new"), OK)
        record = meter.record()
        assert record["http1"]["request_line"] == b"GET /new HTTP/1.1"
        assert record["ordinal"] == ordinal
        assert flags(record) == WHOLE
        assert Stamp.NIC in stamps(record)


def test_late_bytes_of_a_closed_connection_do_not_mark_the_next_one(lab: Lab, meter: Meter) -> None:
    port = leftover(meter, payload=b"the rest of a body", flags=FIN | ACK)
    assert meter.counted_all() == {"SEGMENTS_STRAY": 1}
    pair = lab.connect(from_port=port)
    pair.ask(request())
    pair.server.close()
    assert pair.client.recv(1) == b""
    reset(pair.client)
    record = meter.record()
    assert RequestFlag.LOCAL_CLOSED in flags(record)
    assert RequestFlag.PEER_CLOSED not in flags(record)


def connect_deferred(lab: Lab, data: bytes) -> Pair:
    """To a server that defers accepting: the client's first bytes establish the connection."""
    listener = lab.listener(SERVER_IPV4)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
    try:
        client = lab.socket("client", socket.AF_INET)
        client.connect(listener.getsockname())
        client.sendall(data)
        return lab.keep(Pair(client, prepare(listener.accept()[0])))
    finally:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)


def test_data_that_comes_before_the_connection_is_established(lab: Lab, meter: Meter) -> None:
    pair = connect_deferred(lab, 2 * request())
    receive(pair.server, 2 * len(request()))
    pair.answer(2 * OK)
    pair.exchange(request(), OK)
    records = meter.records(3)
    assert records["ordinal"].tolist() == [0, 1, 2]
    for record in records:
        assert flags(record) == WHOLE
        assert set(stamps(record)) >= {Stamp.NIC, Stamp.TC, Stamp.READ, Stamp.WRITE, Stamp.ACKED}


def test_a_stamp_that_was_missed_is_not_taken_from_later_bytes(lab: Lab, meter: Meter) -> None:
    """The segment that establishes a connection does not pass where TCP takes the others."""
    asked = request("POST", body=b"in a segment of its own")
    pair = connect_deferred(lab, asked[:50])
    pair.send_segment(asked[50:])
    receive(pair.server, len(asked))
    pair.answer(OK)
    record = meter.record()
    assert flags(record) == WHOLE
    assert Stamp.QUEUED in stamps(record)
    assert Stamp.TCP not in stamps(record)


def test_bytes_that_were_queued_unseen_are_not_stamped_with_later_ones(unattached: Meter) -> None:
    """The kernel passes over a program that it is running already, on that processor."""
    programs = unattached.programs
    (queued,) = (choice.chosen for choice in unattached.choices if choice.hook.name == "queued")
    choices = without(unattached.choices, "queued", "to be missed")
    interfaces = find_interfaces((unattached.interface,), unattached.netns)
    asked = request("POST", body=b"in a segment of its own")
    with (
        attached(programs, choices, interfaces, unattached.netns),
        contextlib.ExitStack() as stack,
    ):
        pair = unattached.lab.connect()
        pair.send_segment(asked[:50])
        stack.callback(os.close, libbpf.attach_tracing(programs.fd_of(queued)))
        pair.send_segment(asked[50:])
        receive(pair.server, len(asked))
        pair.answer(OK)
        pair.exchange(asked, OK)
        missed, seen = unattached.records(2)
    assert flags(missed) == flags(seen) == WHOLE
    assert set(stamps(missed)) == {
        Stamp.NIC, Stamp.TC, Stamp.TCP, Stamp.NIC_LAST, Stamp.TC_LAST, Stamp.READ, Stamp.WRITE,
        Stamp.TC_OUT, Stamp.ACKED,
    }  # fmt: skip
    assert Stamp.QUEUED in stamps(seen)


def unknown(pair: Pair, times: int = UNKNOWN) -> None:
    """These are not told: where requests begin becomes certain by them."""
    for _ in range(times):
        pair.exchange(request(target="/unknown"), OK)


def test_a_connection_older_than_the_agent_is_adopted(unattached: Meter) -> None:
    pair = unattached.lab.connect()
    pair.exchange(request(target="/unseen"), OK)
    with unattached.attached():
        unknown(pair)
        for ordinal in range(UNKNOWN, UNKNOWN + 2):
            pair.exchange(request("POST", "/seen", body=b"body"), OK)
            record = unattached.record()
            assert record["ordinal"] == ordinal
            assert record["http1"]["request_line"] == b"POST /seen HTTP/1.1"
            assert flags(record) == WHOLE
            assert set(stamps(record)) >= {
                Stamp.NIC, Stamp.TC, Stamp.TCP, Stamp.QUEUED, Stamp.READ, Stamp.WRITE,
                Stamp.TC_OUT, Stamp.ACKED,
            }  # fmt: skip
        assert unattached.counted(Counter.CONNECTIONS_ADOPTED) == 1
        assert unattached.counted(Counter.CONNECTIONS_OPENED) == 0
        unattached.lab.close_connections()
        unattached.wait_for(Counter.CONNECTIONS_CLOSED, 1)


def test_adoption_in_the_middle_of_a_request_waits_for_the_next_one(unattached: Meter) -> None:
    pair = unattached.lab.connect()
    upload = request("POST", body=bytes(1000))
    pair.ask(upload[:500])
    with unattached.attached():
        pair.ask(upload[500:])
        pair.answer(OK)
        unknown(pair, UNKNOWN - 1)
        assert unattached.counted(Counter.SEEN) == 0
        pair.exchange(request(target="/next"), OK)
        assert unattached.record()["http1"]["request_line"] == b"GET /next HTTP/1.1"
        assert unattached.counted(Counter.CONNECTIONS_ADOPTED) == 1


def test_adoption_in_the_middle_of_a_response_waits_for_the_next_request(unattached: Meter) -> None:
    pair = unattached.lab.connect()
    pair.ask(request(target="/unseen"))
    pair.answer(OK[:-1])
    with unattached.attached():
        pair.answer(OK[-1:])
        unknown(pair)
        assert unattached.counted(Counter.SEEN) == 0
        pair.exchange(request(target="/next"), OK)
        assert unattached.record()["http1"]["request_line"] == b"GET /next HTTP/1.1"
        assert unattached.losses() == {}


def test_a_response_that_began_before_the_agent_is_not_taken_for_the_next_ones(
    unattached: Meter,
) -> None:
    """Pipelined, with the first answer still to come: which answer is whose is unknown."""
    pair = unattached.lab.connect()
    pair.ask(request(target="/unseen"))
    pair.server.sendall(OK[:10])
    with unattached.attached():
        pair.ask(request(target="/doubtful"))
        pair.server.sendall(OK[10:])
        receive(pair.client, len(OK))
        pair.answer(OK)
        unknown(pair, UNKNOWN - 1)
        assert unattached.counted(Counter.SEEN) == 0
        pair.exchange(request(target="/sure"), OK)
        assert unattached.record()["http1"]["request_line"] == b"GET /sure HTTP/1.1"
