# SPDX-License-Identifier: Apache-2.0
"""What is said of connections that are not measured: the cause, the port, and what to do."""

from __future__ import annotations

import pytest

from otelbpf.agent.hints import Cause, Hints, Way, nobody_listens
from otelbpf.kernel.records import NoticeKind

TLS, HTTP2, NOT_HTTP, UNSEEN, UNSEEN_OUT, PROXY_HEADER = NoticeKind
LOOPBACK = Cause(UNSEEN, 8080, False, "lo", Way.UNMEASURED)


@pytest.mark.parametrize(
    ("cause", "count", "sentence"),
    [
        (Cause(TLS, 8443, False), 3,
         "3 connections to port 8443 are TLS, which is not read: measure what ends it, behind it"),
        (Cause(TLS, 443, True), 1,
         "1 connection to upstream port 443 is TLS, which is not read: measure what ends it, "
         "behind it"),
        (Cause(HTTP2, 8080, False), 2, "2 connections to port 8080 are HTTP/2, which is not read"),
        (Cause(NOT_HTTP, 80, False), 2, "2 connections to port 80 are no HTTP/1, and are not read"),
        (Cause(NOT_HTTP, 80, False), 1, "1 connection to port 80 is no HTTP/1, and is not read"),
        (Cause(PROXY_HEADER, 80, False), 1,
         "1 connection to port 80 begins with a header of the PROXY protocol, and is not read: "
         "name the proxies that send it with --proxy-protocol; one that is named sends it once, "
         "before the first request"),
        (Cause(PROXY_HEADER, 80, False), 2,
         "2 connections to port 80 begin with a header of the PROXY protocol, and are not read: "
         "name the proxies that send it with --proxy-protocol; one that is named sends it once, "
         "before the first request"),
        (LOOPBACK, 3,
         "3 connections to port 8080 come in on lo, which is not measured: add --interface lo"),
        (LOOPBACK, 1,
         "1 connection to port 8080 comes in on lo, which is not measured: add --interface lo"),
        (Cause(UNSEEN, 9000, True, "lo", Way.UNMEASURED), 2,
         "the responses of 2 connections to upstream port 9000 come in on lo, which is not "
         "measured: add --interface lo"),
        (Cause(UNSEEN_OUT, 8080, False, "eth1", Way.UNMEASURED), 1,
         "the responses of 1 connection to port 8080 leave by eth1, which is not measured: add "
         "--interface eth1"),
        (Cause(UNSEEN_OUT, 9000, True, "eth1", Way.UNMEASURED), 1,
         "the requests of 1 connection to upstream port 9000 leave by eth1, which is not measured: "
         "add --interface eth1"),
        (Cause(UNSEEN, 8080, False, "wg0", Way.NO_ETHERNET), 5,
         "5 connections to port 8080 come in on wg0, which cannot be measured: its packets have no "
         "Ethernet header"),
        (Cause(UNSEEN, 8080, False, "eth0", Way.BEHIND, "program shaper (id 7)"), 1,
         "1 connection to port 8080 comes in on eth0, where program shaper (id 7) is before "
         "otelbpf, and may keep its packets from it"),
        (Cause(UNSEEN, 8080, False, "eth0", Way.BEHIND, "program shaper (id 7)"), 2,
         "2 connections to port 8080 come in on eth0, where program shaper (id 7) is before "
         "otelbpf, and may keep their packets from it"),
        (Cause(UNSEEN, 8080, False, "eth0", Way.REDIRECTED, "80"), 4,
         "4 connections to port 8080 come in on eth0 to port 80, and REDIRECT or DNAT changes "
         "that: measure --port 80 instead; stamps of the sockets will be absent"),
        (Cause(UNSEEN, 8080, False, "eth0", Way.READDRESSED, "203.0.113.1:8080"), 4,
         "4 connections to port 8080 come in on eth0 to 203.0.113.1:8080, and REDIRECT or DNAT "
         "changes that: measured without the stamps of the sockets"),
        (Cause(UNSEEN, 8080, False, "eth0", Way.HIDDEN), 1,
         "1 connection to port 8080 comes in on eth0, which is measured, and is not seen there: "
         "REDIRECT, DNAT, IPsec or fragments may hide it"),
        (Cause(UNSEEN, 8080, False, "eth0", Way.HIDDEN), 2,
         "2 connections to port 8080 come in on eth0, which is measured, and are not seen there: "
         "REDIRECT, DNAT, IPsec or fragments may hide them"),
        (Cause(UNSEEN, 8080, False), 2,
         "2 connections to port 8080 come in by a way that is not measured"),
        (Cause(UNSEEN_OUT, 8080, False), 2,
         "the responses of 2 connections to port 8080 leave by a way that is not measured"),
    ],
)  # fmt: skip
def test_sentences(cause: Cause, count: int, sentence: str) -> None:
    assert cause.sentence(count) == sentence


