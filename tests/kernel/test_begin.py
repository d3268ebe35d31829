# SPDX-License-Identifier: Apache-2.0
"""When a connection exists, and when a request may begin on it."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from frames import verdict
from lab import (
    PORT,
    SERVER_IPV4,
    SERVER_IPV6,
    SPARE_PORT,
    Lab,
    Pair,
    prepare,
    receive,
    setting,
)
from messages import CHUNKED, CONTINUE, OK, chunks, request, response
from meter import FREE_PORT, OUTGOING, WHOLE, Meter, flags, stamps
from puppet import Puppet
from sums_of_connections import Sums, spare_listener
from support.commands import run
from support.frames import ACK, PSH, RST, SYN, Frame
from support.namespaces import namespaces
from support.waiting import wait_until

from otelbpf.host.netns import find_netns
from otelbpf.kernel.records import Counter, Stamp
from otelbpf.ledger.request import Kind

FLOOD = 20_000
ETHERNET, TCP = 14, 34
SEQ = 2**32 - 1
PLANTED = request(target="/planted", headers={"User-Agent": "planted"})
POSTED = request("POST", "/planted", {"User-Agent": "planted"}, body=bytes(40))
UPLOAD = request("POST", "/upload", {"Content-Length": "100000"})


# ---- bytes of a body are never taken for a request ----


def exchange_until_told(meter: Meter, pair: Pair, unknown: int) -> None:
    """So many exchanges pass before one is told, and all after them are."""
    for number in range(unknown):
        pair.exchange(request(target=f"/unknown/{number}"), OK)
    assert meter.counted(Counter.SEEN) == 0
    for number in range(2):
        pair.exchange(request("PUT", f"/told/{number}", body=b"body"), OK)
        record = meter.record()
        assert record["http1"]["request_line"] == f"PUT /told/{number} HTTP/1.1".encode()
        assert flags(record) == WHOLE
    assert meter.counted(Counter.CONNECTIONS_ADOPTED) == 1
    assert meter.losses() == {}


@pytest.mark.guest
@pytest.mark.parametrize("plant", [PLANTED, POSTED, PLANTED + POSTED, POSTED[:-40]], ids=len)
@pytest.mark.parametrize(
    ("between", "unknown"),
    [
        # The upload's own answer is the first that is whole; one more comes that is not told.
        (b"", 1),
        (CONTINUE, 1),
        (response(103), 1),
        (response(102) + CONTINUE, 1),
    ],
    ids=["nothing", "100", "103", "two"],
)
def test_a_body_that_looks_like_requests(
    unattached: Meter, plant: bytes, between: bytes, unknown: int
) -> None:
    pair = unattached.lab.connect()
    pair.ask(UPLOAD + bytes(100))
    with unattached.attached():
        for _ in range(3):
            pair.ask(plant)
            if between:
                pair.answer(between)
        pair.ask(plant)
        pair.answer(OK)
        exchange_until_told(unattached, pair, unknown)


@pytest.mark.parametrize("plant", [PLANTED, POSTED, PLANTED + POSTED, POSTED[:-40]], ids=len)
@pytest.mark.parametrize("interim", [b"", CONTINUE], ids=["", "100"])
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("after", [1, 2])
def test_a_body_that_goes_on_behind_an_early_answer(
    unattached: Meter, plant: bytes, interim: bytes, before: int, after: int
) -> None:
    pair = unattached.lab.connect()
    pair.ask(UPLOAD + bytes(100))
    with unattached.attached():
        for _ in range(before):
            pair.ask(plant)
        if interim:
            pair.answer(interim)
            pair.ask(plant)
        pair.answer(response(413, body=b"early"))
        for _ in range(after):
            pair.ask(plant)
        # The next one's own answer is the second that is whole.
        exchange_until_told(unattached, pair, 2)


EARLY = response(405, body=b"no")


def _within_a_body(head: bytes) -> bytes:
    return request("POST", "/planted", {"Content-Length": str(len(head))})


def _within_a_long_body(head: bytes) -> bytes:
    """Of several segments, and windows."""
    filler = b"%0*d\n" % (2 * 1024 + 1, 0) * 3
    return request("POST", "/planted", {"Content-Length": str(len(filler + head))}) + filler


def _within_a_body_to_its_last_line(head: bytes) -> bytes:
    return _within_a_body(head[:-1])


def _within_a_chunk(head: bytes) -> bytes:
    return request("POST", "/planted", CHUNKED) + b"%x\r\n" % len(head)


def _within_a_header(_head: bytes) -> bytes:
    return request(target="/planted")[:-2] + b"X: "


def _behind_a_request(_head: bytes) -> bytes:
    return PLANTED


DISGUISES = (
    _within_a_body,
    _within_a_long_body,
    _within_a_body_to_its_last_line,
    _within_a_chunk,
    _within_a_header,
    _behind_a_request,
)


@pytest.mark.parametrize("disguise", DISGUISES)
# What is looked for is the same on every kernel; that its verifier takes it is to be seen.
@pytest.mark.parametrize("times", [1, 2, 3, pytest.param(4, marks=pytest.mark.guest)])
@pytest.mark.parametrize("cut", [False, True], ids=["together", "apart"])
def test_bodies_that_go_on_behind_one_early_answer_after_the_other(
    unattached: Meter, disguise: Callable[[bytes], bytes], times: int, cut: bool
) -> None:
    """Each has what looks like the start of a request that goes on with the next one's head."""
    pair = unattached.lab.connect()
    planted = 2 * PLANTED
    uploads = [(planted, request("POST", "/real", {"Content-Length": str(len(planted))}))]
    for _ in range(times):
        head = uploads[-1][1]
        body = disguise(head)
        uploads.append((body, request("POST", "/real", {"Content-Length": str(len(body))})))
    body, head = uploads.pop()
    pair.ask(head)
    with unattached.attached():
        pair.answer(EARLY)
        while uploads:
            following, head = uploads.pop()
            if cut:
                pair.ask(body)
                pair.ask(head)
            else:
                pair.ask(body + head)
            pair.answer(EARLY)
            body = following
        pair.ask(PLANTED)
        pair.ask(PLANTED)
        exchange_until_told(unattached, pair, 2)


