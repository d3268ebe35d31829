# SPDX-License-Identifier: Apache-2.0
"""Segments that TCP does not take, of upstreams: the response that is read is told, or none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from conversation import in_order
from lab import receive, unread_bytes
from messages import CHUNKED, CONTINUE, OK, chunks, request, response
from meter import FREE_PORT, OUTGOING, UNKNOWN, Meter, flags
from puppet import ServerPuppet
from support.frames import ACK, FIN, PSH
from support.waiting import wait_until

from otelbpf.kernel.records import Counter, RequestFlag

SEQ = 2**32 - 60
ASK = request(target="/real")
HEADERS = {"Server": "victim/1", "Content-Type": "text/plain"}
COOKIES = {f"Set-Cookie-{number}": "c" * 180 for number in range(6)}
BODY = b"0123456789" * 4
PIECES = [b"first", b"second"]
REAL = response(headers=HEADERS, body=BODY)
LONG = response(headers=HEADERS | COOKIES, body=BODY)
CHUNKY = response(headers=HEADERS | CHUNKED) + chunks(PIECES)
CHUNKY_HEAD = len(CHUNKY) - len(chunks(PIECES))
UNTIL_CLOSE = response(headers=HEADERS) + BODY
TO_HEAD = response(headers=HEADERS, body=BODY)[: -len(BODY)]
NO_CONTENT = response(204, HEADERS)
HINTS = response(103, {"Link": "</style.css>; rel=preload"})


@dataclass
class Victim:
    """A connection whose upstream is a puppet; positions count bytes from its first one."""

    meter: Meter
    puppet: ServerPuppet
    client: socket.socket
    client_seq: int
    #: Bytes of the client's that the upstream has had, and of the upstream's that it has read.
    asked: int = 0
    answered: int = 0

    def send(
        self, data: bytes, at: int = 0, *, flags: int = ACK | PSH, wrong: bool = False
    ) -> None:
        """A segment that begins at this byte behind those that were read."""
        seq = SEQ + 1 + self.answered + at
        self.puppet.send(flags, seq, self.client_seq + 1 + self.asked, data, wrong=wrong)

    def forge(self, data: bytes, at: int = 0, *, flags: int = ACK | PSH) -> None:
        """One that no TCP takes."""
        self.send(data, at, flags=flags, wrong=True)

    def ask(self, data: bytes = ASK) -> None:
        """The client asks, and the upstream acknowledges that."""
        self.client.sendall(data)
        self.puppet.receive(ACK | PSH)
        self.asked += len(data)
        self.send(b"", flags=ACK)

    def read(self, data: bytes) -> None:
        """What the client reads is just this."""
        assert receive(self.client, len(data)) == data
        self.answered += len(data)

    def answer(self, data: bytes = OK) -> None:
        self.send(data)
        self.read(data)

    def expect_nothing(self, lost: Counter = Counter.LOST_UNTAKEN, *, told: int = 0) -> None:
        """One request is lost, no other is told, and the connection is taken up again."""
        wait_until(
            lambda: self.meter.in_flight() == 0, "all was over", state=self.meter.counted_all
        )
        assert self.meter.losses() == {lost: 1}
        assert self.meter.counted(Counter.SUBMITTED) == told
        for _ in range(UNKNOWN):
            self.ask(request(target="/unknown"))
            self.answer()
        wait_until(lambda: self.meter.in_flight() == 0, "all was over")
        since = self.meter.counted(Counter.SUBMITTED) - told
        assert self.meter.counted(Counter.SEGMENTS_UNCERTAIN) + since == UNKNOWN
        self.meter.begin()
        self.expect_next()

    def expect_next(self) -> None:
        self.ask(request(target="/told"))
        self.answer()
        record = self.meter.record()
        assert record["http1"]["request_line"] == b"GET /told HTTP/1.1"
        assert (record["status"], record["response_bytes"]) == (200, len(OK))

    def expect(self, data: bytes, body: int, repeats: int, *, status: int = 200) -> RequestFlag:
        """This response is told; gives its flags beyond those of any that is whole."""
        record = self.meter.record()
        assert record["http1"]["request_line"].endswith(b" /real HTTP/1.1")
        assert record["status"] == status
        assert (record["response_bytes"], record["response_body_bytes"]) == (len(data), body)
        assert record["response_retransmits"] == repeats
        assert flags(record) & OUTGOING == OUTGOING
        assert self.meter.losses() == {}
        return flags(record) & ~OUTGOING


@pytest.fixture(params=[False, True], ids=["first", "next"])
def victim(gateway: Meter, request: pytest.FixtureRequest) -> Iterator[Victim]:
    with (
        ServerPuppet(gateway.lab, FREE_PORT) as puppet,
        gateway.lab.socket("client", socket.AF_INET) as client,
    ):
        victim = Victim(gateway, puppet, client, puppet.accept(client, SEQ))
        if request.param:
            victim.ask()
            victim.answer()
            gateway.record()
            gateway.begin()
        yield victim
        puppet.leave(SEQ + 1 + victim.answered, victim.client_seq + 1 + victim.asked)


def forged(victim: Victim, other: bytes, real: bytes) -> None:
    """The client reads what its network has spoilt before."""
    victim.ask()
    victim.forge(other)
    victim.send(real)
    victim.read(real)


@pytest.mark.parametrize(
    "other",
    [
        response(500, HEADERS, BODY),
        response(100, HEADERS, BODY),
        response(204, HEADERS, BODY),
        REAL.replace(b"Length: 40", b"Length: 30"),
        REAL.replace(b"Length: 40", b"Length: 99"),
        REAL.replace(b"Length: 40", b"Langth: 40"),
        response(headers=HEADERS | {"X-Forged": "yes"}, body=BODY),
        response(headers=HEADERS, body=BODY[:-1]),
        response(headers={"Server": "victim/1"}, body=BODY),
        response(headers=HEADERS | CHUNKED) + chunks([BODY[:8]]),
        UNTIL_CLOSE,
        REAL + response(500, body=b""),
        REAL[: -len(BODY) - 2] + b"X: y",
        CONTINUE,
        HINTS,
        CONTINUE + REAL,
    ],
    ids=["status", "interim", "empty", "length", "longer", "name", "header", "body",
         "fewer", "chunked", "close", "two", "part", "continue", "hints", "before"],
)  # fmt: skip
def test_what_the_client_has_not_read_is_not_told(victim: Victim, other: bytes) -> None:
    forged(victim, other, REAL)
    victim.expect_nothing()


@pytest.mark.parametrize(
    ("asked", "answered"),
    [(ASK, NO_CONTENT), (ASK.replace(b"GET", b"HEAD"), TO_HEAD)],
    ids=["empty", "head"],
)
def test_nor_one_without_content_that_has_other_bytes_behind_it(
    victim: Victim, asked: bytes, answered: bytes
) -> None:
    """If they came again, nobody could compare them. Alone it is told."""
    victim.ask(asked)
    victim.send(answered)
    victim.read(answered)
    victim.expect(answered, 0, 0, status=int(answered[9:12]))
    victim.meter.begin()
    victim.ask(asked)
    victim.send(answered + b"other bytes")
    victim.read(answered + b"other bytes")
    victim.expect_nothing()


@pytest.mark.guest
def test_nor_an_upgrade(victim: Victim) -> None:
    forged(victim, response(101, HEADERS), REAL)
    victim.expect_nothing()


@pytest.mark.guest
@pytest.mark.parametrize(
    "other",
    [
        CHUNKY.replace(b"6\r\nsecond", b"0\r\nsecond"),
        CHUNKY[:CHUNKY_HEAD] + chunks([b"first", b"secon"]),
        CHUNKY.replace(b"chunked", b"gzipped"),
        CHUNKY.replace(b"200", b"201"),
        REAL,
    ],
)
def test_nor_other_chunks(victim: Victim, other: bytes) -> None:
    forged(victim, other, CHUNKY)
    victim.expect_nothing()


@pytest.mark.parametrize("spoilt", [b"5\r\nfirst", b"0\r\n\r\n"])
def test_nor_what_looks_like_no_chunks(victim: Victim, spoilt: bytes) -> None:
    forged(victim, CHUNKY.replace(spoilt, b"1" + spoilt[1:]), CHUNKY)
    victim.expect_nothing(Counter.LOST_PARSER)


@pytest.mark.parametrize("order", ["12", "122", "121"])
@pytest.mark.parametrize("at", [7, 700])
@pytest.mark.parametrize("byte", [9, 30, 800, len(LONG) - len(BODY) - 6])
def test_nor_a_head_in_segments_of_which_a_byte_differs(
    victim: Victim, order: str, at: int, byte: int
) -> None:
    other = bytearray(LONG)
    other[byte] ^= 1
    victim.ask()
    for segment in in_order(bytes(other), at, order):
        victim.forge(*segment)
    victim.send(LONG[:at])
    victim.send(LONG[at:], at)
    victim.read(LONG)
    victim.expect_nothing()


@pytest.mark.guest
@pytest.mark.parametrize("real", [REAL, LONG], ids=["short", "long"])
@pytest.mark.parametrize("part", [None, 7, 60])
def test_what_comes_again_as_it_was_is_told(victim: Victim, real: bytes, part: int | None) -> None:
    victim.ask()
    victim.forge(real[:part])
    victim.forge(real[:part])
    victim.send(real)
    victim.read(real)
    assert victim.expect(real, len(BODY), 2) == 0
    victim.expect_next()


@pytest.mark.parametrize("at", [2, 100, 700, len(LONG) - len(BODY) - 3, len(LONG) - 5])
@pytest.mark.parametrize("order", ["112", "1122", "1212"])
def test_a_head_in_segments_that_come_again_is_told(victim: Victim, at: int, order: str) -> None:
    victim.ask()
    for segment in in_order(LONG, at, order):
        victim.forge(*segment)
    victim.send(LONG)
    victim.read(LONG)
    assert victim.expect(LONG, len(BODY), len(order) - 1) == 0
    victim.expect_next()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("end", [CHUNKY_HEAD, CHUNKY_HEAD + 1, CHUNKY_HEAD + 5, -12, -5, -1, None])
def test_chunks_that_come_again_are_told(victim: Victim, end: int | None, times: int) -> None:
    """The bytes in them may be others."""
    victim.ask()
    for _ in range(times):
        victim.forge(CHUNKY[:end].replace(b"first", b"other"))
    victim.send(CHUNKY)
    victim.read(CHUNKY)
    told = victim.expect(CHUNKY, len(b"".join(PIECES)), times)
    assert told == RequestFlag.RESPONSE_CHUNKED
    victim.expect_next()


@pytest.mark.parametrize("real", [UNTIL_CLOSE, UNTIL_CLOSE[: -len(BODY)]], ids=["body", "none"])
@pytest.mark.parametrize("closing", [0, FIN])
def test_a_response_until_close_that_comes_again_is_told(
    victim: Victim, real: bytes, closing: int
) -> None:
    victim.ask()
    victim.forge(real, flags=ACK | PSH | closing)
    victim.send(real, flags=ACK | PSH | FIN)
    victim.read(real)
    assert victim.client.recv(1) == b""
    body = len(real) - len(UNTIL_CLOSE) + len(BODY)
    assert victim.expect(real, body, 1) & RequestFlag.RESPONSE_UNTIL_CLOSE


@pytest.mark.parametrize(
    ("real", "method", "status"), [(TO_HEAD, "HEAD", 200), (NO_CONTENT, "GET", 204)]
)
@pytest.mark.parametrize("part", [None, 20])
def test_a_response_without_a_body_that_comes_again_is_told(
    victim: Victim, real: bytes, method: str, status: int, part: int | None
) -> None:
    victim.ask(request(method, "/real"))
    for _ in range(2):
        victim.forge(real[:part])
    victim.send(real)
    victim.read(real)
    assert victim.expect(real, 0, 2, status=status) == 0
    victim.expect_next()


@pytest.mark.parametrize("status", [101, 200])
@pytest.mark.parametrize("part", [None, 20])
def test_an_upgrade_that_comes_again_is_told(victim: Victim, status: int, part: int | None) -> None:
    real = response(status, HEADERS)
    victim.ask(request("CONNECT" if status == 200 else "GET", "/real"))
    victim.forge(real[:part])
    victim.send(real)
    victim.read(real)
    assert victim.expect(real, 0, 1, status=status) == RequestFlag.UPGRADED
    victim.send(b"is not HTTP/1")
    victim.read(b"is not HTTP/1")
    assert victim.meter.in_flight() == 0


@pytest.mark.guest
@pytest.mark.parametrize("interim", [CONTINUE, HINTS], ids=["continue", "hints"])
@pytest.mark.parametrize("part", [None, 20])
def test_an_interim_response_that_comes_again_is_none(
    victim: Victim, interim: bytes, part: int | None
) -> None:
    victim.ask()
    for _ in range(2):
        victim.forge(interim[:part])
    victim.answer(interim)
    victim.forge(REAL)
    victim.answer(REAL)
    # What came before it was no response yet is its own.
    assert victim.expect(REAL, len(BODY), 1 if part is None else 3) == 0
    victim.expect_next()


@pytest.mark.parametrize("interim", [CONTINUE, HINTS], ids=["continue", "hints"])
def test_nor_if_the_final_one_is_behind_it(victim: Victim, interim: bytes) -> None:
    victim.ask()
    victim.forge(interim + REAL)
    victim.send(interim + REAL)
    victim.read(interim + REAL)
    assert victim.expect(REAL, len(BODY), 1) == 0
    victim.expect_next()


def test_what_comes_again_with_more_is_not_told(victim: Victim) -> None:
    """Of an interim response and its final one in segments of their own the bytes are not kept."""
    victim.ask()
    victim.forge(CONTINUE)
    victim.forge(REAL, len(CONTINUE))
    victim.send(CONTINUE + REAL)
    victim.read(CONTINUE + REAL)
    victim.expect_nothing()


def test_a_forged_interim_response_behind_one_that_is_not_read_yet(victim: Victim) -> None:
    """That one is told, as its client's socket has it."""
    real = response(404, HEADERS, BODY)
    victim.ask()
    victim.ask()
    victim.send(REAL)
    victim.forge(CONTINUE, len(REAL))
    victim.send(real, len(REAL))
    victim.read(REAL + real)
    record = victim.meter.record()
    assert (record["status"], record["response_bytes"]) == (200, len(REAL))
    victim.expect_nothing(told=1)


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("real", [REAL, CHUNKY, UNTIL_CLOSE], ids=["length", "chunks", "close"])
def test_what_comes_after_the_socket_has_taken_it_says_nothing(
    victim: Victim, real: bytes, read: bool
) -> None:
    at = len(real) - 12
    victim.ask()
    victim.send(real[:at])
    wait_until(lambda: unread_bytes(victim.client) == at, "the socket has taken it")
    if read:
        victim.read(real[:at])
        victim.answered -= at
    for other in (real.replace(b"200", b"500"), response(500, body=b""), CONTINUE):
        victim.forge(other[:at])
        victim.send(other[:at])
    victim.send(real[at:], at, flags=ACK | PSH | (FIN if real == UNTIL_CLOSE else 0))
    if read:
        victim.answered += at
    victim.read(real[at * read :])
    body = len(BODY) if real != CHUNKY else len(b"".join(PIECES))
    victim.expect(real, body, 6)


