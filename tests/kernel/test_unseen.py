# SPDX-License-Identifier: Apache-2.0
"""Bytes that pass no measured interface, or are not of HTTP/1: noticed at once, and truly so."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator

import pytest
from lab import (
    CLIENT_IPV4,
    INTERFACE,
    PORT,
    SERVER_IPV4,
    Lab,
    Pair,
    laboratory,
    prepare,
    receive,
    reset,
)
from messages import OK, request, response
from meter import FREE_PORT, UNKNOWN, WHOLE, Meter, flags, load_gateway
from strangers import Strangers
from support.commands import run
from support.waiting import wait_until

from otelbpf.agent.notices import Notice, NoticeReader
from otelbpf.kernel import libbpf
from otelbpf.kernel.attach import attached
from otelbpf.kernel.records import Counter, NoticeKind

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


class Noticed:
    """The notices since it was made."""

    def __init__(self, meter: Meter) -> None:
        self._reader = NoticeReader(meter.programs)
        self._reader.read()
        self._netns = meter.netns

    def take(self) -> list[tuple[NoticeKind, int, str]]:
        """What, of which port, by which interface."""
        return [(notice.kind, notice.port, self._interface(notice)) for notice in self.read()]

    def read(self) -> list[Notice]:
        return self._reader.read()

    def _interface(self, notice: Notice) -> str:
        if not notice.ifindex:
            return ""
        return self._netns.run(lambda: socket.if_indextoname(notice.ifindex))

    def close(self) -> None:
        self._reader.close()


@pytest.fixture
def noticed(meter: Meter) -> Iterator[Noticed]:
    with contextlib.closing(Noticed(meter)) as noticed:
        yield noticed


def exchange(pair: Pair, times: int = 1) -> None:
    for _ in range(times):
        pair.exchange(request(), OK)


def test_a_connection_by_another_interface(lab: Lab, meter: Meter, noticed: Noticed) -> None:
    """Once for each, however many requests; and whose they are."""
    meter.unseen = 2
    for _ in range(2):
        exchange(lab.connect(client_side="server"), 23)
    assert noticed.take() == [(NoticeKind.UNSEEN, PORT, "lo")] * 2
    assert meter.counted_all() == {"CONNECTIONS_OPENED": 2, "CONNECTIONS_UNSEEN": 2}
    exchange(lab.connect(), 3)
    meter.records(3)
    assert noticed.take() == []


def test_who_it_was(lab: Lab, meter: Meter, noticed: Noticed) -> None:
    meter.unseen = 1
    before = time.monotonic_ns()
    pair = lab.connect(client_side="server")
    exchange(pair)
    (notice,) = noticed.read()
    assert notice.peer == (SERVER_IPV4, pair.peer_port)
    assert notice.local == (SERVER_IPV4, PORT)
    assert not notice.is_client
    assert before < notice.ktime_ns < time.monotonic_ns()


def test_one_that_is_older_than_the_agent(unattached: Meter) -> None:
    pair = unattached.lab.connect(client_side="server")
    exchange(pair)
    with unattached.attached(), contextlib.closing(Noticed(unattached)) as noticed:
        assert noticed.take() == []
        exchange(pair, 3)
        assert noticed.take() == [(NoticeKind.UNSEEN, PORT, "lo")]
    unattached.unseen = 1


def test_one_that_is_older_and_is_seen(unattached: Meter) -> None:
    pair = unattached.lab.connect()
    exchange(pair)
    with unattached.attached():
        exchange(pair, UNKNOWN + 3)
        unattached.records(3)


def test_what_came_before_all_was_attached_is_not_missed(unattached: Meter) -> None:
    """Its connection is taken up once that is certain, and nothing is told."""
    meter = unattached
    with attached(meter.programs, meter.choices, {}, meter.netns):
        pair = meter.lab.connect()
        exchange(pair)
    with meter.attached():
        exchange(pair, UNKNOWN + 3)
        assert [flags(record) for record in meter.records(3)] == [WHOLE] * 3
    assert meter.losses() == {}


@contextlib.contextmanager
def kept_from(meter: Meter, stranger: Strangers, direction: int) -> Iterator[None]:
    """Somebody decides about all packets before our programs do."""
    with stranger.attached(meter.lab, "settle", "server", direction, first=True):
        yield


def test_what_a_program_in_front_keeps(
    lab: Lab, meter: Meter, stranger: Strangers, noticed: Noticed
) -> None:
    """The request in flight is lost, and so are those that come; what is seen again goes on."""
    meter.unseen = 2
    pair = lab.connect()
    exchange(pair)
    meter.record()
    pair.ask(request())
    pair.client.sendall(request("POST", body=b"12345")[:-2])
    receive(pair.server, len(request("POST", body=b"12345")) - 2)
    with kept_from(meter, stranger, libbpf.BPF_TCX_INGRESS):
        pair.ask(b"45")
        pair.answer(OK + OK)
        exchange(pair, 3)
    assert noticed.take() == [(NoticeKind.UNSEEN, PORT, INTERFACE)]
    assert meter.losses() == {Counter.LOST_PARSER: 2}
    # The last answer was seen.
    exchange(pair, UNKNOWN)
    assert flags(meter.record()) == WHOLE
    with kept_from(meter, stranger, libbpf.BPF_TCX_INGRESS):
        exchange(pair)
    assert noticed.take() == [(NoticeKind.UNSEEN, PORT, INTERFACE)]


@pytest.mark.parametrize("requests", [1, 3])
@pytest.mark.parametrize("end", [Pair.close, lambda pair: reset(pair.client)])
def test_responses_that_a_program_in_front_keeps(
    lab: Lab, meter: Meter, stranger: Strangers, noticed: Noticed, requests: int, end
) -> None:
    """The requests are lost, and not told as unanswered; behind them nothing is certain."""
    meter.unseen = 1
    pair = lab.connect()
    with kept_from(meter, stranger, libbpf.BPF_TCX_EGRESS):
        exchange(pair, requests)
        end(pair)
        meter.wait_for(Counter.CONNECTIONS_CLOSED, 1)
    ((kind, port, _),) = noticed.take()
    assert (kind, port) == (NoticeKind.UNSEEN_OUT, PORT)
    assert meter.losses() == {Counter.LOST_PARSER: min(requests, 2)}
    pair.server.close()


def test_where_responses_leave(unattached: Meter) -> None:
    """By another interface than the one that requests come in by."""
    lab, name = unattached.lab, unattached.netns.name
    peer = lab.client_netns.name
    run("ip", "link", "add", "back0", "netns", name, "type", "veth", "peer", "back1", "netns", peer)
    try:
        for side, interface, number in ((name, "back0", 1), (peer, "back1", 2)):
            run("ip", "-n", side, "addr", "add", f"198.18.5.{number}/24", "dev", interface)
            run("ip", "-n", side, "link", "set", interface, "up")
            for which in ("all", interface, INTERFACE if side == name else "client0"):
                run("nsenter", f"--net=/run/netns/{side}", "sysctl", "-qw",
                    f"net.ipv4.conf.{which}.rp_filter=0")  # fmt: skip
        way = ("via", "198.18.5.2", "dev", "back0")
        run("ip", "-n", name, "route", "add", f"{CLIENT_IPV4}/32", *way)
        with unattached.attached(), contextlib.closing(Noticed(unattached)) as noticed:
            pair = lab.connect()
            exchange(pair, 5)
            assert noticed.take() == [(NoticeKind.UNSEEN_OUT, PORT, "back0")]
            lab.close_connections()
        unattached.unseen = 1
        assert unattached.losses() == {Counter.LOST_PARSER: 2}
    finally:
        run("ip", "-n", name, "link", "del", "back0")


@contextlib.contextmanager
def redirected(lab: Lab, port: int) -> Iterator[None]:
    """What comes to this port goes to the measured one."""
    rule = ("PREROUTING", "-p", "tcp", "--dport", str(port), "-j", "REDIRECT",
            "--to-port", str(PORT))  # fmt: skip
    enter = ("nsenter", f"--net={lab.server_netns.path}", "iptables", "-t", "nat")
    run(*enter, "-A", *rule)
    try:
        yield
    finally:
        run(*enter, "-D", *rule)


def test_a_port_that_is_redirected(lab: Lab, meter: Meter, noticed: Noticed) -> None:
    meter.unseen = 1
    lab.listener(SERVER_IPV4)
    with redirected(lab, 80):
        client = lab.socket("client", socket.AF_INET)
        client.connect((SERVER_IPV4, 80))
        pair = lab.keep(Pair(client, prepare(lab.listener(SERVER_IPV4).accept()[0])))
        exchange(pair, 5)
    assert noticed.take() == [(NoticeKind.UNSEEN, PORT, INTERFACE)]


def test_an_upstream_by_another_interface() -> None:
    with laboratory() as lab:
        meter = load_gateway(lab)
        with contextlib.closing(meter), lab.socket("client", socket.AF_INET) as listener:
            listener.bind(("127.0.0.1", FREE_PORT))
            listener.listen()
            with meter.attached(), contextlib.closing(Noticed(meter)) as noticed:
                client = lab.socket("client", socket.AF_INET)
                client.connect(("127.0.0.1", FREE_PORT))
                exchange(lab.keep(Pair(client, prepare(listener.accept()[0]))), 5)
                (notice,) = noticed.read()
                assert (notice.kind, notice.port, notice.is_client) == (
                    NoticeKind.UNSEEN, FREE_PORT, True
                )  # fmt: skip
                assert notice.ifindex == 1
                lab.close_connections()


def hello() -> bytes:
    """What a client says first over TLS."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="test")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (hello(), NoticeKind.TLS),
        (hello()[:5], NoticeKind.TLS),
        (PREFACE, NoticeKind.HTTP2),
        (PREFACE[:24], NoticeKind.HTTP2),
        (b"\x00\x00\x00\x10binary stuff", NoticeKind.NOT_HTTP),
        (b"\x16\x03", NoticeKind.NOT_HTTP),
        (b"\x16\x02\x01\x02\x00\x01", NoticeKind.NOT_HTTP),
        (b"PROXY TCP4 192.0.2.7 192.0.2.2 4711 80\r\n" + request(), NoticeKind.PROXY_HEADER),
        (b"PROXY UNKNOWN\r\n", NoticeKind.PROXY_HEADER),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0" + request(), NoticeKind.PROXY_HEADER),
    ],
    ids=[
        "TLS",
        "TLS in pieces",
        "HTTP/2",
        "HTTP/2 alone",
        "binary",
        "short",
        "no TLS",
        "PROXY",
        "PROXY UNKNOWN",
        "PROXY 2",
    ],
)
def test_what_is_not_http_1(
    lab: Lab, meter: Meter, noticed: Noticed, first: bytes, kind: NoticeKind
) -> None:
    pair = lab.connect()
    for _ in range(3):
        pair.ask(first)
        pair.answer(b"\x15\x03\x01\x00\x02\x02\x46")
    assert noticed.take() == [(kind, PORT, INTERFACE)]
    assert meter.counted(Counter.CONNECTIONS_NOT_HTTP) == 1
    assert meter.counted(Counter.CONNECTIONS_TLS) == (kind is NoticeKind.TLS)
    assert meter.counted(Counter.CONNECTIONS_HTTP2) == (kind is NoticeKind.HTTP2)
    assert meter.losses() == {}


SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


@pytest.mark.parametrize(
    ("first", "kind", "cuts"),
    [
        (PREFACE, NoticeKind.HTTP2, range(1, 17)),
        (b"PROXY TCP4 192.0.2.7 192.0.2.2 4711 80\r\n", NoticeKind.PROXY_HEADER, range(1, 39)),
        (b"PROXY UNKNOWN\r\n", NoticeKind.PROXY_HEADER, range(1, 14)),
        (SIGNATURE + b"\x20\0\0\0", NoticeKind.PROXY_HEADER, range(1, 16)),
    ],
    ids=["HTTP/2", "PROXY", "PROXY UNKNOWN", "PROXY 2"],
)
def test_what_is_not_http_1_in_two_segments(
    lab: Lab, meter: Meter, noticed: Noticed, first: bytes, kind: NoticeKind, cuts: range
) -> None:
    """A first segment that may be of a request is seen as one, which is lost."""
    for cut in cuts:
        pair = lab.connect()
        pair.ask(first[:cut])
        pair.ask(first[cut:])
        pair.ask(request())
    assert noticed.take() == [(kind, PORT, INTERFACE)] * len(cuts)
    assert meter.counted(Counter.CONNECTIONS_NOT_HTTP) == len(cuts)
    assert meter.counted(Counter.SEEN) == sum(meter.losses().values())
    assert set(meter.losses()) <= {Counter.LOST_PARSER}