SMALL_BODY = b'{\n\t"a": 1\n}\n'


@pytest.mark.parametrize(
    "body",
    [b"a=1", SMALL_BODY, SMALL_BODY * 700, b"\n", b"\r\n" + bytes(2000)],
    ids=["form", "json", "long", "line", "lines"],
)
@pytest.mark.parametrize("cut", [None, 2, -1])
def test_a_client_that_always_sends_a_body(unattached: Meter, body: bytes, cut: int | None) -> None:
    """No head has its end in one without an empty line."""
    pair = unattached.lab.connect()
    asked = request("POST", "/upload", body=body)
    at = len(asked) - len(body) if cut == 2 else cut
    pair.exchange(request(target="/unseen"), OK)
    with unattached.attached():
        for number in range(3):
            pair.ask(asked[:at])
            if at:
                pair.ask(asked[at:])
            pair.answer(OK)
            assert unattached.counted(Counter.SEEN) == (number == 2)
        assert unattached.record()["request_bytes"] == len(asked)


@pytest.mark.parametrize(
    "asked",
    [
        request("POST", "/upload", body=b"a\n\nb"),
        request("POST", "/upload", body=b"a\r\n\r\nb"),
        request("POST", "/upload", body=bytes(1023) + b"\n\n" + bytes(9)),
        request("POST", "/upload", body=bytes(1022) + b"\r\n\r\n" + bytes(9)),
        request("POST", "/upload", body=bytes(1021) + b"\r\n\r\n" + bytes(9)),
        request("PUT", "/upload", CHUNKED) + chunks([b"first"]),
    ],
    ids=["LF", "CRLF", "1024", "1025", "1026", "chunks"],
)
def test_but_not_if_a_head_might_have_its_end_there(unattached: Meter, asked: bytes) -> None:
    pair = unattached.lab.connect()
    pair.exchange(request(target="/unseen"), OK)
    with unattached.attached():
        for _ in range(4):
            head = asked.index(b"\r\n\r\n") + 4
            pair.ask(asked[:head])
            pair.ask(asked[head:])
            pair.answer(OK)
        assert unattached.counted(Counter.SEEN) == 0
        assert unattached.counted(Counter.SEGMENTS_UNCERTAIN) == 4
        pair.exchange(request(target="/unknown"), OK)
        pair.exchange(request(target="/told"), OK)
        assert unattached.record()["http1"]["request_line"] == b"GET /told HTTP/1.1"