@pytest.mark.guest
@pytest.mark.parametrize("more", [b"", b"more"])
def test_a_forged_fin_ends_no_response(victim: Victim, more: bytes) -> None:
    victim.ask()
    victim.forge(UNTIL_CLOSE, flags=ACK | PSH | FIN)
    victim.send(UNTIL_CLOSE + more)
    victim.read(UNTIL_CLOSE + more)
    wait_until(lambda: victim.meter.in_flight() == 0, "all was over")
    assert victim.meter.losses() == {Counter.LOST_UNTAKEN: 1}


@pytest.mark.guest
@pytest.mark.parametrize("reads", [False, True], ids=["unread", "read"])
@pytest.mark.parametrize("forged", [b"", b"forged"])
def test_nor_does_one_behind_the_bytes_that_were_taken(
    victim: Victim, reads: bool, forged: bytes
) -> None:
    """It ends one until the connection closes, by all appearance; but more of that comes."""
    victim.ask()
    part, rest = UNTIL_CLOSE[:-10], UNTIL_CLOSE[-10:]
    victim.send(part)
    if reads:
        victim.read(part)
        part = b""
    victim.forge(forged, len(part), flags=ACK | PSH | FIN)
    if part:
        wait_until(lambda: unread_bytes(victim.client) == len(part), "it had come")
        victim.read(part)
    assert victim.meter.counted(Counter.SUBMITTED) == 0
    victim.send(rest, flags=ACK | PSH | FIN)
    victim.read(rest)
    victim.answered += 1
    wait_until(lambda: victim.meter.in_flight() == 0, "all was over")
    assert victim.meter.losses() == {Counter.LOST_UNTAKEN: 1}
    assert victim.meter.counted(Counter.SUBMITTED) == 0


