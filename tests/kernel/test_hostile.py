# SPDX-License-Identifier: Apache-2.0
"""Segments that TCP does not take, and several for one place: what it reads is told, or nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from conversation import in_order
from lab import SPARE_PORT, prepare, receive
from messages import CHUNKED, OK, chunks, request, response
from meter import WHOLE, Meter, flags
from puppet import Puppet
from sums_of_connections import Sums, spare_listener
from support.frames import ACK, FIN, PSH
from support.waiting import wait_until

from otelbpf.kernel.records import Counter, RequestFlag

SEQ = 2**32 - 60
HEADERS = {"Host": "victim.example", "User-Agent": "victim/1"}
COOKIES = {f"Cookie-{number}": "c" * 200 for number in range(6)}
REAL = request(target="/real", headers=HEADERS)
LONG = request(target="/real", headers=HEADERS | COOKIES)
POST = request("POST", "/real", HEADERS, body=b"0123456789" * 4)
FORGED = REAL.replace(b"/real", b"/evil")
UNCLEAR = b"GET /unclear HTTP/1.1\r\nContent-Length: 1x\r\n\r\n"
PLANTED = request(target="/planted")
REFUSAL = response(405, body=b"no")


@dataclass
class Victim:
    """A connection whose client is a puppet; positions count bytes from its first one."""

    meter: Meter
    puppet: Puppet
    server: socket.socket
    answer_seq: int
    #: Bytes of the client's that its server has read, and of the server's that it has sent.
    asked: int = 0
    answered: int = 0

    def send(
        self, data: bytes, at: int = 0, *, flags: int = ACK | PSH, wrong: bool = False
    ) -> None:
        """A segment that begins at this byte behind those that were read."""
        seq = SEQ + 1 + self.asked + at
        self.puppet.send(flags, seq, self.answer_seq + 1 + self.answered, data, wrong=wrong)

    def forge(self, data: bytes, at: int = 0) -> None:
        """One that no TCP takes."""
        self.send(data, at, wrong=True)

    def read(self, data: bytes) -> None:
        """What the server reads is just this."""
        assert receive(self.server, len(data)) == data
        self.asked += len(data)

    def answer(self, data: bytes = OK) -> None:
        """The server answers, and the client acknowledges that."""
        self.server.sendall(data)
        self.puppet.receive(ACK | PSH)
        self.answered += len(data)
        self.send(b"", flags=ACK)

    def exchange(self, asked: bytes) -> None:
        self.send(asked)
        self.read(asked)
        self.answer()

    def expect_nothing(self, lost: int, *, uncertain: int = 0) -> None:
        """So many requests are lost, none is told, and the connection is taken up again.

        Args:
            uncertain: requests that came when it was not certain any more where one begins.
        """
        wait_until(
            lambda: self.meter.in_flight() == 0, "all was over", state=self.meter.counted_all
        )
        assert self.meter.losses() == ({Counter.LOST_UNTAKEN: lost} if lost else {})
        self.exchange(request(target="/unknown"))
        assert self.meter.counted(Counter.SEGMENTS_UNCERTAIN) == uncertain + 1
        self.exchange(request(target="/told"))
        assert self.meter.record()["http1"]["request_line"] == b"GET /told HTTP/1.1"


@pytest.fixture
def victim(servers: Sums) -> Iterator[Victim]:
    with spare_listener(servers.lab) as listener, Puppet(servers.lab, SPARE_PORT) as puppet:
        answer_seq = puppet.ask(SEQ)
        puppet.send(ACK, SEQ + 1, answer_seq + 1)
        victim = Victim(servers.meter, puppet, prepare(listener.accept()[0]), answer_seq)
        yield victim
        puppet.leave(SEQ + 1 + victim.asked, answer_seq + 1 + victim.answered)
        victim.server.close()


@pytest.mark.guest
@pytest.mark.parametrize(
    "forged",
    [
        FORGED,
        FORGED[:40],
        FORGED + request(target="/more"),
        REAL[:20] + b"X-Forged: yes\r\n" + REAL[20:],
        FORGED[:-2],
        REAL.replace(b"victim.", b"forged."),
        REAL.replace(b"victim/1", b"forged/1"),
        REAL.replace(b"Host", b"Hust"),
        request("POST", "/real", HEADERS, body=b"0123456789"),
    ],
    ids=["path", "shorter", "longer", "header", "part", "host", "agent", "name", "body"],
)
@pytest.mark.parametrize("before", [False, True], ids=["first", "next"])
def test_what_the_server_has_not_read_is_not_told(
    victim: Victim, forged: bytes, before: bool
) -> None:
    if before:
        victim.exchange(request(target="/before"))
        victim.meter.record()
    victim.forge(forged)
    victim.send(REAL)
    victim.read(REAL)
    victim.answer()
    lost = victim.meter.counted(Counter.SEEN) - before
    assert lost >= 1
    victim.expect_nothing(lost)


@pytest.mark.parametrize(
    "asked", [REAL, LONG, POST, b"\r\n" + REAL], ids=["", "long", "post", "line"]
)
@pytest.mark.parametrize("part", [None, 7, 40])
@pytest.mark.parametrize("before", [False, True], ids=["first", "next"])
def test_what_comes_again_as_it_was_is_told(
    victim: Victim, asked: bytes, part: int | None, before: bool
) -> None:
    """A segment that the network has spoilt, or for which TCP had no room."""
    if before:
        victim.exchange(request(target="/before"))
        victim.meter.record()
    victim.forge(asked[:part])
    victim.forge(asked[:part])
    victim.send(asked)
    victim.read(asked)
    victim.answer()
    record = victim.meter.record()
    assert record["http1"]["request_line"] == asked.strip().split(b"\r\n")[0]
    assert record["http1"]["host"] == b"victim.example"
    assert record["request_bytes"] == len(asked.lstrip())
    assert record["request_retransmits"] == (2 if part is None else 1 + (part > 2))
    assert flags(record) == WHOLE
    assert victim.meter.losses() == {}


CHUNKED_HEAD = request("PUT", "/real", HEADERS | CHUNKED)


@pytest.mark.parametrize("at", [700, 2, 100, len(LONG) - 3])
@pytest.mark.parametrize("order", ["112", "1122", "12121", "12212", "1w2", "1w12w"])
def test_a_head_in_segments_that_come_again_is_told(victim: Victim, at: int, order: str) -> None:
    """TCP has taken none of them; a network that doubles packets gives a host several at once."""
    for segment in in_order(LONG, at, order):
        victim.forge(*segment)
    victim.send(LONG)
    victim.read(LONG)
    victim.answer()
    record = victim.meter.record()
    assert record["http1"]["request_line"] == b"GET /real HTTP/1.1"
    repeats = len(order) + 1 - (1 if "w" in order else 2)
    assert (record["request_bytes"], record["request_retransmits"]) == (len(LONG), repeats)
    assert flags(record) == WHOLE
    assert victim.meter.losses() == {}


@pytest.mark.parametrize("order", ["12", "122", "121"])
@pytest.mark.parametrize("at", [7, 700])
@pytest.mark.parametrize("forged", [6, 30, 800, -20])
def test_a_head_in_segments_of_which_a_byte_differs_is_not(
    victim: Victim, order: str, at: int, forged: int
) -> None:
    other = bytearray(LONG)
    other[forged] ^= 1
    for segment in in_order(bytes(other), at, order):
        victim.forge(*segment)
    victim.send(LONG[:at])
    victim.send(LONG[at:], at)
    victim.read(LONG)
    victim.answer()
    victim.expect_nothing(victim.meter.counted(Counter.SEEN))


@pytest.mark.guest
@pytest.mark.parametrize("rest", [b"", b"rst\r\n0\r\n\r\n"])
def test_a_head_with_chunks_behind_it_is_told(victim: Victim, rest: bytes) -> None:
    asked = CHUNKED_HEAD + chunks([b"first", b"other"])
    if rest:
        asked = CHUNKED_HEAD + b"5\r\nfi"
    victim.forge(asked.replace(b"fi", b"FI"))
    victim.forge(asked)
    victim.send(asked)
    victim.read(asked)
    if rest:
        victim.send(rest)
        victim.read(rest)
    victim.answer()
    record = victim.meter.record()
    assert (record["request_bytes"], record["request_retransmits"]) == (len(asked + rest), 2)
    assert flags(record) == WHOLE | RequestFlag.REQUEST_CHUNKED
    assert victim.meter.losses() == {}


@pytest.mark.guest
@pytest.mark.parametrize(
    "forged",
    [
        chunks([b"first", b"secon"]),
        chunks([b"first"]) + b"seconds",
        request("PUT", "/real", HEADERS, body=b"5\r\nfirst"),
    ],
)
def test_but_not_if_they_are_others(victim: Victim, forged: bytes) -> None:
    asked = CHUNKED_HEAD + chunks([b"first", b"second"])
    victim.forge(CHUNKED_HEAD + forged if not forged.startswith(b"PUT") else forged)
    victim.send(asked)
    victim.read(asked)
    victim.answer()
    victim.expect_nothing(victim.meter.counted(Counter.SEEN))


@pytest.mark.guest
def test_what_comes_after_the_socket_has_taken_it_says_nothing(victim: Victim) -> None:
    victim.send(REAL)
    victim.read(REAL)
    victim.asked -= len(REAL)
    victim.send(FORGED)
    victim.forge(FORGED)
    victim.asked += len(REAL)
    victim.answer()
    record = victim.meter.record()
    assert record["http1"]["request_line"] == b"GET /real HTTP/1.1"
    assert record["request_retransmits"] == 2


def test_the_bytes_of_a_body_say_nothing(victim: Victim) -> None:
    head, body = POST[:-40], POST[-40:]
    victim.send(head)
    victim.read(head)
    victim.forge(b"X" * 30)
    victim.send(body)
    victim.read(body)
    victim.answer()
    record = victim.meter.record()
    assert (record["request_bytes"], record["request_body_bytes"]) == (len(POST), 40)
    assert flags(record) == WHOLE


@pytest.mark.parametrize(
    "forged", [b"0\r\n\r\n", b"ff\r\n", b"0\r\n\r\n" + FORGED, b"0f\r\n" + chunks([bytes(15)])[3:]]
)
def test_but_where_they_are_chunks(victim: Victim, forged: bytes) -> None:
    head, body = CHUNKED_HEAD, chunks([b"first", b"second"])
    victim.send(head)
    victim.read(head)
    victim.forge(forged)
    victim.send(body)
    victim.read(body)
    victim.answer()
    victim.expect_nothing(victim.meter.counted(Counter.SEEN))


@pytest.mark.guest
@pytest.mark.parametrize(
    "body", [chunks([b"first", b"second"]), chunks([b"first"])[:-5], b"5\r\nfi"]
)
def test_chunks_that_are_read_as_before_are_told(victim: Victim, body: bytes) -> None:
    """Their first copy was dropped; the bytes of a chunk say nothing."""
    head, rest = CHUNKED_HEAD, b""
    if not body.endswith(b"0\r\n\r\n"):
        rest = b"rst\r\n"[: 5 * (not body.endswith(b"\r\n"))] + b"0\r\n\r\n"
    victim.send(head)
    victim.read(head)
    victim.forge(body.replace(b"fi", b"FI"))
    victim.send(body)
    victim.read(body)
    if rest:
        victim.send(rest)
        victim.read(rest)
    victim.answer()
    record = victim.meter.record()
    assert record["request_bytes"] == len(head + body + rest)
    assert record["request_retransmits"] == 1
    assert flags(record) == WHOLE | RequestFlag.REQUEST_CHUNKED


def test_a_forged_end_of_a_body_begins_no_request(victim: Victim) -> None:
    head, body = POST[:-40], POST[-40:]
    victim.send(head)
    victim.read(head)
    victim.forge(body + FORGED)
    victim.send(body)
    victim.read(body)
    victim.answer()
    victim.expect_nothing(victim.meter.counted(Counter.SEEN))


@pytest.mark.guest
@pytest.mark.parametrize("cut", [20, 60])
@pytest.mark.parametrize("spoilt", [False, True])
def test_of_two_early_segments_that_differ_nothing_is_told(
    victim: Victim, cut: int, spoilt: bool
) -> None:
    real = request(target="/" + 40 * "r", headers=HEADERS)
    victim.send(real[cut:].replace(b"rr", b"ee").replace(b"victim", b"forged"), cut, wrong=spoilt)
    victim.send(real[cut:], cut)
    victim.send(real[:cut])
    assert len(receive(victim.server, len(real))) == len(real)
    victim.asked += len(real)
    victim.answer()
    victim.expect_nothing(0, uncertain=1)


def test_of_two_that_are_the_same_all_is(victim: Victim) -> None:
    for _ in range(2):
        victim.send(REAL[20:], 20)
    victim.send(REAL[:20])
    victim.read(REAL)
    victim.answer()
    record = victim.meter.record()
    assert record["http1"]["request_line"] == b"GET /real HTTP/1.1"
    assert (record["out_of_order"], record["request_retransmits"]) == (1, 1)


@pytest.mark.guest
def test_what_no_socket_has_taken_when_it_closes_is_not_told(victim: Victim) -> None:
    victim.exchange(REAL)
    victim.meter.record()
    victim.forge(FORGED)
    wait_until(lambda: victim.meter.counted(Counter.SEEN) == 2, "it was seen")
    victim.server.close()
    victim.puppet.receive(ACK | FIN)
    victim.answered += 1
    victim.send(b"", flags=ACK | FIN)
    wait_until(lambda: victim.meter.in_flight() == 0, "it was over")
    assert victim.meter.losses() == {Counter.LOST_UNTAKEN: 1}


@pytest.mark.guest
def test_a_request_that_crosses_the_end_of_its_server_is_none(victim: Victim) -> None:
    """The server has sent its FIN, and closed: nobody will read it."""
    victim.exchange(REAL)
    victim.meter.record()
    victim.server.close()
    victim.puppet.receive(ACK | FIN)
    victim.send(REAL)
    wait_until(lambda: victim.meter.counted(Counter.LOST_UNTAKEN) == 1, "it was seen and is over",
               state=victim.meter.counted_all)  # fmt: skip
    assert victim.meter.counted(Counter.SEEN) == 2


def test_a_server_that_only_sends_no_more_reads_it_all_the_same(victim: Victim) -> None:
    victim.server.shutdown(socket.SHUT_WR)
    victim.puppet.receive(ACK | FIN)
    victim.send(REAL)
    victim.read(REAL)
    victim.server.close()
    victim.puppet.leave(SEQ + 1 + victim.asked, victim.answer_seq + 2)
    record = victim.meter.record()
    assert record["http1"]["request_line"] == b"GET /real HTTP/1.1"
    assert flags(record) & RequestFlag.LOCAL_CLOSED


# ---- in the dark: where framing is not known nothing is kept that could be compared ----


@pytest.fixture
def in_the_dark(victim: Victim) -> Victim:
    """The client's own doing. One exchange is whole behind which a request may begin."""
    victim.exchange(UNCLEAR)
    assert victim.meter.losses() == {Counter.LOST_PARSER: 1}
    victim.meter.begin()
    return victim