@pytest.mark.guest
@pytest.mark.parametrize("late", ["first", "second"])
@pytest.mark.parametrize("hides", [False, True])
def test_a_body_that_comes_in_another_order_may_hide_a_head(
    unattached: Meter, late: str, hides: bool
) -> None:
    """What was stepped over, or kept, is not looked at."""
    with spare_listener(unattached.lab) as listener, Puppet(unattached.lab, SPARE_PORT) as puppet:
        answer_seq = puppet.ask(SEQ)
        puppet.send(ACK, SEQ + 1, answer_seq + 1)
        server = prepare(listener.accept()[0])
        asked, answered = SEQ + 1, answer_seq + 1

        def ask(*segments: tuple[int, bytes]) -> None:
            nonlocal asked
            length = sum(len(data) for _, data in segments)
            for at, data in segments:
                puppet.send(ACK | PSH, asked + at, answered, data)
            receive(server, length)
            asked += length

        def answer() -> None:
            nonlocal answered
            server.sendall(OK)
            puppet.receive(ACK | PSH)
            answered += len(OK)
            puppet.send(ACK, asked, answered)

        def expect_nothing() -> None:
            assert unattached.counted(Counter.SEEN) == 0

        body = (b"\n\n" if hides else b"ab") + bytes(80)
        upload = even(request("POST", "/upload", body=body))
        head = len(upload) - len(body)
        order = {"first": [0, head + 10, head], "second": [0, head + 44, head]}[late]
        ends = {0: head, head: head + 44, head + 10: head + 44, head + 44: len(upload)}
        segments = [(at, upload[at : ends[at]]) for at in order]
        if late == "first":
            segments[2] = (head, upload[head : head + 10])
            segments.append((head + 44, upload[head + 44 :]))
        ask((0, even(request(target="/unseen"))))
        answer()
        with unattached.attached():
            ask((0, even(request(target="/unknown"))))
            answer()
            ask(*segments)
            answer()
            expect_nothing()
            ask((0, even(request(target="/unknown"))))
            answer()
            expect_nothing()
            ask((0, even(request(target="/told"))))
            answer()
            record = unattached.record()
            assert record["http1"]["request_line"] == b"GET /told HTTP/1.1"
            puppet.leave(asked, answered)
            server.close()


@pytest.mark.guest
def test_a_chunk_that_looks_like_a_request(unattached: Meter) -> None:
    pair = unattached.lab.connect()
    pair.ask(request("POST", "/upload", CHUNKED))
    with unattached.attached():
        for _ in range(3):
            pair.ask(b"%x\r\n" % len(PLANTED))
            pair.ask(PLANTED)
            pair.ask(b"\r\n")
        pair.ask(b"0\r\n\r\n")
        pair.answer(OK)
        exchange_until_told(unattached, pair, 1)


@pytest.mark.guest
def test_a_response_that_looks_like_responses(unattached: Meter) -> None:
    """A download of messages, with uploads that look like requests at the same time."""
    pair = unattached.lab.connect()
    pair.ask(UPLOAD)
    with unattached.attached():
        for _ in range(2):
            pair.answer(OK)
            pair.ask(PLANTED[:-2])
            pair.answer(response(101))
        pair.answer(response(200, body=b"whole"))
        exchange_until_told(unattached, pair, 1)


@pytest.mark.guest
@pytest.mark.parametrize("known", [False, True], ids=["older", "lost"])
def test_a_connection_at_rest(unattached: Meter, known: bool) -> None:
    """Of the first exchange the answer alone is certain, and of the second nothing is told."""
    lab = unattached.lab
    if not known:
        pair = lab.connect()
        pair.exchange(request(target="/unseen"), OK)
    with unattached.attached():
        if known:
            pair = lab.connect()
            pair.exchange(request(target="/before"), OK)
            assert unattached.record()["ordinal"] == 0
            # Unasked: after that nobody knows whose answer the next one is.
            pair.answer(b"what nobody has asked for")
            unattached.begin()
        for _ in range(2):
            pair.exchange(request(target="/unknown"), OK)
        assert unattached.counted(Counter.SEEN) == 0
        for target in ("/told", "/too"):
            pair.exchange(request(target=target), OK)
            line = f"GET {target} HTTP/1.1".encode()
            assert unattached.record()["http1"]["request_line"] == line
        assert unattached.counted(Counter.CONNECTIONS_ADOPTED) == (not known)
        assert unattached.counted(Counter.SEGMENTS_UNCERTAIN) == 2


