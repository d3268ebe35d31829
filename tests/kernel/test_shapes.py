# SPDX-License-Identifier: Apache-2.0
"""Responses that look like the one before, whose lines are not looked for, and almost so."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from lab import Lab, Pair, receive
from messages import CHUNKED, CONTINUE, OK, chunks, request, response
from meter import WHOLE, Meter, flags

from otelbpf.kernel.records import Counter, RequestFlag

PLAIN = {"Server": "x"}
CHUNKS = WHOLE | RequestFlag.RESPONSE_CHUNKED


@dataclass(frozen=True)
class Answer:
    """A response in the pieces in which it is sent, and what its record must say."""

    pieces: tuple[bytes, ...]
    content: int
    status: int = 200
    method: str = "GET"
    flags: RequestFlag = WHOLE
    interim: int = 0  # bytes of responses before it, which do not count

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces)) - self.interim


def whole(length: int, status: int = 200, headers: dict[str, str] = PLAIN) -> Answer:
    return Answer((response(status, headers, b"b" * length),), length, status)


def without_body(status: int, length: int, method: str = "GET") -> Answer:
    return Answer((response(status, {**PLAIN, "Content-Length": str(length)}),), 0, status, method)


def chunked(*pieces: bytes, headers: dict[str, str] = PLAIN) -> Answer:
    return Answer(
        (response(headers={**headers, **CHUNKED}) + chunks(pieces),),
        sum(map(len, pieces)),
        flags=CHUNKS,
    )


def cut(answer: Answer, *places: int) -> Answer:
    """The same in several segments, cut so many bytes from its end."""
    (data,) = answer.pieces
    ends = [*(len(data) - place for place in places), len(data)]
    starts = [0, *ends]
    pieces = tuple(data[start:end] for start, end in zip(starts, ends, strict=False))
    return replace(answer, pieces=pieces)


def after(interim: bytes, answer: Answer, *, apart: bool = False) -> Answer:
    pieces = (interim, *answer.pieces) if apart else (interim + answer.pieces[0],)
    return replace(answer, pieces=pieces, interim=len(interim))


def lines(text: str, content: int, end: str = "\r\n") -> Answer:
    head = "".join(line + end for line in ["HTTP/1.1 200 Reason", *text.split("|"), ""])
    return Answer((head.encode() + b"b" * content,), content)


(BOTH,) = lines("Content-Length: 15|Transfer-Encoding: chunked", 0).pieces
ALMOST_BOTH = lines("Content-Length: 15|Transfer-Decoding: chunked", 15)
SEQUENCES = {
    "the same": [whole(5)] * 20,
    "lengths of more and fewer digits": [
        whole(n) for n in (9, 10, 11, 99, 100, 9, 0, 0, 1, 1000, 9999, 10_000, 9, 0)
    ],
    "other statuses": [whole(5, status) for status in (200, 404, 500, 200, 999, 204 + 1)],
    "a header added and removed": [
        whole(5),
        whole(5, headers={**PLAIN, "X-New": "1"}),
        whole(5),
        whole(5, headers={}),
        whole(5, headers={"Server": "y"}),
    ],
    "the length moved within a head of one size": [
        lines("Server: x|Content-Length: 12|Date: today", 12),
        lines("Server: x|Date: today|Content-Length: 12", 12),
        lines("Content-Length: 12|Server: x|Date: today", 12),
        lines("Date: today|Content-Length: 12|Server: x", 12),
    ],
    "other headers where the length was": [
        lines("Content-Length: 12|X: y", 12),
        lines("Content-Lengths:12|Content-Length: 3", 3),
        lines("Content-Length: 12|X: y", 12),
        lines("XContent-Length:12|Content-Length: 3", 3),
        lines("Content-Length: 12|X: y", 12),
        lines("Content_Length: 12|Content-Length: 3", 3),
        lines("X-*Content-Length:12|Content-Length: 3", 3),
    ],
    # With the part of the body that comes with them, all of these add up as the first one did.
    "a longer head and less of the body": [
        lines("Content-Length: 12", 12),
        cut(lines("Content-Length: 12|X:y", 12), 5),
    ],
    "a longer length and less of the body": [
        lines("Content-Length: 12|Server: xy", 12),
        cut(lines("Content-Length: 123|Server: x", 123), 111),
    ],
    "another length's line and less of the body": [
        lines("A: b|Content-Length:12|X-Content-Size: 99", 12),
        cut(lines("A:b|XContent-Length:12|Content-Length: 99", 99), 87),
        lines("A: b|Content-Length:12|X-Content-Size: 99", 12),
        cut(lines("A: b|Content_Length:12|Content-Length: 99", 99), 87),
        lines("A: b|Content-Length:12|X-Content-Size: 99", 12),
        cut(lines("A: b|Content-Length_12|Content-Length: 99", 99), 87),
        lines("A: b|Content-Length:12|X-Content-Size: 99", 12),
        cut(lines("A: b|Xontent-Length:12|Content-Length: 99", 99), 87),
    ],
    "spaces around the length": [
        lines("Content-Length:" + value, 12)
        for value in (" 12", "12 ", "\t12", " 12", "12", "  12", " 12 ", "12  ", "012", "0012")
    ],
    "lengths in other words": [
        lines("Content-Length: " + value, 12)
        for value in ("12", "12, 12", "12", 20 * "0" + "12", "12", "12\r\n ", "12", "\r\n 12", "12")
    ],
    "names in other marks": [
        lines("Content-Length: 12|X: y", 12),
        lines("Content\rLength: 12|Content-Length: 3", 3),
        lines("Content-Length: 12|X: y", 12),
        lines("Content-Length\x1a 12|Content-Length: 3", 3),
    ],
    "names in another case": [
        lines("Content-Length: 12", 12),
        lines("content-length: 12", 12),
        lines("CONTENT-LENGTH: 12", 12),
    ],
    "line feeds alone": [
        lines("Server: x|Content-Length: 12", 12),
        lines("Server: x|Content-Length: 12", 12, "\n"),
        lines("Server: x|Content-Length: 12", 12, "\n"),
        lines("Server: x|Content-Length: 12", 12),
    ],
    "bodies in segments of their own": [
        whole(5),
        cut(whole(5), 5),
        cut(whole(5), 4),
        whole(5),
        cut(whole(5), 6),
        cut(whole(5), 5, 2),
        cut(whole(5), 40, 5),
        cut(whole(5), 12),
        whole(5),
    ],
    "HEAD": [
        whole(5),
        without_body(200, 5, "HEAD"),
        without_body(200, 0, "HEAD"),
        whole(5),
        whole(0),
        without_body(200, 0, "HEAD"),
        whole(0),
    ],
    "statuses without a body": [
        whole(5),
        without_body(304, 5),
        without_body(204, 5),
        whole(5),
        whole(0),
        without_body(304, 0),
        without_body(204, 0),
        whole(5),
    ],
    "interim responses": [
        whole(5),
        after(CONTINUE, whole(5)),
        after(CONTINUE, whole(5), apart=True),
        after(3 * CONTINUE, whole(5)),
        after(response(103, {**PLAIN, "Content-Length": "0"}), whole(0), apart=True),
        after(response(103, {**PLAIN, "Content-Length": "0"}), whole(0)),
        whole(5),
    ],
    "chunks": [
        whole(5),
        chunked(b"12345"),
        whole(5),
        chunked(b"12345", headers={}),
        chunked(b"12345", b"b" * 300),
        whole(5),
    ],
    "a length beside chunks": [
        ALMOST_BOTH,
        Answer((BOTH + chunks([b"abc"]),), 3, flags=CHUNKS),
        ALMOST_BOTH,
        cut(Answer((BOTH + chunks([b"12345"]),), 5, flags=CHUNKS), 15),
        cut(Answer((BOTH + chunks([b"12345"]),), 5, flags=CHUNKS), 7),
        ALMOST_BOTH,
    ],
    "other lines where those of no framing were": [
        ALMOST_BOTH,
        Answer((BOTH + chunks([b"12345"]),), 5, flags=CHUNKS),
        ALMOST_BOTH,
        lines("Content-Length: 12|Content-Langth: 12", 12),
        lines("Content-Length: 12|Content-Length: 12", 12),
        lines("Content-Length: 12|Content-Langth: 21", 12),
    ],
    "the shortest head": [Answer((b"HTTP/1.1 200\nContent-Length:1\n\nb",), 1)] * 3
    + [Answer((b"HTTP/1.1 201\nContent-Length:1\n\nb",), 1, 201)] * 3,
    "two heads that take turns": [whole(5), whole(5, 404), whole(15), whole(15, 404)] * 4,
    "a head of each length that is kept, and more": [
        whole(5, headers={"X": "x" * length}) for length in [*range(435, 475)] * 2
    ],
    "large": [whole(5), whole(100_000), whole(100_000), whole(5), whole(999_999), whole(5)],
    "a head of more than a window": [
        whole(5, headers={"X": "x" * length}) for length in (900, 990, 1000, 1100, 1100, 3000, 900)
    ],
}


def answer_all(pair: Pair, answers: list[Answer]) -> None:
    for answer in answers:
        pair.ask(request(answer.method))
        for piece in answer.pieces:
            pair.answer(piece)


@pytest.mark.parametrize("answers", SEQUENCES.values(), ids=SEQUENCES)
def test_each_response_is_read_as_what_it_is(lab: Lab, meter: Meter, answers: list[Answer]) -> None:
    pair = lab.connect()
    answer_all(pair, answers)
    records = meter.records(len(answers))
    assert records["status"].tolist() == [answer.status for answer in answers]
    assert records["response_body_bytes"].tolist() == [answer.content for answer in answers]
    assert records["response_bytes"].tolist() == [answer.size for answer in answers]
    assert list(map(flags, records)) == [answer.flags for answer in answers]
    meter.assert_next_is_right(pair, len(answers))


@pytest.mark.parametrize("before", [0, 1, 5])
def test_responses_of_one_shape_in_one_write(lab: Lab, meter: Meter, before: int) -> None:
    pair = lab.connect()
    answer_all(pair, [whole(5)] * before)
    pair.ask(request() * 8)
    pair.answer(whole(5).pieces[0] * 8)
    records = meter.records(before + 8)
    assert set(records["response_body_bytes"].tolist()) == {5}
    assert set(records["response_bytes"].tolist()) == {whole(5).size}
    meter.assert_next_is_right(pair, before + 8)


def test_two_answers_with_their_lines_where_those_of_one_were(lab: Lab, meter: Meter) -> None:
    small = lines("Server: s|Content-Length: 2", 2)
    one = lines("Server: s|Content-Length: 2|Cookie: ", 2)
    padding = 2 * small.size - one.size
    one = lines("Server: s|Content-Length: 2|Cookie: " + padding * "c", 2)
    pair = lab.connect()
    answer_all(pair, [one])
    pair.ask(request() * 2)
    pair.answer(small.pieces[0] * 2)
    answer_all(pair, [whole(5, 404)])
    records = meter.records(4)
    assert records["response_bytes"].tolist() == [one.size, small.size, small.size, whole(5).size]
    assert records["status"].tolist() == [200, 200, 200, 404]
    meter.assert_next_is_right(pair, 4)


def test_content_that_looks_like_the_rest_of_a_head(lab: Lab, meter: Meter) -> None:
    """Where a head ended, and its length lay, there is now content that says the same."""
    shape = lines("Server: a server|Content-Length: 12", 12)
    (sent,) = shape.pieces
    start = lines("Content-Length: 99", 0).pieces[0]
    decoy = start + sent[len(start) :] + b"b" * (99 - len(sent) + len(start))
    pair = lab.connect()
    answer_all(pair, [shape, Answer((decoy,), 99), shape])
    assert meter.records(3)["response_body_bytes"].tolist() == [12, 99, 12]
    meter.assert_next_is_right(pair, 3)


def test_content_that_looks_like_the_lines_of_a_head(lab: Lab, meter: Meter) -> None:
    """As the one above, and what is there of a length fits what follows it."""
    shape = lines("Server: a server of great length|Content-Length: 12", 12)
    (sent,) = shape.pieces
    start = lines("Content-Length: 46", 0).pieces[0]
    decoy = start + sent[len(start) :]
    assert decoy.endswith(b"\r\nContent-Length: 12\r\n\r\n" + b"b" * 12)
    assert len(decoy) == len(start) + 46
    pair = lab.connect()
    answer_all(pair, [shape, Answer((decoy,), 46), shape])
    assert meter.records(3)["response_body_bytes"].tolist() == [12, 46, 12]
    meter.assert_next_is_right(pair, 3)


def test_another_length_where_a_line_was_that_says_none(lab: Lab, meter: Meter) -> None:
    """Of two lengths nobody knows which one holds."""
    pair = lab.connect()
    answer_all(
        pair,
        [
            lines("Content-Length: 12|Content-Langth: 21", 12),
            lines("Content-Length: 12|Content-Length: 21", 12),
        ],
    )
    meter.wait_for(Counter.LOST_PARSER, 1)
    assert meter.record()["response_body_bytes"] == 12


@pytest.mark.parametrize(
    "value", ["ab", "-1", "1x", "  ", "1 2", "1, 2", "12,", "1\r\n 2", "12\r\n 3"]
)
def test_a_length_that_is_no_number_any_more_loses_the_response(
    lab: Lab, meter: Meter, value: str
) -> None:
    pair = lab.connect()
    answer_all(pair, [lines("Content-Length:12", 12), lines(f"Content-Length:{value}", 12)])
    meter.wait_for(Counter.LOST_PARSER, 1)
    assert meter.record()["response_body_bytes"] == 12
    for _ in range(2):
        pair.exchange(request(target="/untold"), OK)
    pair.exchange(request(target="/next"), OK)
    assert meter.record()["http1"]["request_line"] == b"GET /next HTTP/1.1"


@pytest.mark.parametrize(
    ("method", "status"), [("GET", 101), ("CONNECT", 200)], ids=["upgrade", "tunnel"]
)
def test_an_upgrade_in_the_shape_of_a_response(
    lab: Lab, meter: Meter, method: str, status: int
) -> None:
    pair = lab.connect()
    answer_all(pair, [whole(5)])
    pair.ask(request(method))
    pair.answer(whole(5, status).pieces[0])
    last = meter.records(2)[1]
    assert flags(last) == WHOLE | RequestFlag.UPGRADED
    assert last["status"] == status
    pair.exchange(request(), OK)
    assert meter.records(0).size == 0


def test_a_response_until_close_after_others(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    answer_all(pair, [whole(5)] * 3)
    pair.ask(request())
    pair.answer(response(headers={**PLAIN, "Content-Size": "5"}) + b"until")
    pair.server.shutdown(1)
    last = meter.records(4)[3]
    assert flags(last) == WHOLE | RequestFlag.RESPONSE_UNTIL_CLOSE
    assert last["response_body_bytes"] == 5
    assert receive(pair.client, 0) == b""