def read_and_refuse(victim: Victim, asked: bytes) -> None:
    """The server has read this much, and answers early."""
    victim.send(asked)
    victim.read(asked)
    victim.answer(REFUSAL)


@pytest.mark.guest
@pytest.mark.parametrize("cut", [None, 4, 40])
def test_a_forged_request_in_the_dark_ends_nothing(in_the_dark: Victim, cut: int | None) -> None:
    """The real one has a body of which it says nothing, and in the body are requests."""
    victim = in_the_dark
    real = request("POST", "/real", {"Content-Length": "999"}) + b"x"
    victim.forge(request("POST", "/real", body=b"abc"))
    if cut:
        victim.send(real[:cut])
        victim.send(real[cut:], cut)
        victim.read(real)
        victim.answer(REFUSAL)
    else:
        read_and_refuse(victim, real)
    victim.send(PLANTED)
    victim.send(bytes(999 - 1 - len(PLANTED)), len(PLANTED))
    victim.read(PLANTED + bytes(999 - 1 - len(PLANTED)))
    victim.answer()
    assert victim.meter.counted(Counter.SEEN) == 0
    victim.expect_nothing(0, uncertain=3)


@pytest.mark.guest
def test_nor_does_a_forged_body_hide_a_head(in_the_dark: Victim) -> None:
    victim = in_the_dark
    hidden = request("POST", "/hidden", {"Content-Length": "999"})
    looks = b"POST /looks HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(hidden)
    read_and_refuse(victim, request("POST", "/first", {"Content-Length": str(len(looks))}))
    victim.send(looks)
    victim.read(looks)
    victim.forge(bytes(len(hidden)))
    read_and_refuse(victim, hidden)
    rest = PLANTED + bytes(999 - len(PLANTED))
    victim.send(PLANTED)
    victim.send(rest[len(PLANTED) :], len(PLANTED))
    victim.read(rest)
    victim.answer()
    assert victim.meter.counted(Counter.SEEN) == 0
    victim.expect_nothing(0, uncertain=4)


@pytest.mark.guest
@pytest.mark.parametrize("taken", [False, True])
def test_what_comes_again_in_the_dark_only_puts_off_the_beginning(
    in_the_dark: Victim, taken: bool
) -> None:
    """Be it the same, or taken by the socket before: that is not looked at."""
    victim = in_the_dark
    victim.send(REAL)
    if taken:
        victim.read(REAL)
    victim.send(REAL, -len(REAL) if taken else 0)
    if not taken:
        victim.read(REAL)
    victim.answer()
    assert victim.meter.counted(Counter.SEEN) == 0
    victim.expect_nothing(0, uncertain=2)