@pytest.mark.guest
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("known", [False, True], ids=["older", "lost"])
def test_what_may_be_a_request_is_counted_though_nobody_answers(
    unattached: Meter, known: bool, before: int
) -> None:
    lab = unattached.lab
    with contextlib.ExitStack() as stack:
        if known:
            stack.enter_context(unattached.attached())
        pair = lab.connect()
        if known:
            pair.answer(b"what nobody has asked for")
        else:
            pair.exchange(request(target="/unseen"), OK)
            stack.enter_context(unattached.attached())
        for _ in range(before):
            pair.exchange(request(target="/unknown"), OK)
        pair.ask(request(target="/unknown"))
        lab.close_connections()
        unattached.wait_for(Counter.CONNECTIONS_CLOSED, 1)
        assert unattached.counted(Counter.SEEN) == 0
        assert unattached.counted(Counter.SEGMENTS_UNCERTAIN) == before + 1


@pytest.mark.guest
def test_requests_that_overlap_are_not_told(unattached: Meter) -> None:
    """With several under way it is not certain whose answer is whose."""
    pair = unattached.lab.connect()
    pair.exchange(request(target="/unseen"), OK)
    with unattached.attached():
        for _ in range(4):
            pair.ask(2 * request(target="/overlapping"))
            pair.answer(OK)
            pair.answer(OK)
        assert unattached.counted(Counter.SEEN) == 0
        exchange_until_told(unattached, pair, 2)


@pytest.mark.guest
def test_an_answer_to_head_has_no_body(unattached: Meter) -> None:
    """Whose answer the first one seen is, is not known: it waits for a body in vain."""
    pair = unattached.lab.connect()
    with_length = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    pair.exchange(request(target="/unseen"), OK)
    with unattached.attached():
        pair.exchange(request("HEAD", "/unknown"), with_length)
        pair.exchange(request(), OK)
        pair.exchange(request("HEAD", "/unknown"), with_length)
        pair.exchange(request("HEAD", "/told"), with_length)
        record = unattached.record()
        assert record["http1"]["request_line"] == b"HEAD /told HTTP/1.1"
        assert flags(record) == WHOLE


@pytest.mark.guest
def test_a_connection_of_which_nothing_has_passed_is_told_from_its_first_request_on(
    unattached: Meter,
) -> None:
    """A pool's, say, that is older than the agent: its framing is known."""
    pair = unattached.lab.connect()
    with unattached.attached():
        pair.send_segment(b"GET /fi")
        pair.send_segment(b"rst HTTP/1.1\r\n\r\n")
        receive(pair.server, len(b"GET /first HTTP/1.1\r\n\r\n"))
        pair.answer(OK)
        assert unattached.record()["http1"]["request_line"] == b"GET /first HTTP/1.1"
        assert unattached.counted(Counter.CONNECTIONS_ADOPTED) == 1


# ---- data before the connection is established ----


def deferred(lab: Lab) -> socket.socket:
    """To a server that defers accepting, as nginx and Apache can: the handshake waits for data."""
    listener = spare_listener(lab)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
    return listener


@pytest.mark.guest
@pytest.mark.parametrize("method", ["GET", "PROPFIND", "X"])
@pytest.mark.parametrize("cut", [None, 3, 9])
def test_the_first_bytes_establish_the_connection(
    servers: Sums, method: str, cut: int | None
) -> None:
    asked = request(method, "/first")
    with deferred(servers.lab) as listener:
        client = servers.lab.socket("client", socket.AF_INET)
        client.connect(listener.getsockname())
        client.sendall(asked[:cut])
        pair = servers.lab.keep(Pair(client, prepare(listener.accept()[0])))
        receive(pair.server, len(asked[:cut]))
        if cut:
            pair.ask(asked[cut:])
        pair.answer(OK)
        record = servers.meter.record()
        assert record["http1"]["request_line"] == f"{method} /first HTTP/1.1".encode()
        assert flags(record) == WHOLE
        assert record["ordinal"] == 0
        assert Stamp.NIC in stamps(record)
        servers.expect(opened=1)
        assert servers.handshakes()[0] == 1
        pair.exchange(request(), OK)
        assert servers.meter.record()["ordinal"] == 1


