# SPDX-License-Identifier: Apache-2.0
"""Responses whose end is not where their lengths say: interim, bodiless, until close, upgrades."""

from __future__ import annotations

import socket
import time

import pytest
from lab import Lab, receive
from messages import CHUNKED, CONTINUE, OK, request, response
from meter import WHOLE, Meter, flags, stamps

from otelbpf.kernel.records import Counter, RequestFlag, Stamp

EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"


def test_100_continue_is_not_the_response(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    asked = request("POST", headers={"Expect": "100-continue"}, body=b"the body")
    pair.ask(asked[:-8])
    pair.answer(CONTINUE)
    pair.ask(b"the body")
    assert meter.records(0, others_in_flight=1).size == 0
    pair.answer(OK)
    record = meter.record()
    assert record["status"] == 200
    assert flags(record) == WHOLE
    assert record["request_body_bytes"] == 8
    assert record["response_bytes"] == len(OK)
    # The response starts when it starts, after the body was read.
    at = stamps(record)
    assert at[Stamp.READ_LAST] < at[Stamp.WRITE] < at[Stamp.TC_OUT] < at[Stamp.ACKED]
    meter.assert_next_is_right(pair, 1)


@pytest.mark.parametrize("together", [True, False], ids=["one write", "a write each"])
def test_several_interim_responses(lab: Lab, meter: Meter, together: bool) -> None:
    pair = lab.connect()
    pair.ask(request())
    parts = [EARLY_HINTS, b"HTTP/1.1 102 Processing\r\n\r\n", EARLY_HINTS, OK]
    for part in [b"".join(parts)] if together else parts:
        pair.answer(part)
    record = meter.record()
    assert record["status"] == 200
    assert flags(record) == WHOLE
    assert record["response_bytes"] == len(OK)
    meter.assert_next_is_right(pair, 1)


@pytest.mark.parametrize(
    "answered",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        response(headers=CHUNKED),
        response(404, headers={"Content-Type": "text/plain"}),
    ],
    ids=["length", "chunked", "neither"],
)
def test_a_response_to_head_has_no_body(lab: Lab, meter: Meter, answered: bytes) -> None:
    pair = lab.connect()
    pair.ask(request("HEAD"))
    pair.answer(answered)
    record = meter.record()
    assert flags(record) == WHOLE
    assert record["response_body_bytes"] == 0
    assert record["response_bytes"] == len(answered)
    meter.assert_next_is_right(pair, 1)


