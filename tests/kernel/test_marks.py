# SPDX-License-Identifier: Apache-2.0
"""What an application says of a request is joined to that request, or to none."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
from dataclasses import dataclass, field

import numpy as np
import pytest
from lab import PORT, SERVER_IPV4, SERVER_IPV6, Lab, Pair, receive, reset
from messages import OK, request
from meter import Meter, address, stamps

from otelbpf.kernel.records import Counter, Stamp

# bpf/abi/mark.h
LEVEL, START, END, ASK = 0x6F74, 1, 2, 3
_MARK = struct.Struct("=16s8s8s16s16sHHI")
TRACE_ID = bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736")
CALLER = bytes.fromhex("00f067aa0ba902b7")
TRACEPARENT = f"00-{TRACE_ID.hex()}-{CALLER.hex()}-01"
NO_CALLER = bytes(8)
JOINED = MEASURED = 0
REFUSED, NOT_MEASURED = errno.EPERM, errno.ENOPROTOOPT

#: What another kernel may do in another way; the rest is the programs' own, and the same on all.
guest = pytest.mark.guest


@dataclass(frozen=True)
class Mark:
    """struct otelbpf_mark."""

    trace_id: bytes = TRACE_ID
    span_id: bytes = field(default_factory=lambda: os.urandom(8))
    parent_span_id: bytes = NO_CALLER
    peer: tuple[str, int] = ("::", 0)
    local: tuple[str, int] = ("::", 0)
    trace_flags: int = 1

    def packed(self) -> bytes:
        return _MARK.pack(
            self.trace_id, self.span_id, self.parent_span_id, address(self.peer[0]),
            address(self.local[0]), self.peer[1], self.local[1], self.trace_flags,
        )  # fmt: skip

    def tell(self, sock: socket.socket, option: int = START) -> int:
        """0, or the error's number."""
        try:
            sock.setsockopt(LEVEL, option, self.packed())
        except OSError as error:
            return error.errno
        return 0


def assert_has(record: np.void, mark: Mark) -> None:
    """The record says what the mark said."""
    assert record["join"]["marked"] == 1
    assert bytes(record["join"]["trace_id"]) == mark.trace_id
    assert bytes(record["join"]["span_id"]) == mark.span_id
    assert bytes(record["join"]["parent_span_id"]) == mark.parent_span_id
    assert record["join"]["trace_flags"] == mark.trace_flags


def asked(pair: Pair, **fields: object) -> None:
    """A request that the server has read and not answered."""
    pair.ask(request(**fields))


@guest
@pytest.mark.parametrize("host", [SERVER_IPV4, SERVER_IPV6], ids=["ipv4", "ipv6"])
def test_a_marked_request_has_a_handler_between_read_and_write(
    lab: Lab, meter: Meter, host: str
) -> None:
    pair = lab.connect(host)
    for _ in range(23):
        mark = Mark(trace_id=os.urandom(16), trace_flags=random.choice((1, 3)))
        asked(pair)
        assert mark.tell(pair.server) == JOINED
        assert mark.tell(pair.server, END) == JOINED
        pair.answer(OK)
        record = meter.record()
        assert_has(record, mark)
        order = sorted(stamps(record), key=stamps(record).get)
        first = order.index(Stamp.READ)
        assert order[first : first + 4] == [
            Stamp.READ, Stamp.HANDLER_START, Stamp.HANDLER_END, Stamp.WRITE,
        ]  # fmt: skip
    assert meter.counted(Counter.MARKS_JOINED) == 23