@pytest.mark.guest
@pytest.mark.parametrize("reads", [False, True], ids=["unread", "read"])
@pytest.mark.parametrize("last", [b"", b"last"])
@pytest.mark.parametrize("forged", [0, 1])
def test_a_fin_that_tcp_takes_ends_one(
    victim: Victim, reads: bool, last: bytes, forged: int
) -> None:
    victim.ask()
    real, told = UNTIL_CLOSE, len(UNTIL_CLOSE + last)
    victim.send(real)
    if reads:
        victim.read(real)
        real = b""
    for _ in range(forged):
        victim.forge(last, len(real), flags=ACK | PSH | FIN)
    victim.send(last, len(real), flags=ACK | PSH | FIN)
    victim.read(real + last)
    assert victim.client.recv(1) == b""
    victim.answered += 1
    record = victim.meter.record()
    assert (record["response_bytes"], record["response_body_bytes"]) == (told, len(BODY + last))
    assert flags(record) & OUTGOING == OUTGOING
    assert victim.meter.losses() == {}


@pytest.mark.guest
@pytest.mark.parametrize("at", [None, 9, -len(BODY) - 1, -len(BODY), -5])
@pytest.mark.parametrize("first", [0, 9])
def test_a_fin_that_overtakes_the_head_ends_the_response(
    victim: Victim, at: int | None, first: int
) -> None:
    """With the bytes before it, or alone. It counts once TCP has taken it."""
    real = UNTIL_CLOSE
    end = len(real) if at is None else at % len(real)
    victim.ask()
    victim.send(real[:first])
    victim.send(real[end:], end, flags=ACK | PSH * (at is not None) | FIN)
    victim.send(real[first:end], first)
    victim.read(real)
    assert victim.client.recv(1) == b""
    record = victim.meter.record()
    assert flags(record) == OUTGOING | RequestFlag.RESPONSE_UNTIL_CLOSE
    assert (record["response_bytes"], record["response_body_bytes"]) == (len(real), len(BODY))