def even(asked: bytes) -> bytes:
    """The same with an empty line before it, if need be: a puppet's payloads are even."""
    return asked if len(asked) % 2 == 0 else b"\n" + asked


@pytest.mark.guest
def test_data_comes_with_the_end_of_the_handshake(servers: Sums) -> None:
    with spare_listener(servers.lab) as listener, Puppet(servers.lab, SPARE_PORT) as puppet:
        asked = even(request("PROPFIND", "/even"))
        answer = puppet.ask(SEQ)
        puppet.send(ACK | PSH, SEQ + 1, answer + 1, asked)
        accepted = prepare(listener.accept()[0])
        receive(accepted, len(asked))
        accepted.sendall(OK)
        puppet.receive(ACK | PSH)
        puppet.send(ACK, SEQ + 1 + len(asked), answer + 1 + len(OK))
        assert servers.meter.record()["http1"]["request_line"] == b"PROPFIND /even HTTP/1.1"
        servers.expect(opened=1)
        puppet.leave(SEQ + 1 + len(asked), answer + 1 + len(OK))
        servers.expect(opened=1, closed=1, reset=1, reset_by_peer=1)
        accepted.close()


@pytest.mark.guest
def test_data_while_the_accept_queue_is_full(servers: Sums) -> None:
    """The end of the handshake is dropped, and data with it, until there is room."""
    with spare_listener(servers.lab, backlog=0) as listener:
        filling = servers.lab.socket("client", socket.AF_INET)
        with Puppet(servers.lab, SPARE_PORT) as puppet:
            answer = puppet.ask(SEQ)
            filling.connect(listener.getsockname())
            servers.expect(opened=1)
            asked = even(request("PROPFIND", "/full"))
            half = len(asked) // 4 * 2
            for _ in range(2):
                puppet.send(ACK | PSH, SEQ + 1, answer + 1, asked[:half])
            wait_until(lambda: servers.meter.counted(Counter.SEEN) == 1, "it was seen")
            servers.lab.keep(Pair(filling, listener.accept()[0]))
            puppet.send(ACK | PSH, SEQ + 1, answer + 1, asked[:half])
            accepted = prepare(listener.accept()[0])
            puppet.send(ACK | PSH, SEQ + 1 + half, answer + 1, asked[half:])
            receive(accepted, len(asked))
            accepted.sendall(OK)
            puppet.receive(ACK | PSH)
            puppet.send(ACK, SEQ + 1 + len(asked), answer + 1 + len(OK))
            record = servers.meter.record()
            assert record["http1"]["request_line"] == b"PROPFIND /full HTTP/1.1"
            assert record["request_retransmits"] == 2
            servers.expect(opened=2)
            puppet.leave(SEQ + 1 + len(asked), answer + 1 + len(OK))
            accepted.close()


def cookies(lab: Lab) -> AbstractContextManager[None]:
    """The server remembers nobody who asks for a connection, as if many did at once."""
    return setting(lab, "net.ipv4.tcp_syncookies", "2")


@pytest.mark.guest
@pytest.mark.parametrize("host", [SERVER_IPV4, SERVER_IPV6])
@pytest.mark.parametrize("cut", [None, 3])
def test_the_first_bytes_bring_back_a_cookie(servers: Sums, host: str, cut: int | None) -> None:
    asked = request("PROPFIND", "/cookie")
    client = servers.lab.socket("client", socket.AF_INET6 if ":" in host else socket.AF_INET)
    # The end of the handshake leaves with the data.
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
    listener = servers.lab.listener(host)
    with cookies(servers.lab):
        client.connect(listener.getsockname()[:2])
        client.sendall(asked[:cut])
        pair = servers.lab.keep(Pair(client, prepare(listener.accept()[0])))
    receive(pair.server, len(asked[:cut]))
    if cut:
        pair.ask(asked[cut:])
    pair.answer(OK)
    record = servers.meter.record()
    assert record["http1"]["request_line"] == b"PROPFIND /cookie HTTP/1.1"
    assert flags(record) == WHOLE
    assert record["ordinal"] == 0
    assert Stamp.NIC in stamps(record)
    servers.expect(opened=1)
    assert servers.meter.counted(Counter.SEGMENTS_STRAY) == 0


