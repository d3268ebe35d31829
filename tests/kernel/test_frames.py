# SPDX-License-Identifier: Apache-2.0
"""Frames of every shape, handed to the programs by the kernel's test run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from frames import Wire, fresh_port
from lab import PORT
from messages import OK, request
from meter import WHOLE, Meter, flags, stamps
from support.frames import (
    ACK,
    AUTHENTICATION,
    DESTINATION,
    FRAGMENT,
    HOP_BY_HOP,
    PSH,
    ROUTING,
    Frame,
)

from otelbpf.kernel.records import Counter, RequestFlag, Stamp

V4 = Frame()
V6 = Frame(client="2001:db8::1", server="2001:db8::2")
EIGHT = bytes([0]) + bytes(6)  # an extension header of eight bytes, but for its first
ASKED = request(target="/crafted")


@pytest.fixture
def wire(meter: Meter) -> Iterator[Wire]:
    """Frames in; what is left in flight is ended, for no socket will ever do it."""
    yield Wire(meter)
    meter.sweep()


def fresh(frame: Frame) -> Frame:
    """The same frame on a connection that was never seen."""
    return replace(frame, client_port=fresh_port())


SHAPES = {
    "IPv4": V4,
    "IPv6": V6,
    "VLAN": replace(V4, vlans=((0x8100, 5),)),
    "QinQ": replace(V4, vlans=((0x88A8, 5), (0x8100, 6))),
    "two 802.1Q tags": replace(V6, vlans=((0x8100, 5), (0x8100, 6))),
    "IPv4 options": replace(V4, options=bytes([1] * 4)),
    "all IPv4 options": replace(V4, options=bytes([1] * 40)),
    "TCP options": replace(V4, tcp_options=bytes([1] * 12)),
    "all options": replace(V4, options=bytes([1] * 40), tcp_options=bytes([1] * 40)),
    "IPv6 hop by hop": replace(V6, extensions=((HOP_BY_HOP, EIGHT),)),
    "IPv6 destination": replace(V6, extensions=((DESTINATION, EIGHT),)),
    "IPv6 long destination": replace(V6, extensions=((DESTINATION, bytes([7]) + bytes(62)),)),
    "IPv6 routing": replace(V6, extensions=((ROUTING, bytes([2]) + bytes(22)),)),
    "IPv6 authentication": replace(V6, extensions=((AUTHENTICATION, bytes([4]) + bytes(22)),)),
    "IPv6 with many": replace(
        V6,
        vlans=((0x88A8, 1), (0x8100, 2)),
        extensions=((HOP_BY_HOP, EIGHT), (DESTINATION, EIGHT), (ROUTING, EIGHT),
                    (AUTHENTICATION, bytes([4]) + bytes(22)), (DESTINATION, EIGHT)),
    ),
}  # fmt: skip
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


@every_shape
def test_a_request_and_its_response_in_frames_of_every_shape(
    wire: Wire, meter: Meter, shape: Frame
) -> None:
    asked = replace(fresh(shape), payload=ASKED)
    wire.deliver(asked)
    answered = asked.turned(payload=OK, seq=5000, ack_seq=1000 + len(ASKED))
    wire.emit(answered)
    wire.deliver(replace(asked, payload=b"", seq=1000 + len(ASKED), ack_seq=5000 + len(OK)))
    record = meter.record()
    assert record["http1"]["request_line"] == b"GET /crafted HTTP/1.1"
    assert flags(record) == WHOLE
    assert record["status"] == 200
    assert (record["request_bytes"], record["response_bytes"]) == (len(ASKED), len(OK))
    assert (record["peer_port"], record["local_port"]) == (asked.client_port, PORT)
    assert list(stamps(record)) == [Stamp.NIC, Stamp.TC, Stamp.TC_OUT, Stamp.ACKED]
    assert meter.counted(Counter.CONNECTIONS_OPENED) == 1
    assert meter.counted(Counter.PACKETS_UNPARSED) == 0


@every_shape
def test_a_frame_cut_off_anywhere_is_no_request(wire: Wire, meter: Meter, shape: Frame) -> None:
    whole = replace(fresh(shape), payload=ASKED)
    answer = whole.turned(payload=OK)
    for length in range(14, len(bytes(whole))):
        wire.deliver(whole, length=length)
    for length in range(14, len(bytes(answer))):
        wire.emit(answer, length=length)
    assert meter.counted(Counter.SEEN) == 0
    assert meter.counted(Counter.CONNECTIONS_ADOPTED) == 0
    assert meter.counted(Counter.PACKETS_UNPARSED) > 0


@every_shape
def test_padding_after_a_short_frame_is_no_payload(wire: Wire, meter: Meter, shape: Frame) -> None:
    frame = replace(fresh(shape), payload=ASKED)
    wire.establish(frame)
    wire.deliver(bytes(replace(frame, payload=b"")) + bytes(46))
    assert meter.counted(Counter.CONNECTIONS_NOT_HTTP) == 0
    wire.deliver(bytes(frame) + b"GET / HTTP/1.1\r\n\r\n")
    assert meter.counted(Counter.SEEN) == 1
    meter.sweep()
    record = meter.record()
    assert record["request_bytes"] == len(ASKED)
    assert flags(record) == RequestFlag.REQUEST_RECEIVED | RequestFlag.IDLE_TIMEOUT


@pytest.mark.parametrize(
    "frame",
    [
        replace(V4, fragment=0x2000),
        replace(V4, fragment=0x2001),
        replace(V4, fragment=0x0001),
        replace(V6, extensions=((FRAGMENT, bytes(7)),)),
        replace(V6, extensions=((HOP_BY_HOP, EIGHT), (FRAGMENT, bytes(7)))),
        replace(V6, extensions=((DESTINATION, EIGHT),) * 7),
    ],
    ids=["first", "middle", "last", "IPv6", "IPv6 after another header", "too many headers"],
)
def test_fragments_and_endless_headers_are_counted_as_unparsed(
    wire: Wire, meter: Meter, frame: Frame
) -> None:
    wire.deliver(replace(fresh(frame), payload=ASKED))
    wire.emit(replace(fresh(frame), payload=OK).turned())
    assert meter.counted(Counter.PACKETS_UNPARSED) == 2
    assert meter.counted(Counter.SEEN) == 0


def test_what_is_not_for_the_measured_port_is_not_looked_at(wire: Wire, meter: Meter) -> None:
    for shape in SHAPES.values():
        wire.deliver(replace(fresh(shape), payload=ASKED, server_port=PORT + 1))
        # A client's port may well be the number that is measured.
        wire.deliver(replace(shape, payload=ASKED, server_port=5432, client_port=PORT))
    arp = bytes.fromhex("ffffffffffff020000000001 0806 0001080006040001") + bytes(20)
    udp = bytearray(bytes(replace(V4, payload=ASKED)))
    udp[23] = 17
    for other in (arp, bytes(udp), bytes(14), bytes(60)):
        wire.deliver(other)
        wire.emit(other)
    assert meter.counted_all() == {}


def test_a_header_length_below_the_least_is_unparsed(wire: Wire, meter: Meter) -> None:
    for at, value in ((14, 0x40), (14, 0x44), (46, 0x00), (46, 0x40)):
        data = bytearray(bytes(replace(fresh(V4), payload=ASKED)))
        data[at] = value
        wire.deliver(bytes(data))
    assert meter.counted(Counter.PACKETS_UNPARSED) == 4
    assert meter.counted(Counter.SEEN) == 0
    assert V4.flags == PSH | ACK