@pytest.mark.guest
def test_but_not_a_forged_one(victim: Victim) -> None:
    victim.ask()
    victim.forge(b"", len(UNTIL_CLOSE), flags=ACK | FIN)
    victim.send(UNTIL_CLOSE)
    victim.send(b"more", len(UNTIL_CLOSE))
    victim.read(UNTIL_CLOSE + b"more")
    wait_until(lambda: victim.meter.in_flight() == 0, "it was over")
    assert victim.meter.losses() == {Counter.LOST_UNTAKEN: 1}
    assert victim.meter.counted(Counter.SUBMITTED) == 0


def test_of_many_responses_that_tcp_does_not_take_none_is_told(victim: Victim) -> None:
    """They must leave room for the next request, but those that were taken alone do."""
    many = 16
    for _ in range(many):
        victim.ask()
    spoilt = response(500, HEADERS, BODY)
    for number in range(many):
        victim.forge(spoilt, number * len(spoilt))
    for _ in range(many):
        victim.answer(REAL)
    wait_until(lambda: victim.meter.in_flight() == 0, "all was over")
    assert victim.meter.losses() == {Counter.LOST_UNTAKEN: many}
    assert victim.meter.counted(Counter.SUBMITTED) == 0


@pytest.mark.parametrize("other", [b"0\r\n\r\n", b"ff\r\n", b"0\r\n\r\n" + OK])
def test_nor_do_chunks_behind_a_head_that_was_taken(victim: Victim, other: bytes) -> None:
    head, body = CHUNKY[:CHUNKY_HEAD], CHUNKY[CHUNKY_HEAD:]
    victim.ask()
    victim.answer(head)
    victim.forge(other)
    victim.answer(body)
    victim.expect_nothing()


def test_the_bytes_of_a_body_say_nothing(victim: Victim) -> None:
    head, body = REAL[: -len(BODY)], REAL[-len(BODY) :]
    victim.ask()
    victim.answer(head)
    victim.forge(b"X" * 30)
    victim.answer(body)
    assert victim.expect(REAL, len(BODY), 1) == 0
    victim.expect_next()