@pytest.mark.guest
def test_a_cookie_that_nobody_was_given(lab: Lab, meter: Meter) -> None:
    lab.listener(SERVER_IPV4)
    with cookies(lab), Puppet(lab) as puppet:
        answer = puppet.ask(SEQ)
        # Up to three more tell of another length of segments, and are right, too.
        for wrong in (100, 1 << 23, 1 << 30):
            puppet.send(ACK | PSH, SEQ + 1, answer + 1 + wrong, even(request(target="/made/up")))
            puppet.receive(RST)
    assert meter.counted_all() == {"SEGMENTS_STRAY": 3}


# ---- without a connection ----


def forged(number: int) -> bytes:
    """A request that nobody has made a connection for."""
    return bytes(Frame(
        request(target="/forged"), seq=number, ack_seq=number, client_port=1024 + number % 60_000,
        client=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", server=SERVER_IPV4,
    ))  # fmt: skip


@pytest.mark.guest
def test_a_flood_of_requests_without_a_handshake(lab: Lab, meter: Meter) -> None:
    """It costs live connections nothing, and makes no request."""
    live = [lab.connect() for _ in range(50)]
    for pair in live:
        pair.exchange(request(), OK)
    meter.records(len(live))
    programs = [meter.programs.fd(name) for name in ("xdp_arrival", "tc_ingress")]

    def flood() -> None:
        for number in range(FLOOD):
            for program in programs:
                verdict(program, forged(number))

    lab.server_netns.run(flood)
    assert meter.counted(Counter.SEGMENTS_STRAY) == FLOOD
    assert meter.counted(Counter.SEEN) == len(live)
    assert meter.counted(Counter.CONNECTIONS_EVICTED) == 0
    assert meter.slots_in_use() == 0
    for pair in live:
        pair.exchange(request(target="/live"), OK)
    records = meter.records(len(live))
    assert {r.tobytes().rstrip(b"\0") for r in records["http1"]["request_line"]} == {
        b"GET /live HTTP/1.1"
    }
    assert (records["ordinal"] == 1).all()


@pytest.mark.guest
@pytest.mark.parametrize("port", [PORT, SPARE_PORT], ids=["listens", "nobody"])
def test_what_is_answered_by_rst_is_no_request(lab: Lab, meter: Meter, port: int) -> None:
    lab.listener(SERVER_IPV4)
    with Puppet(lab, port) as puppet:
        for number in range(20):
            puppet.send(ACK | PSH, SEQ + number, 1, request(target="/even"))
            puppet.receive(RST)
    assert meter.counted_all() == {"SEGMENTS_STRAY": 20}


@pytest.mark.guest
def test_a_handshake_that_is_not_finished_is_no_connection(lab: Lab, meter: Meter) -> None:
    """Whoever has not seen the server's SYN cannot go on from it."""
    lab.listener(SERVER_IPV4)
    with Puppet(lab) as puppet:
        answer = puppet.ask(SEQ)
        for guess in (answer, answer + 2, answer + 2**31):
            puppet.send(ACK | PSH, SEQ + 1, guess, request(target="/even"))
        wait_until(lambda: meter.counted(Counter.SEGMENTS_STRAY) == 3, "all had come")
        puppet.send(RST, SEQ + 1)
    assert meter.counted_all() == {"SEGMENTS_STRAY": 3}