def test_tls_that_comes_with_the_end_of_the_handshake(
    lab: Lab, meter: Meter, noticed: Noticed
) -> None:
    """Traffic control sees it before there is a connection."""
    listener = lab.listener(SERVER_IPV4)
    with lab.socket("client", socket.AF_INET) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        client.connect((SERVER_IPV4, PORT))
        client.sendall(hello())
        pair = Pair(client, prepare(listener.accept()[0]))
        assert receive(pair.server, len(hello()))
        pair.ask(hello())
        pair.close()
    assert noticed.take() == [(NoticeKind.TLS, PORT, INTERFACE)]
    assert meter.counted(Counter.CONNECTIONS_OPENED) == 1
    assert meter.counted(Counter.CONNECTIONS_NOT_HTTP) == 1


@pytest.mark.parametrize("body", [bytes(500), b"\x17\x03\x03" + bytes(500), b"{" * 500])
def test_the_middle_of_a_request_is_not_told_as_something_else(
    unattached: Meter, body: bytes
) -> None:
    """Of a connection that is older than the agent, or whose framing was lost."""
    pair = unattached.lab.connect()
    asked = request("POST", body=body)
    pair.ask(asked[: -len(body)])
    with unattached.attached(), contextlib.closing(Noticed(unattached)) as noticed:
        if not body.startswith(b"\x17"):  # of such a one that is all that can be said
            pair.ask(body)
        pair.answer(OK)
        exchange(pair, UNKNOWN)
        unattached.record()
        pair.ask(b"POST / HTTP/1.1\r\nContent-Length: 1x\r\n\r\n")
        pair.ask(body)
        pair.answer(OK)
        unattached.wait_for(Counter.LOST_PARSER, 1)
        assert noticed.take() == []
        assert unattached.counted(Counter.CONNECTIONS_NOT_HTTP) == 0


