# SPDX-License-Identifier: Apache-2.0
"""Connections that end before their requests do: each request is accounted for, once."""

from __future__ import annotations

import socket

import pytest
from lab import SERVER_IPV4, SERVER_IPV6, Lab, reset
from messages import CHUNKED, OK, chunk, request, response
from meter import UNKNOWN, Meter, flags, stamps
from support.waiting import wait_until

from otelbpf.kernel.records import Counter, RequestFlag, Stamp

RECEIVED = RequestFlag.REQUEST_RECEIVED
ANSWERED = RequestFlag.REQUEST_ANSWERED
ENDINGS = (
    RequestFlag.PEER_RESET | RequestFlag.PEER_CLOSED
    | RequestFlag.LOCAL_RESET | RequestFlag.LOCAL_CLOSED
)  # fmt: skip
PARTIAL = response(headers={"Content-Length": "1000"}) + b"the first part"


def wait_for_end(sock: socket.socket) -> None:
    """Until this side knows that the other one is gone."""

    def is_over() -> bool:
        try:
            return sock.recv(1 << 16, socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    wait_until(is_over, "the connection ended")


@pytest.mark.parametrize("host", [SERVER_IPV4, SERVER_IPV6])
def test_the_client_resets_in_the_middle_of_the_response(lab: Lab, meter: Meter, host: str) -> None:
    pair = lab.connect(host)
    pair.ask(request())
    pair.answer(PARTIAL)
    reset(pair.client)
    record = meter.record()
    assert flags(record) == RECEIVED | RequestFlag.PEER_RESET
    assert record["status"] == 200
    assert record["response_bytes"] == len(PARTIAL)
    assert record["response_body_bytes"] == len(b"the first part")
    assert Stamp.TC_OUT in stamps(record)
    assert Stamp.ACKED not in stamps(record)
    assert Stamp.TC_OUT_LAST not in stamps(record)
    assert meter.counted(Counter.CONNECTIONS_CLOSED) == 1


@pytest.mark.parametrize("host", [SERVER_IPV4, SERVER_IPV6])
def test_the_client_closes_in_the_middle_of_its_body(lab: Lab, meter: Meter, host: str) -> None:
    pair = lab.connect(host)
    asked = request("POST", "/upload", {"Content-Length": "1000"}) + b"a part"
    pair.ask(asked)
    pair.client.close()
    wait_for_end(pair.server)
    assert meter.records(0, others_in_flight=1).size == 0
    pair.server.close()
    record = meter.record()
    assert flags(record) & ~RequestFlag.LOCAL_CLOSED == RequestFlag.PEER_CLOSED
    assert record["http1"]["request_line"] == b"POST /upload HTTP/1.1"
    assert record["request_bytes"] == len(asked)
    assert record["request_body_bytes"] == len(b"a part")
    assert record["status"] == 0
    assert Stamp.READ in stamps(record)
    assert Stamp.WRITE not in stamps(record)


def test_the_client_closes_its_half_and_is_still_answered(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.ask(request())
    pair.client.shutdown(socket.SHUT_WR)
    wait_for_end(pair.server)
    pair.answer(OK)
    assert flags(meter.record()) & ~ENDINGS == RECEIVED | ANSWERED


@pytest.mark.parametrize(
    "partial",
    [PARTIAL, response(headers=CHUNKED) + chunk(b"all but the last")],
    ids=["length", "chunked"],
)
def test_the_server_closes_in_the_middle_of_its_response(
    lab: Lab, meter: Meter, partial: bytes
) -> None:
    pair = lab.connect()
    pair.ask(request())
    pair.answer(partial)
    pair.server.close()
    wait_for_end(pair.client)
    pair.client.close()
    record = meter.record()
    assert flags(record) & ~RequestFlag.RESPONSE_CHUNKED & ~RequestFlag.PEER_CLOSED == (
        RECEIVED | RequestFlag.LOCAL_CLOSED
    )
    assert record["status"] == 200
    assert record["response_bytes"] == len(partial)


@pytest.mark.parametrize("cut", [0, 1, 5, 15, 16, 18, 19, 21, 25])
def test_content_is_what_came_and_not_what_was_announced(lab: Lab, meter: Meter, cut: int) -> None:
    """Of a chunked body that ends too early, in both directions."""
    body = chunk(b"0123456789") + chunk(b"abcdefghij")
    pair = lab.connect()
    pair.ask(request("POST", headers=CHUNKED) + body[:cut])
    pair.answer(response(headers=CHUNKED) + body[:cut])
    reset(pair.client)
    record = meter.record()
    assert (body[3:13], body[18:28]) == (b"0123456789", b"abcdefghij")
    came = max(0, min(cut, 13) - 3) + max(0, min(cut, 28) - 18)
    assert record["request_body_bytes"] == came
    assert record["response_body_bytes"] == came


def test_the_server_closes_with_a_request_unread(lab: Lab, meter: Meter) -> None:
    """The kernel then sends a RST, and nobody ever read the request."""
    pair = lab.connect()
    pair.send_segment(request(target="/unread"))
    pair.server.close()
    wait_for_end(pair.client)
    record = meter.record()
    assert record["http1"]["request_line"] == b"GET /unread HTTP/1.1"
    assert record["pid"] == 0
    assert Stamp.QUEUED in stamps(record)
    assert Stamp.READ not in stamps(record)
    assert flags(record) == RECEIVED | RequestFlag.LOCAL_RESET


def test_the_server_resets_in_the_middle_of_its_response(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.ask(request())
    pair.answer(PARTIAL)
    reset(pair.server)
    wait_for_end(pair.client)
    assert flags(meter.record()) == RECEIVED | RequestFlag.LOCAL_RESET


def test_the_server_closes_without_an_answer(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.ask(request())
    pair.server.close()
    wait_for_end(pair.client)
    pair.client.close()
    record = meter.record()
    assert flags(record) & ~RequestFlag.PEER_CLOSED == RECEIVED | RequestFlag.LOCAL_CLOSED
    assert record["status"] == 0


def test_several_in_flight_when_the_connection_ends(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    asked = [request(target=f"/{number}") for number in range(5)]
    pair.ask(b"".join(asked))
    pair.answer(2 * OK + PARTIAL)
    reset(pair.client)
    records = meter.records(5)
    assert records["ordinal"].tolist() == list(range(5))
    assert records["status"].tolist() == [200, 200, 200, 0, 0]
    answered = [bool(RequestFlag(f) & ANSWERED) for f in records["flags"].tolist()]
    assert answered == [True, True, False, False, False]


def test_an_answered_request_whose_acknowledgement_never_comes(lab: Lab, meter: Meter) -> None:
    """Reset by the client with the response unread: the RST itself acknowledges it."""
    pair = lab.connect()
    pair.ask(request())
    pair.server.sendall(OK)
    wait_until(lambda: pair.client.recv(1, socket.MSG_PEEK), "the response arrived")
    reset(pair.client)
    assert flags(meter.record()) & (RECEIVED | ANSWERED) == RECEIVED | ANSWERED


@pytest.mark.parametrize("part", [request()[:1], request()[:10], request()[:-2], request()[:-1]])
@pytest.mark.parametrize("ending", [socket.socket.close, reset])
def test_a_head_cut_off_is_counted_as_lost(lab: Lab, meter: Meter, part: bytes, ending) -> None:
    pair = lab.connect()
    pair.send_segment(part)
    ending(pair.client)
    lab.close_connections()
    meter.wait_for(Counter.LOST_CLOSED, 1)
    assert meter.records(0).size == 0


@pytest.mark.parametrize("part", [request()[:10], request()[:-2]])
def test_a_head_cut_off_that_is_answered_is_no_request(lab: Lab, meter: Meter, part: bytes) -> None:
    """Behind the answer comes what is none: the framing is lost."""
    pair = lab.connect()
    pair.send_segment(part)
    pair.answer(response(400, body=b"what?") + b"x")
    meter.wait_for(Counter.LOST_PARSER, 1)
    assert meter.records(0).size == 0


def test_a_response_that_nobody_asked_for(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.answer(response(408, body=b"too slow"))
    meter.wait_for(Counter.SEGMENTS_UNASKED, 1)
    assert meter.counted(Counter.SEEN) == 0
    # Should the client ask after all, it is served as ever; whose answer that was is not certain.
    for _ in range(UNKNOWN):
        pair.exchange(request(target="/unknown"), OK)
    pair.exchange(request(target="/late"), OK)
    assert meter.record()["http1"]["request_line"] == b"GET /late HTTP/1.1"


def test_a_port_used_again_is_a_new_connection(lab: Lab, meter: Meter) -> None:
    """Nothing of the earlier connection between the same two ports shows."""
    pair = lab.connect()
    port = pair.peer_port
    pair.ask(request(target="/first"))
    pair.answer(PARTIAL)
    reset(pair.client)
    first = meter.record()
    lab.close_connections()
    again = lab.connect(from_port=port)
    again.exchange(request(target="/second"), OK)
    second = meter.record()
    assert second["peer_port"] == first["peer_port"]
    assert second["connection_id"] != first["connection_id"]
    assert second["ordinal"] == 0
    assert flags(second) == RECEIVED | ANSWERED


# What does not speak HTTP/1: the bytes of each side, in turn.
CLIENT_HELLO = bytes.fromhex("16030100f8010000f40303") + bytes(range(32, 64)) * 6
NOT_HTTP = {
    "TLS": [CLIENT_HELLO, b"\x16\x03\x03\x00\x7a" + bytes(122), b"\x14\x03\x03\x00\x01\x01"],
    "HTTP/2": [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(27), bytes(27), bytes(40), bytes(9)],
    "one message": [b"\x00\x01\x02\x03"],
    "lower case": [b"get / http/1.1\r\n\r\n", b"what?\n"],
}


@pytest.mark.parametrize("turns", NOT_HTTP.values(), ids=NOT_HTTP.keys())
def test_what_is_not_http_is_counted_once_and_not_seen(
    lab: Lab, meter: Meter, turns: list[bytes]
) -> None:
    pair = lab.connect()
    for number, turn in enumerate(turns):
        (pair.answer if number % 2 else pair.ask)(turn)
    meter.wait_for(Counter.CONNECTIONS_NOT_HTTP, 1)
    lab.close_connections()
    meter.wait_for(Counter.CONNECTIONS_CLOSED, 1)
    assert meter.counted(Counter.SEEN) == 0
    assert meter.counted(Counter.CONNECTIONS_NOT_HTTP) == 1
    assert meter.counted(Counter.SEGMENTS_UNASKED) == 0


def test_a_server_that_speaks_first_is_not_seen(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.answer(b"220 mail.example ESMTP\r\n")
    pair.ask(b"EHLO client.example\r\n")
    pair.answer(b"250 mail.example\r\n")
    assert meter.counted(Counter.SEEN) == 0
    assert meter.counted(Counter.SEGMENTS_UNASKED) == 1
    assert meter.counted(Counter.CONNECTIONS_NOT_HTTP) == 1