@contextlib.contextmanager
def behind(lab: Lab) -> Iterator[tuple[socket.socket, str]]:
    """A listener behind the server, which is its router; and where it listens."""
    with namespaces("behind") as (name,):
        router = lab.server_netns.name
        run("ip", "link", "add", "pod0", "netns", router, "type", "veth",
            "peer", "name", "eth0", "netns", name)  # fmt: skip
        for netns, device, number in ((router, "pod0", 1), (name, "eth0", 2)):
            run("ip", "-n", netns, "addr", "add", f"198.18.7.{number}/24", "dev", device)
            run("ip", "-n", netns, "link", "set", device, "up")
        run("ip", "-n", name, "route", "add", "default", "via", "198.18.7.1")
        via = ("198.18.7.0/24", "via", SERVER_IPV4)
        run("ip", "-n", lab.client_netns.name, "route", "add", *via)
        run("nsenter", f"--net={lab.server_netns.path}", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        listener = find_netns(name).run(lambda: prepare(socket.socket()))
        listener.bind(("198.18.7.2", PORT))
        listener.listen()
        try:
            yield listener, "198.18.7.2"
        finally:
            listener.close()
            run("ip", "-n", lab.client_netns.name, "route", "del", *via)
            run("ip", "-n", router, "link", "del", "pod0")


@pytest.mark.guest
def test_what_a_router_hands_on_is_not_its_own(lab: Lab, meter: Meter) -> None:
    """A handshake that passes is not one of this host's, nor are the requests behind it."""
    with behind(lab) as (listener, host):
        client = lab.socket("client", socket.AF_INET)
        client.connect((host, PORT))
        pair = lab.keep(Pair(client, prepare(listener.accept()[0])))
        for _ in range(20):
            pair.exchange(request(target="/forwarded"), OK)
        own = lab.connect()
        own.exchange(request(target="/own"), OK)
        assert meter.record()["http1"]["request_line"] == b"GET /own HTTP/1.1"
        assert meter.counted(Counter.SEEN) == meter.counted(Counter.CONNECTIONS_OPENED) == 1
        assert meter.counted(Counter.SEGMENTS_STRAY) == 20
        lab.close_connections()


@contextlib.contextmanager
def redirected(lab: Lab, port: int, to_port: int) -> Iterator[None]:
    rule = ("PREROUTING", "-p", "tcp", "--dport", str(port), "-j", "REDIRECT",
            "--to-port", str(to_port))  # fmt: skip
    enter = ("nsenter", f"--net={lab.server_netns.path}", "iptables", "-t", "nat")
    run(*enter, "-A", *rule)
    try:
        yield
    finally:
        run(*enter, "-D", *rule)


@pytest.mark.guest
def test_a_connection_that_is_redirected_afterwards(lab: Lab, meter: Meter) -> None:
    """Its packets do not find its socket; that the socket's SYN left says that there is one."""
    with spare_listener(lab, PORT + 1) as listener, redirected(lab, SPARE_PORT, PORT + 1):
        pairs = []
        for _ in range(3):
            client = lab.socket("client", socket.AF_INET)
            client.connect((SERVER_IPV4, SPARE_PORT))
            pairs.append(lab.keep(Pair(client, prepare(listener.accept()[0]))))
        for number, pair in enumerate(pairs):
            pair.send_segment(b"PROPF")
            pair.send_segment(b"IND /first HTTP/1.1\r\n\r\n")
            receive(pair.server, len(b"PROPFIND /first HTTP/1.1\r\n\r\n"))
            pair.answer(OK)
            pair.exchange(request(), OK)
            first, second = meter.records(2)
            assert first["http1"]["request_line"] == b"PROPFIND /first HTTP/1.1"
            assert (first["ordinal"], second["ordinal"]) == (0, 1)
            assert flags(first) == flags(second) == WHOLE
            assert first["local_port"] == SPARE_PORT
            assert meter.counted(Counter.CONNECTIONS_ADOPTED) == number + 1
        assert meter.counted(Counter.SEGMENTS_STRAY) == 0
        lab.close_connections()


@pytest.mark.guest
def test_a_redirected_connection_that_is_older_than_the_agent(unattached: Meter) -> None:
    """What its socket sends says that there is one."""
    lab = unattached.lab
    with spare_listener(lab, PORT + 1) as listener, redirected(lab, SPARE_PORT, PORT + 1):
        client = lab.socket("client", socket.AF_INET)
        client.connect((SERVER_IPV4, SPARE_PORT))
        pair = lab.keep(Pair(client, prepare(listener.accept()[0])))
        pair.exchange(request(target="/unseen"), OK)
        with unattached.attached():
            exchange_until_told(unattached, pair, 2)
            assert unattached.counted(Counter.SEGMENTS_STRAY) == 1
            lab.close_connections()


# ---- data with the SYN ----

# Either side takes what comes without a cookie, and listeners do not have to ask for it.
FAST_OPEN = str(0x1 | 0x2 | 0x4 | 0x200 | 0x400)
MSG_FASTOPEN = 0x20000000


@contextlib.contextmanager
def fast_open(lab: Lab, port: int) -> Iterator[socket.socket]:
    """A listener that takes data with the SYN, and clients that send it."""
    with contextlib.ExitStack() as stack:
        for netns in (lab.server_netns, lab.client_netns):
            enter = ("nsenter", f"--net=/run/netns/{netns.name}", "sysctl", "-q")
            before = run(*enter, "-n", "net.ipv4.tcp_fastopen").strip()
            run(*enter, f"net.ipv4.tcp_fastopen={FAST_OPEN}")
            stack.callback(run, *enter, f"net.ipv4.tcp_fastopen={before}")
        listener = stack.enter_context(spare_listener(lab, port))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 32)
        yield listener