def test_nor_is_one_that_crosses_what_its_server_says_unasked(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.answer(response(408, body=b"too slow"))
    asked = request("POST", body=bytes(500))
    pair.ask(asked[:-500])
    pair.ask(asked[-500:])
    meter.wait_for(Counter.SEGMENTS_UNCERTAIN, 1)
    assert meter.counted(Counter.SEGMENTS_UNASKED) == 1
    assert meter.counted(Counter.CONNECTIONS_NOT_HTTP) == 0


def test_more_requests_at_once_than_are_read_are_http_all_the_same(lab: Lab, meter: Meter) -> None:
    """One program after the other reads them: the kernel goes on with a segment 33 times."""
    pair = lab.connect()
    pair.ask(b"".join(request(target=f"/{number}") for number in range(70)))
    pair.answer(70 * OK)
    pair.exchange(request(), OK)
    meter.wait_for(Counter.SEGMENTS_UNCERTAIN, 1)
    assert meter.counted(Counter.CONNECTIONS_NOT_HTTP) == 0


def test_more_notices_than_are_kept(lab: Lab, meter: Meter, noticed: Noticed) -> None:
    meter.unseen = 70
    for _ in range(70):
        exchange(lab.connect(client_side="server"))
        lab.close_connections()
    assert noticed.take() == [(NoticeKind.UNSEEN, PORT, "lo")] * 64
    exchange(lab.connect(client_side="server"))
    meter.unseen += 1
    assert len(noticed.take()) == 1


def test_the_end_of_a_connection_is_no_byte_that_was_missed(lab: Lab, meter: Meter) -> None:
    """A FIN has a number in the sequence; whoever waits for data is woken for it."""
    for first in ("client", "server"):
        pair = lab.connect()
        exchange(pair)
        ends = [pair.client, pair.server] if first == "client" else [pair.server, pair.client]
        for end in ends:
            end.shutdown(socket.SHUT_WR)
        wait_until(lambda pair=pair: pair.server.recv(1) == b"", "the end came")
        pair.close()
    meter.records(2)


def test_long_messages_are_seen(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.ask(request("POST", body=bytes(1 << 16)))
    pair.answer(response(body=bytes(1 << 17)))
    exchange(pair)
    meter.records(2)