def test_an_unmarked_request_says_nothing(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    asked(pair)
    assert Mark().tell(pair.server) == JOINED
    pair.answer(OK)
    assert meter.record()["join"]["marked"] == 1
    # The next one takes the same slot.
    pair.exchange(request(), OK)
    record = meter.record()
    assert record["join"]["marked"] == 0
    assert {Stamp.HANDLER_START, Stamp.HANDLER_END}.isdisjoint(stamps(record))


@guest
@pytest.mark.parametrize("host", [SERVER_IPV4, SERVER_IPV6], ids=["ipv4", "ipv6"])
def test_any_socket_of_the_namespace_will_do_with_addresses(
    lab: Lab, meter: Meter, host: str
) -> None:
    pair = lab.connect(host)
    asked(pair)
    mark = Mark(peer=pair.server.getpeername()[:2], local=pair.server.getsockname()[:2])
    with lab.server_netns.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as any_one:
        assert mark.tell(any_one) == JOINED
        assert mark.tell(any_one, END) == JOINED
    pair.answer(OK)
    assert_has(record := meter.record(), mark)
    assert Stamp.HANDLER_END in stamps(record)


def test_another_namespace_s_sockets_say_nothing(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    asked(pair)
    mark = Mark(peer=pair.server.getpeername(), local=pair.server.getsockname())
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as elsewhere:
        assert mark.tell(elsewhere) == NOT_MEASURED
    assert mark.tell(pair.client) == NOT_MEASURED
    pair.answer(OK)
    assert meter.record()["join"]["marked"] == 0


def test_of_several_requests_nobody_knows_which(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.ask(request(target="/a") + request(target="/b"))
    assert Mark().tell(pair.server) == REFUSED
    assert meter.counted(Counter.MARKS_AMBIGUOUS) == 1
    pair.answer(OK)
    mark = Mark()
    assert mark.tell(pair.server) == JOINED
    pair.answer(OK)
    first, second = meter.records(2)
    assert first["join"]["marked"] == 0
    assert second["http1"]["request_line"] == b"GET /b HTTP/1.1"
    assert_has(second, mark)


def test_a_request_is_marked_once(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    asked(pair)
    mark = Mark()
    assert mark.tell(pair.server) == JOINED
    assert Mark().tell(pair.server) == REFUSED
    pair.answer(OK)
    assert_has(meter.record(), mark)
    assert (meter.counted(Counter.MARKS_JOINED), meter.counted(Counter.MARKS_UNKNOWN)) == (1, 1)


def test_a_request_that_nobody_has_read_is_not_handled(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    assert Mark().tell(pair.server) == REFUSED
    pair.send_segment(request())
    assert Mark().tell(pair.server) == REFUSED
    assert receive(pair.server, len(request())) == request()
    assert Mark().tell(pair.server) == JOINED
    pair.answer(OK)
    assert Mark().tell(pair.server) == REFUSED
    assert meter.record()["join"]["marked"] == 1


@pytest.mark.parametrize(
    ("header", "mark", "answer"),
    [
        (TRACEPARENT, Mark(parent_span_id=CALLER), JOINED),
        (TRACEPARENT, Mark(parent_span_id=bytes(7) + b"\1"), REFUSED),
        (TRACEPARENT, Mark(trace_id=bytes(15) + b"\1", parent_span_id=CALLER), REFUSED),
        # The application's own reasons: it trusts no caller, or knows it by another header.
        (TRACEPARENT, Mark(trace_id=bytes(15) + b"\1"), JOINED),
        (None, Mark(parent_span_id=CALLER), JOINED),
    ],
    ids=["same", "another caller", "another trace", "not taken over", "another header"],
)
def test_what_the_request_carries_is_not_contradicted(
    lab: Lab, meter: Meter, header: str | None, mark: Mark, answer: int
) -> None:
    pair = lab.connect()
    asked(pair, headers={"traceparent": header} if header else {})
    assert mark.tell(pair.server) == answer
    pair.answer(OK)
    assert meter.record()["join"]["marked"] == (answer == JOINED)


def test_the_end_of_another_mark_is_not_this_one_s(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    asked(pair)
    assert Mark().tell(pair.server) == JOINED
    Mark().tell(pair.server, END)
    pair.answer(OK)
    assert Stamp.HANDLER_END not in stamps(meter.record())


def test_an_end_that_comes_after_all_is_for_nothing(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    asked(pair)
    mark = Mark()
    assert mark.tell(pair.server) == JOINED
    pair.answer(OK)
    assert_has(meter.record(), mark)
    asked(pair)
    mark.tell(pair.server, END)
    pair.answer(OK)
    assert Stamp.HANDLER_END not in stamps(meter.record())


@guest
@pytest.mark.parametrize("count", [0, 1, _MARK.size - 1, _MARK.size + 1, 5000])
def test_what_is_no_mark_is_the_kernel_s(lab: Lab, meter: Meter, count: int) -> None:
    pair = lab.connect()
    asked(pair)
    for option in (START, END, ASK):
        with pytest.raises(OSError) as refusal:
            pair.server.setsockopt(LEVEL, option, bytes(count))
        assert refusal.value.errno == NOT_MEASURED
    assert Mark().tell(pair.server, option=4) == NOT_MEASURED
    pair.answer(OK)
    assert meter.record()["join"]["marked"] == 0


@guest
def test_connections_that_are_not_measured(lab: Lab, meter: Meter) -> None:
    listener = lab.socket("server", socket.AF_INET)
    listener.bind((SERVER_IPV4, PORT + 7))
    listener.listen()
    client = lab.socket("client", socket.AF_INET)
    client.connect((SERVER_IPV4, PORT + 7))
    server, _ = listener.accept()
    pair = lab.keep(Pair(client, server))
    pair.ask(request())
    assert Mark().tell(server) == NOT_MEASURED
    listener.close()


@guest
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_whether_a_port_is_measured(lab: Lab, meter: Meter, family: socket.AddressFamily) -> None:
    """On any TCP socket of the namespace, and without a trace of it."""
    with lab.server_netns.run(lambda: socket.socket(family, socket.SOCK_STREAM)) as any_one:
        for port, answer in ((PORT, MEASURED), (PORT + 7, NOT_MEASURED), (0, MEASURED)):
            assert Mark(local=("::", port)).tell(any_one, ASK) == answer, port
    with socket.socket(family, socket.SOCK_STREAM) as elsewhere:
        for port in (PORT, 0):
            assert Mark(local=("::", port)).tell(elsewhere, ASK) == NOT_MEASURED
    assert meter.counted_all() == {}


def test_asking_marks_no_request(lab: Lab, meter: Meter) -> None:
    """Nor does it matter whose socket it is: the port that is asked about counts."""
    pair = lab.connect()
    asked(pair)
    assert Mark(local=("::", PORT)).tell(pair.server, ASK) == MEASURED
    assert Mark(local=("::", PORT + 7)).tell(pair.server, ASK) == NOT_MEASURED
    assert Mark().tell(pair.server) == JOINED
    pair.answer(OK)
    assert meter.record()["join"]["marked"] == 1
    assert (meter.counted(Counter.MARKS_JOINED), meter.counted(Counter.MARKS_UNKNOWN)) == (1, 0)


@guest
@pytest.mark.parametrize("host", [SERVER_IPV4, SERVER_IPV6], ids=["ipv4", "ipv6"])
def test_whether_a_connection_is_known(lab: Lab, meter: Meter, host: str) -> None:
    """By its addresses, on any socket of the namespace; nothing is marked."""
    pair = lab.connect(host)
    asked(pair)
    (peer, peer_port), local = pair.server.getpeername()[:2], (host, PORT)
    with lab.server_netns.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as any_one:
        for others in (
            {"local": ("198.18.0.3", PORT)}, {"local": ("::", PORT)}, {"local": (host, PORT + 7)},
            {"peer": (peer, peer_port ^ 1)}, {"peer": ("198.18.0.3", peer_port)},
        ):  # fmt: skip
            mark = Mark(**{"peer": (peer, peer_port), "local": local, **others})
            assert mark.tell(any_one, ASK) == NOT_MEASURED, others
        assert Mark(peer=(peer, peer_port), local=local).tell(any_one, ASK) == MEASURED
    assert meter.counted(Counter.MARKS_UNKNOWN) == 0
    pair.answer(OK)
    assert meter.record()["join"]["marked"] == 0


@guest
def test_other_options_are_the_kernel_s(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    for size in (20_000, 40_000):
        pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        assert pair.server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * size
    with pytest.raises(OSError) as refusal:
        pair.server.setsockopt(LEVEL + 1, START, Mark().packed())
    assert refusal.value.errno == NOT_MEASURED


def test_requests_that_interleave_on_many_connections(lab: Lab, meter: Meter) -> None:
    """One thread, as an event loop: reads and handles in any order."""
    pairs = [lab.connect() for _ in range(50)]
    expected = {}
    random_ = random.Random(23)
    for round_ in range(20):
        marks = []
        for pair in random_.sample(pairs, len(pairs)):
            target = f"/{round_}/{pair.peer_port}"
            asked(pair, target=target)
            mark = Mark(trace_id=os.urandom(16))
            expected[f"GET {target} HTTP/1.1".encode()] = mark
            marks.append((pair, mark))
        for step in (START, END):
            random_.shuffle(marks)
            for pair, mark in marks:
                assert mark.tell(pair.server, step) == JOINED
        for pair, _ in marks:
            pair.answer(OK)
    records = meter.records(1000)
    assert len(expected) == 1000
    for record in records:
        assert_has(record, expected.pop(bytes(record["http1"]["request_line"])))
    assert not expected


def test_a_client_that_resets_takes_its_mark_along(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    asked(pair, target="/gone")
    mark = Mark()
    assert mark.tell(pair.server) == JOINED
    reset(pair.client)
    assert_has(meter.record(), mark)
    assert mark.tell(pair.server, END) == NOT_MEASURED  # it is connected no more