def test_head_and_get_in_one_segment_are_told_apart(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    asked = [request(method) for method in ("HEAD", "GET", "HEAD", "HEAD", "GET")]
    pair.ask(b"".join(asked))
    with_body, without = response(body=b"12345"), response(body=b"12345")[:-5]
    pair.answer(without + with_body + without + without + with_body)
    assert meter.records(5)["response_body_bytes"].tolist() == [0, 5, 0, 0, 5]


def test_a_head_long_ago_does_not_shorten_a_response(lab: Lab, meter: Meter) -> None:
    """Which requests are HEADs is kept for 64 of them; then the places are used again."""
    pair = lab.connect()
    for number in range(130):
        if number in (0, 65):
            pair.exchange(request("HEAD"), response(body=b"12345")[:-5])
        else:
            pair.exchange(request(), response(body=b"12345"))
    sizes = [0 if number in (0, 65) else 5 for number in range(130)]
    assert meter.records(130)["response_body_bytes"].tolist() == sizes


def test_a_head_that_was_never_answered_does_not_shorten_a_response(lab: Lab, meter: Meter) -> None:
    """It is lost, and two more pass untold; 64 requests later another one has its place."""
    pair = lab.connect()
    pair.exchange(request("HEAD"), b"no HTTP\r\n\r\n")
    for _ in range(72):
        pair.exchange(request(), response(body=b"12345"))
    assert set(meter.records(70)["response_body_bytes"]) == {5}
    assert meter.counted(Counter.LOST_PARSER) == 1


@pytest.mark.parametrize(
    "answered",
    [
        response(204),
        response(204, {"Content-Length": "10"}),
        response(304),
        response(304, {"Content-Length": "10"}),
        response(304, CHUNKED),
        response(200, {"Content-Length": "0"}),
    ],
)
def test_statuses_without_a_body(lab: Lab, meter: Meter, answered: bytes) -> None:
    pair = lab.connect()
    pair.ask(request())
    pair.answer(answered)
    record = meter.record()
    assert record["status"] == int(answered[9:12])
    assert flags(record) == WHOLE
    assert record["response_body_bytes"] == 0
    meter.assert_next_is_right(pair, 1)


@pytest.mark.parametrize("with_fin", [True, False], ids=["close at once", "close later"])
def test_a_response_without_a_length_ends_with_the_connection(
    lab: Lab, meter: Meter, with_fin: bool
) -> None:
    """The FIN is its last byte, which the application writes when it closes the socket."""
    pair = lab.connect()
    pair.ask(b"GET /old HTTP/1.0\r\n\r\n")
    answered = b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\n" + b"until close"
    if with_fin:
        # Corked, the last bytes wait for the FIN and leave with it.
        pair.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        pair.server.sendall(answered)
        closes = time.monotonic_ns()
        pair.server.shutdown(socket.SHUT_WR)
        assert receive(pair.client, len(answered)) == answered
    else:
        pair.answer(answered[:-5])
        pair.answer(answered[-5:])
        assert meter.records(0, others_in_flight=1).size == 0
        closes = time.monotonic_ns()
        pair.server.shutdown(socket.SHUT_WR)
    record = meter.record()
    assert flags(record) == WHOLE | RequestFlag.RESPONSE_UNTIL_CLOSE
    assert record["http1"]["http_minor"] == 0
    assert record["response_bytes"] == len(answered)
    assert record["response_body_bytes"] == len(b"until close")
    at = stamps(record)
    assert at[Stamp.WRITE] < closes < at[Stamp.WRITE_LAST]
    assert at[Stamp.WRITE] < at[Stamp.TC_OUT] < at[Stamp.ACKED]
    if with_fin:
        assert at[Stamp.WRITE_LAST] < at[Stamp.TC_OUT]
    else:
        assert at[Stamp.TC_OUT] < at[Stamp.WRITE_LAST] < at[Stamp.TC_OUT_LAST] < at[Stamp.ACKED]


def test_after_101_nothing_more_is_seen(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.ask(request(headers={"Connection": "Upgrade", "Upgrade": "websocket"}))
    pair.answer(response(101, {"Connection": "Upgrade", "Upgrade": "websocket"}))
    record = meter.record()
    assert record["status"] == 101
    assert flags(record) == WHOLE | RequestFlag.UPGRADED
    meter.wait_for(Counter.CONNECTIONS_NOT_HTTP, 1)
    for opaque in (b"\x81\x05hello", request(), OK, b"GET / HTTP/1.1\r\n\r\n" * 3):
        pair.ask(opaque)
        pair.answer(opaque)
    assert meter.records(0).size == 0
    assert meter.counted(Counter.SEEN) == 1
    assert meter.counted(Counter.SEGMENTS_UNASKED) == 0
    assert meter.counted(Counter.CONNECTIONS_NOT_HTTP) == 1


def test_bytes_that_come_with_the_101_are_not_http(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.ask(request(headers={"Connection": "Upgrade", "Upgrade": "echo"}))
    pair.answer(response(101, {"Upgrade": "echo"}) + b"opaque")
    assert flags(meter.record()) == WHOLE | RequestFlag.UPGRADED
    assert meter.losses() == {}


def test_after_a_tunnel_was_opened_nothing_more_is_seen(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.ask(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
    pair.answer(b"HTTP/1.1 200 Connection established\r\n\r\n")
    record = meter.record()
    assert flags(record) == WHOLE | RequestFlag.UPGRADED
    for opaque in (b"\x16\x03\x01\x02\x00opaque", request(), OK):
        pair.ask(opaque)
        pair.answer(opaque)
    assert meter.records(0).size == 0
    assert meter.counted(Counter.SEEN) == 1
    assert meter.counted(Counter.CONNECTIONS_NOT_HTTP) == 1


def test_a_refused_tunnel_is_an_ordinary_response(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.ask(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
    pair.answer(response(405, body=b"no"))
    record = meter.record()
    assert flags(record) == WHOLE
    assert record["status"] == 405
    meter.assert_next_is_right(pair, 1)


def test_a_response_that_comes_before_the_request_is_whole(lab: Lab, meter: Meter) -> None:
    """The server refuses an upload at its head; the rest, which still comes, belongs to it."""
    pair = lab.connect()
    asked = request("POST", body=b"b" * 10_000)
    pair.ask(asked[:-9000])
    pair.answer(response(413, body=b"too large"))
    pair.ask(asked[-9000:])
    pair.exchange(request(), OK)
    first, second = meter.records(2)
    assert first["status"] == 413
    assert flags(first) == WHOLE
    assert first["request_bytes"] == len(asked)
    assert stamps(first)[Stamp.ACKED] < stamps(first)[Stamp.NIC_LAST]
    assert second["status"] == 200


def test_a_response_with_both_lengths_is_chunked(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.ask(request())
    pair.answer(response(headers={"Content-Length": "3", **CHUNKED}) + b"5\r\nabcde\r\n0\r\n\r\n")
    record = meter.record()
    assert record["response_body_bytes"] == 5
    assert flags(record) == WHOLE | RequestFlag.RESPONSE_CHUNKED
    meter.assert_next_is_right(pair, 1)