@pytest.mark.guest
@pytest.mark.parametrize(
    "asked", [request("PROPFIND", "/syn"), request("POST", "/syn", body=bytes(900))]
)
@pytest.mark.parametrize("cut", [None, 5, 30])
def test_a_request_in_the_syn(sums: Sums, asked: bytes, cut: int | None) -> None:
    port = SPARE_PORT if sums.kind is Kind.SERVER else FREE_PORT
    meter = sums.meter
    with fast_open(sums.lab, port) as listener:
        for number in range(5):
            client = sums.lab.socket("client", socket.AF_INET)
            client.sendto(asked[:cut], MSG_FASTOPEN, listener.getsockname())
            pair = sums.lab.keep(Pair(client, prepare(listener.accept()[0])))
            receive(pair.server, len(asked[:cut]))
            if cut:
                pair.ask(asked[cut:])
            pair.answer(OK)
            record = meter.record()
            assert record["http1"]["request_line"].startswith(asked[: asked.index(b"\r")])
            assert flags(record) == (WHOLE if sums.kind is Kind.SERVER else OUTGOING)
            assert record["ordinal"] == 0
            assert record["request_bytes"] == len(asked)
            assert record["request_retransmits"] == 0
            assert Stamp.READ in stamps(record)
            pair.exchange(request(), OK)
            assert meter.record()["ordinal"] == 1
            sums.expect(opened=number + 1)
    assert meter.losses() == {}


@pytest.mark.guest
def test_data_in_a_syn_that_is_not_taken(sums: Sums) -> None:
    """It is sent again behind the handshake, and is one request."""
    port = SPARE_PORT if sums.kind is Kind.SERVER else FREE_PORT
    with fast_open(sums.lab, port) as listener:
        server = f"--net=/run/netns/{sums.lab.server_netns.name}"
        run("nsenter", server, "sysctl", "-qw", "net.ipv4.tcp_fastopen=1")
        client = sums.lab.socket("client", socket.AF_INET)
        client.sendto(request(), MSG_FASTOPEN, listener.getsockname())
        pair = sums.lab.keep(Pair(client, prepare(listener.accept()[0])))
        receive(pair.server, len(request()))
        pair.answer(OK)
        record = sums.meter.record()
        assert flags(record) == (WHOLE if sums.kind is Kind.SERVER else OUTGOING)
        sums.expect(opened=1)


@pytest.mark.guest
def test_a_flood_of_syns_with_data(lab: Lab, meter: Meter) -> None:
    """Nobody takes it, so it is nobody's."""
    pair = lab.connect()
    program = meter.programs.fd("tc_ingress")
    frame = bytearray(bytes(Frame(request(target="/forged"), flags=SYN)))

    def flood() -> None:
        for number in range(FLOOD):
            frame[ETHERNET + 12 : ETHERNET + 16] = struct.pack("!I", 10 << 24 | number)
            verdict(program, bytes(frame))

    lab.server_netns.run(flood)
    assert meter.counted_all() == {"CONNECTIONS_OPENED": 1}
    pair.exchange(request(), OK)
    assert flags(meter.record()) == WHOLE
