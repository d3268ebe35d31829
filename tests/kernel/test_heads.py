# SPDX-License-Identifier: Apache-2.0
"""Heads: what is kept of them, what must never be, and heads that are hard to read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from lab import Lab, receive
from messages import CHUNKED, OK, chunks, request, response
from meter import WHOLE, Meter, flags

from otelbpf.kernel.records import Counter
from otelbpf.ledger.ids import Ids
from otelbpf.ledger.trace_contexts import contexts_of

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
# bpf/abi/records.h
REQUEST_LINE_MAX, HOST_MAX, USER_AGENT_MAX, TRACEPARENT_MAX = 192, 64, 96, 56
KEPT = {"host": HOST_MAX, "user_agent": USER_AGENT_MAX, "traceparent": TRACEPARENT_MAX}
SECTION = {"request_line": "http1", "host": "http1", "user_agent": "http1", "traceparent": "join"}
SECRET = b"s3cr3t-0123456789"


def ask_and_take(lab: Lab, meter: Meter, asked: bytes, answered: bytes = OK):
    """The record of one request on a connection of its own, on which another one still works."""
    pair = lab.connect()
    pair.exchange(asked, answered)
    record = meter.record()
    pair.exchange(request(target="/next"), OK)
    assert meter.record()["http1"]["request_line"] == b"GET /next HTTP/1.1"
    assert meter.losses() == {}
    assert flags(record) & WHOLE == WHOLE
    assert record["request_bytes"] == len(asked)
    assert record["response_bytes"] == len(answered)
    return record


def test_request_line_host_user_agent_and_traceparent_are_kept(lab: Lab, meter: Meter) -> None:
    headers = {"Host": "shop.example:8080", "User-Agent": "browser/1.0 (x; y)",
               "traceparent": TRACEPARENT}  # fmt: skip
    record = ask_and_take(lab, meter, request("GET", "/cart?id=7&x=%20", headers))
    assert record["http1"]["request_line"] == b"GET /cart?id=7&x=%20 HTTP/1.1"
    assert record["http1"]["host"] == b"shop.example:8080"
    assert record["http1"]["user_agent"] == b"browser/1.0 (x; y)"
    assert record["join"]["traceparent"] == TRACEPARENT.encode()
    for field, section in SECTION.items():
        assert record[section][f"{field}_length"] == len(record[section][field])


def test_what_is_absent_is_empty(lab: Lab, meter: Meter) -> None:
    """Slots are used again: nothing of the request that had it before may be left."""
    full = {"Host": "h" * 60, "User-Agent": "u" * 90, "traceparent": TRACEPARENT}
    pair = lab.connect()
    for target, headers in (("/" + "l" * 150, full), ("/", {})):
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        pair.exchange(f"GET {target} HTTP/1.1\r\n{head}\r\n".encode(), OK)
    first, second = meter.records(2)
    assert bytes(first["http1"]["host"]) == b"h" * 60
    assert second["http1"]["request_line"].tobytes().rstrip(b"\0") == b"GET / HTTP/1.1"
    for field in KEPT:
        assert second[SECTION[field]][f"{field}_length"] == 0
        assert second[SECTION[field]][field].tobytes().strip(b"\0") == b""


@pytest.mark.parametrize("beyond", [-1, 0, 1, 40])
@pytest.mark.parametrize("field", KEPT)
def test_a_long_value_is_cut_and_its_length_kept(
    lab: Lab, meter: Meter, field: str, beyond: int
) -> None:
    value = "".join(chr(33 + number % 90) for number in range(KEPT[field] + beyond))
    asked = f"GET / HTTP/1.1\r\n{field.replace('_', '-')}: {value}\r\nX-After: after\r\n\r\n"
    record = ask_and_take(lab, meter, asked.encode())
    kept = min(len(value), KEPT[field])
    assert record[SECTION[field]][f"{field}_length"] == len(value)
    assert record[SECTION[field]][field].tobytes().rstrip(b"\0") == value.encode()[:kept]


@pytest.mark.parametrize("length", [150, 177, 178, 179, 255, 256, 257, 900, 1010, 1024, 4096])
def test_a_long_request_line_is_cut_and_the_rest_is_right(
    lab: Lab, meter: Meter, length: int
) -> None:
    target = "/" + "t" * (length - 1)
    headers = {"Host": "after.example", "User-Agent": "after/1", "traceparent": TRACEPARENT}
    record = ask_and_take(lab, meter, request("POST", target, headers, b"body"))
    line = f"POST {target} HTTP/1.1".encode()
    assert record["http1"]["request_line"].tobytes().rstrip(b"\0") == line[:REQUEST_LINE_MAX]
    # Of a line of more than 255 bytes it is only known that it is longer than what was kept.
    assert record["http1"]["request_line_length"] == len(line) or (
        len(line) > 255 and record["http1"]["request_line_length"] > REQUEST_LINE_MAX
    )
    assert record["http1"]["host"] == b"after.example"
    assert record["http1"]["user_agent"] == b"after/1"
    assert record["join"]["traceparent"] == TRACEPARENT.encode()
    assert record["request_body_bytes"] == 4
    assert record["http1"]["http_minor"] == 1


@pytest.mark.parametrize("size", [200, 240, 250, 255, 256, 257, 1000, 1024, 2000, 8192, 20_000])
def test_a_huge_cookie_hides_nothing_that_comes_after_it(lab: Lab, meter: Meter, size: int) -> None:
    headers = {"Cookie": "c" * size, "User-Agent": "after/1", "traceparent": TRACEPARENT}
    pair = lab.connect()
    asked = request("POST", headers=headers, body=b"body")
    pair.client.sendall(asked)
    receive(pair.server, len(asked))
    pair.server.sendall(OK)
    receive(pair.client, len(OK))
    record = meter.record()
    assert flags(record) == WHOLE
    assert record["join"]["traceparent"] == TRACEPARENT.encode()
    assert record["http1"]["user_agent"] == b"after/1"
    assert record["request_body_bytes"] == 4
    assert b"c" * 16 not in record.tobytes()


def test_a_head_of_many_short_lines(lab: Lab, meter: Meter) -> None:
    headers = {f"{number}": "" for number in range(300)}
    headers["traceparent"] = TRACEPARENT
    record = ask_and_take(lab, meter, request("POST", headers=headers, body=b"body"))
    assert record["join"]["traceparent"] == TRACEPARENT.encode()
    assert record["request_body_bytes"] == 4


@pytest.mark.parametrize("convert", [str.upper, str.lower, str.title, str.swapcase])
def test_header_names_in_any_case(lab: Lab, meter: Meter, convert) -> None:
    headers = {"Host": "odd.example", "User-Agent": "odd/1", "traceparent": TRACEPARENT,
               "Content-Length": "4"}  # fmt: skip
    lines = "".join(f"{convert(name)}: {value}\r\n" for name, value in headers.items())
    asked = f"POST / HTTP/1.1\r\n{lines}\r\nbody".encode()
    answered = f"HTTP/1.1 200 OK\r\n{convert('Transfer-Encoding')}: CHUNKED\r\n\r\n".encode()
    record = ask_and_take(lab, meter, asked, answered + chunks([b"odd"]))
    assert record["http1"]["host"] == b"odd.example"
    assert record["http1"]["user_agent"] == b"odd/1"
    assert record["join"]["traceparent"] == TRACEPARENT.encode()
    assert record["request_body_bytes"] == 4
    assert record["response_body_bytes"] == 3


@pytest.mark.parametrize("space", ["", " ", "\t", "   ", " \t "])
@pytest.mark.parametrize("after", ["", " ", "\t ", "     "])
def test_white_space_around_values(lab: Lab, meter: Meter, space: str, after: str) -> None:
    head = (
        f"POST / HTTP/1.1\r\nHost:{space}white.example{after}\r\n"
        f"Content-Length:{space}4{after}\r\n\r\n"
    )
    answered = f"HTTP/1.1 200 OK\r\nTransfer-Encoding:{space}chunked{after}\r\n\r\n".encode()
    record = ask_and_take(lab, meter, f"{head}body".encode(), answered + chunks([b"white"]))
    assert record["http1"]["host"].rstrip() == b"white.example"
    assert record["request_body_bytes"] == 4
    assert record["response_body_bytes"] == 5


@pytest.mark.parametrize("digits", [*range(1, 21), 200])
def test_a_length_of_any_number_of_digits(lab: Lab, meter: Meter, digits: int) -> None:
    length = f"{4:0{digits}}"
    asked = f"POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\nbody".encode()
    answered = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nbody".encode()
    pair = lab.connect()
    for _ in range(2):  # the second response has the shape of the first one
        pair.exchange(asked, answered)
        record = meter.record()
        assert record["request_body_bytes"] == 4
        assert record["response_body_bytes"] == 4


@pytest.mark.parametrize("length", [12, 345, 6_789, 12_345, 67_890])
def test_each_digit_of_a_length_counts(lab: Lab, meter: Meter, length: int) -> None:
    pair = lab.connect()
    pair.exchange(request("POST", body=b"1" * length), response(body=b"2" * length))
    record = meter.record()
    assert flags(record) == WHOLE
    assert record["request_body_bytes"] == length
    assert record["response_body_bytes"] == length
    meter.assert_next_is_right(pair, 1)


def test_line_feeds_alone_end_lines(lab: Lab, meter: Meter) -> None:
    asked = b"POST /lf HTTP/1.1\nHost: lf.example\nContent-Length: 4\n\nbody"
    answered = b"HTTP/1.1 200 OK\nContent-Length: 2\n\nlf"
    record = ask_and_take(lab, meter, asked, answered)
    assert record["http1"]["request_line"] == b"POST /lf HTTP/1.1"
    assert record["http1"]["host"] == b"lf.example"
    assert record["request_body_bytes"] == 4


@pytest.mark.parametrize("empty", [b"\r\n", b"\n", b"\r\n\r\n\r\n"])
def test_empty_lines_before_a_request_belong_to_nobody(
    lab: Lab, meter: Meter, empty: bytes
) -> None:
    pair = lab.connect()
    for _ in range(3):
        pair.client.sendall(empty + request())
        receive(pair.server, len(empty + request()))
        pair.server.sendall(OK)
        receive(pair.client, len(OK))
        record = meter.record()
        assert record["http1"]["request_line"] == b"GET / HTTP/1.1"
        assert record["request_bytes"] == len(request())
    pair.send_segment(request("POST", body=b"body") + empty + request(target="/2"))
    pair.send_segment(empty)
    pair.server.sendall(2 * OK)
    receive(pair.client, 2 * len(OK))
    assert [r["http1"]["request_line"] for r in meter.records(2)][1] == b"GET /2 HTTP/1.1"
    assert meter.losses() == {}


@pytest.mark.parametrize("target", ["/", "/" + "t" * 300, "/" + "t" * 900])
def test_http_1_0(lab: Lab, meter: Meter, target: str) -> None:
    asked = request(target=target).replace(b"HTTP/1.1", b"HTTP/1.0")
    assert ask_and_take(lab, meter, asked)["http1"]["http_minor"] == 0


@pytest.mark.parametrize(
    "method",
    [
        "GET",
        "PUT",
        "PATCH",
        "DELETE",
        "OPTIONS",
        "TRACE",
        "PROPFIND",
        "X",
        "M-SEARCH",
        "get",
        "2x",
        "!",
    ],
)
def test_any_method(lab: Lab, meter: Meter, method: str) -> None:
    record = ask_and_take(lab, meter, request(method))
    assert record["http1"]["request_line"] == f"{method} / HTTP/1.1".encode()


def test_nothing_else_of_a_message_is_kept(lab: Lab, meter: Meter) -> None:
    secret = SECRET.decode()
    headers = {"Cookie": f"id={secret}", "Authorization": f"Bearer {secret}", "X-Host": secret,
               "Hosts": secret, "User-Agents": secret, "Traceparents": secret}  # fmt: skip
    asked = request("POST", "/login", headers, b"password=" + SECRET)
    answered = response(headers={"Set-Cookie": f"id={secret}"}, body=SECRET)
    record = ask_and_take(lab, meter, asked, answered)
    assert SECRET not in record.tobytes()
    chunked = request("POST", "/login", {**headers, **CHUNKED}) + chunks([SECRET] * 3)
    record = ask_and_take(lab, meter, chunked, answered)
    assert SECRET not in record.tobytes()


@pytest.mark.parametrize("cut", [30, 60, 100, 150, 200])
def test_nothing_else_is_kept_of_a_head_in_two_segments(lab: Lab, meter: Meter, cut: int) -> None:
    headers = {"Cookie": SECRET.decode() * 8, "Host": "two.example"}
    asked = request("POST", "/two", headers, SECRET)
    pair = lab.connect()
    pair.send_segment(asked[:cut])
    pair.send_segment(asked[cut:])
    pair.server.sendall(OK)
    receive(pair.client, len(OK))
    record = meter.record()
    assert record["http1"]["host"] == b"two.example"
    assert SECRET[:12] not in record.tobytes()


@pytest.mark.parametrize(
    "values",
    [
        *([b" %d.example" % number for number in range(times)] for times in (2, 3, 4)),
        [b"", b" second.example"],
        [b"    ", b" second.example"],
        [b"", b"", b"", b" fourth.example"],
        [b" first.example", b""],
    ],
)
def test_of_several_hosts_none_is_told(lab: Lab, meter: Meter, values: list[bytes]) -> None:
    hosts = b"".join(b"Host:%s\r\nX: y\r\n" % value for value in values)
    asked = b"GET /hosts HTTP/1.1\r\n" + hosts + b"\r\n"
    forms = [[asked], [bytes([octet]) for octet in asked]]
    forms += [[asked[:cut], asked[cut:]] for cut in range(1, len(asked), 7)]
    # In two windows of one segment.
    forms.append([asked.replace(b"X: y\r\n", b"".join([b"X: %s\r\n" % (b"y" * 99)] * 12))])
    for pieces in forms:
        pair = lab.connect()
        for piece in pieces:
            pair.send_segment(piece)
        receive(pair.server, sum(map(len, pieces)))
        pair.answer(OK)
        pair.exchange(request(headers={"Host": "one.example"}), OK)
        pair.close()
    records = meter.records(2 * len(forms))
    assert [line.endswith(b"/hosts HTTP/1.1") for line in records["http1"]["request_line"]] == [
        True, False
    ] * len(forms)  # fmt: skip
    assert records["http1"]["host_length"].tolist() == [0, len("one.example")] * len(forms)


@pytest.mark.parametrize(
    "asked",
    [
        b"GET /\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / FTP/1.1xxx\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 9999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1, 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\n 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1:\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1/3\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 12345678x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x12345678\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 123\xb145678\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    ],
)
def test_a_request_that_cannot_be_read_is_lost_and_counted(
    lab: Lab, meter: Meter, asked: bytes
) -> None:
    pair = lab.connect()
    pair.send_segment(asked)
    meter.wait_for(Counter.LOST_PARSER, 1)
    receive(pair.server, len(asked))
    refusal = response(400, body=b"what?")
    pair.server.sendall(refusal)
    receive(pair.client, len(refusal))
    # That answer and one more exchange pass before it is certain where a request begins.
    pair.exchange(request(target="/untold"), OK)
    pair.exchange(request(target="/next"), OK)
    assert meter.record()["http1"]["request_line"] == b"GET /next HTTP/1.1"
    assert meter.counted(Counter.SEEN) == 2


@pytest.mark.parametrize("cuts", [(), (60,), (120,), (60, 120)], ids=str)
@pytest.mark.parametrize("count", [2, 3])
def test_of_several_traceparents_none_is_believed(
    lab: Lab, meter: Meter, cuts: tuple[int, ...], count: int
) -> None:
    """As W3C's own tests want it: the request starts a trace, be they the same or not."""
    line = b"traceparent: %b\r\n" % TRACEPARENT.encode()
    asked = b"GET / HTTP/1.1\r\nHost: several\r\n" + count * line + b"User-Agent: last/1\r\n\r\n"
    pair = lab.connect()
    for part in (asked[start:end] for start, end in itertools.pairwise((0, *cuts, len(asked)))):
        pair.send_segment(part)
    receive(pair.server, len(asked))
    pair.answer(OK)
    record = meter.record()
    assert record["http1"]["user_agent"] == b"last/1"
    contexts = contexts_of(np.array([record]), Ids())
    assert not contexts.called.any()
    assert not contexts.parent_span_id.any()