def test_connections_are_gathered_before_they_are_told() -> None:
    hints = Hints()
    hints.add([LOOPBACK], 10.0)
    assert hints.due(10.9) == []
    hints.add([LOOPBACK, LOOPBACK], 10.9)
    assert hints.due(11.0) == [LOOPBACK.sentence(3)]
    assert hints.due(11.1) == []


def test_each_cause_is_told_by_itself() -> None:
    hints = Hints()
    other = Cause(UNSEEN, 9090, False, "lo", Way.UNMEASURED)
    hints.add([LOOPBACK, other, LOOPBACK], 10.0)
    assert hints.due(11.0) == [LOOPBACK.sentence(2), other.sentence(1)]


def test_it_is_told_again_when_there_are_ten_times_as_many() -> None:
    hints = Hints()
    hints.add([LOOPBACK] * 3, 10.0)
    assert hints.due(11.0) == [LOOPBACK.sentence(3)]
    hints.add([LOOPBACK] * 26, 12.0)
    assert hints.due(20.0) == []
    hints.add([LOOPBACK] * 2, 21.0)
    assert hints.due(21.0) == [LOOPBACK.sentence(31)]
    assert hints.due(22.0) == []


def test_not_too_many_are_told_at_once() -> None:
    """As where each container has an interface of its own."""
    causes = [Cause(UNSEEN, 8080, False, f"veth{number}", Way.UNMEASURED) for number in range(25)]
    sentences = [cause.sentence(1) for cause in causes]
    hints = Hints()
    hints.add(causes, 10.0)
    assert hints.due(11.0) == sentences[:10]
    assert hints.due(70.9) == []
    assert hints.due(71.0) == sentences[10:20]
    assert hints.due(71.5, at_end=True) == sentences[20:]


def test_at_the_end_nothing_is_waited_for() -> None:
    hints = Hints()
    hints.add([LOOPBACK], 10.0)
    assert hints.due(10.1) == []
    assert hints.due(10.1, at_end=True) == [LOOPBACK.sentence(1)]
    assert hints.due(11.0, at_end=True) == []


def test_no_more_are_remembered_than_there_is_room_for() -> None:
    hints = Hints()
    hints.add((Cause(UNSEEN, port, False, "lo", Way.UNMEASURED) for port in range(1, 5_000)), 0.0)
    hints.add([LOOPBACK], 0.0)
    assert len(hints._tallies) == 1_000


@pytest.mark.parametrize(
    ("listeners", "where", "sentence"),
    [
        ({}, "", "nobody listens on port 80 here"),
        ({8080: "nginx"}, "", "nobody listens on port 80 here; nginx listens on 8080"),
        (
            {8443: "nginx", 22: "sshd", 8080: "nginx"},
            "shop",
            "nobody listens on port 80 in network namespace shop; sshd listens on 22; nginx "
            "listens on 8080, 8443",
        ),
        ({8080: ""}, "", "nobody listens on port 80 here; somebody listens on 8080"),
        (
            {port: "python3" for port in range(1, 8)},
            "",
            "nobody listens on port 80 here; python3 listens on 1, 2, 3, 4 and 3 more",
        ),
        (
            {port: f"p{port}" for port in range(1, 8)},
            "",
            "nobody listens on port 80 here; p1 listens on 1; p2 listens on 2; p3 listens on 3; p4 "
            "listens on 4",
        ),
    ],
)
def test_nobody_listens(listeners: dict[int, str], where: str, sentence: str) -> None:
    """What may come later, told with REDIRECT or DNAT, does not contradict it."""
    assert nobody_listens(80, listeners, where) == (
        f"{sentence}; no request can come unless REDIRECT or DNAT changes the port"
    )
