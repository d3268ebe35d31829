# SPDX-License-Identifier: Apache-2.0
"""Requests that a client sends: from its write to its read of the response's last byte."""

from __future__ import annotations

import os
import socket

import numpy as np
import pytest
from lab import (
    CLIENT_IPV4,
    CLIENT_IPV6,
    PORT,
    SERVER_IPV4,
    SERVER_IPV6,
    SPARE_PORT,
    Pair,
    Worker,
    prepare,
    receive,
    reset,
    unread_bytes,
)
from messages import CHUNKED, CONTINUE, OK, chunk, chunks, request, response
from meter import FREE_PORT, GATEWAY_PORT, OUTGOING, Meter, address, flags, stages, stamps
from support.waiting import wait_until

from otelbpf.kernel.records import Counter, RequestFlag, Stamp

REQUEST = request(target="/warm")
# Of a request and a response of one segment each, both sides waiting for the other.
ALL_OF_A_SMALL_REQUEST = [
    Stamp.WRITE, Stamp.TC_OUT, Stamp.NIC, Stamp.TC, Stamp.TCP, Stamp.QUEUED, Stamp.WOKEN,
    Stamp.RUNNING, Stamp.READ,
]  # fmt: skip
#: Present in every request that went as it should, and in this order.
ALWAYS = [s for s in ALL_OF_A_SMALL_REQUEST if s not in (Stamp.WOKEN, Stamp.RUNNING)]
EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
ENDINGS = (
    RequestFlag.PEER_RESET | RequestFlag.PEER_CLOSED
    | RequestFlag.LOCAL_RESET | RequestFlag.LOCAL_CLOSED
)  # fmt: skip


def in_order(record: np.void) -> list[Stamp]:
    """The stamps that are present, by time."""
    at = stamps(record)
    return sorted(
        at,
        key=lambda stamp: (
            at[stamp],
            ALL_OF_A_SMALL_REQUEST.index(stamp) if stamp in ALL_OF_A_SMALL_REQUEST else 99,
        ),
    )


def assert_whole(record: np.void, asked: bytes = REQUEST, answered: bytes = OK) -> None:
    """It went as it should, and these bytes were all."""
    more = RequestFlag.REQUEST_CHUNKED | RequestFlag.RESPONSE_CHUNKED
    assert flags(record) & ~more == OUTGOING, flags(record)
    assert record["request_bytes"] == len(asked)
    assert record["response_bytes"] == len(answered)
    assert [stamp for stamp in in_order(record) if stamp in ALWAYS] == ALWAYS
    assert Stamp.ACKED not in stamps(record)
    total = stamps(record)
    assert sum(stages(record).values()) == max(total.values()) - min(total.values())


def assert_next_is_right(gateway: Meter, pair: Pair, ordinal: int) -> None:
    """What came before ended where it ended."""
    pair.exchange(REQUEST, OK)
    record = gateway.record()
    assert record["ordinal"] == ordinal
    assert_whole(record)
    assert gateway.losses() == {}


@pytest.mark.guest
@pytest.mark.parametrize(
    ("server", "client"), [(SERVER_IPV4, CLIENT_IPV4), (SERVER_IPV6, CLIENT_IPV6)]
)
def test_23_requests_are_23_records_with_every_stamp(
    gateway: Meter, server: str, client: str
) -> None:
    pair = gateway.lab.connect(server)

    def ask() -> None:
        for _ in range(23):
            pair.client.sendall(REQUEST)
            assert receive(pair.client, len(OK)) == OK

    with Worker(ask) as worker:
        for _ in range(23):
            assert receive(pair.server, len(REQUEST)) == REQUEST
            worker.wait_until_blocked_in("recv")
            pair.server.sendall(OK)
    records = gateway.records(23)
    assert records["ordinal"].tolist() == list(range(23))
    for record in records:
        assert in_order(record) == ALL_OF_A_SMALL_REQUEST
        assert_whole(record)
    assert set(records["pid"].tolist()) == {os.getpid()}
    assert set(records["tid"].tolist()) == {worker.tid}
    assert set(records["status"].tolist()) == {200}
    assert set(records["http1"]["request_line"].tolist()) == {b"GET /warm HTTP/1.1"}
    assert set(records["peer_port"].tolist()) == {PORT}
    assert set(records["local_port"].tolist()) == {pair.peer_port}
    assert {bytes(a) for a in records["peer_address"]} == {address(server)}
    assert {bytes(a) for a in records["local_address"]} == {address(client)}
    assert set(records["join"]["cause_connection_id"].tolist()) == {0}
    assert gateway.counted(Counter.CAUSES_AMBIGUOUS) == 0


def test_the_wait_for_the_upstream_is_in_one_stage(gateway: Meter) -> None:
    pair = gateway.lab.connect()
    pair.ask(REQUEST)
    wait_until(lambda: not unread_bytes(pair.server), "the request was read")
    with Worker(lambda: receive(pair.client, len(OK))) as worker:
        worker.wait_until_blocked_in("recv")
        pair.server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            pair.server.recv(1)
        pair.server.sendall(OK)
    lengths = stages(gateway.record())
    assert lengths.pop((Stamp.TC_OUT, Stamp.NIC)) >= 200_000_000
    assert max(lengths.values()) < 50_000_000


@pytest.mark.parametrize("together", [True, False])
def test_a_client_that_pipelines(gateway: Meter, together: bool) -> None:
    pair = gateway.lab.connect()
    asked = [request(target=f"/{number}") for number in range(5)]
    for part in [b"".join(asked)] if together else asked:
        pair.client.sendall(part)
    receive(pair.server, sum(map(len, asked)))
    pair.server.sendall(OK * 3)
    assert receive(pair.client, 3 * len(OK)) == OK * 3
    assert gateway.records(3, others_in_flight=2)["ordinal"].tolist() == [0, 1, 2]
    for number in (3, 4):
        pair.answer(OK)
        record = gateway.record(others_in_flight=4 - number)
        assert record["http1"]["request_line"] == f"GET /{number} HTTP/1.1".encode()
        assert_whole(record, asked[number])
    assert_next_is_right(gateway, pair, 5)


def test_beyond_16_in_flight_requests_are_counted_as_lost(gateway: Meter) -> None:
    pair = gateway.lab.connect()
    pair.ask(REQUEST * 20)
    pair.answer(OK * 20)
    assert gateway.records(16)["ordinal"].tolist() == list(range(16))
    assert gateway.losses() == {Counter.LOST_PIPELINE_FULL: 4}
    assert gateway.counted(Counter.SEEN) == 20


LARGE = bytes(300_000)
BODIES = {
    "length both ways": (request("POST", body=LARGE), response(body=LARGE), 300_000),
    "chunked both ways": (
        request("POST", headers=CHUNKED) + chunks([bytes(10_000)] * 30),
        response(headers=CHUNKED) + chunks([bytes(10_000)] * 30),
        300_000,
    ),
    "small chunks": (
        request("POST", headers=CHUNKED) + chunks([b"0123456789"] * 500, b"Sum: 1\r\n"),
        response(headers=CHUNKED) + chunks([b"0123456789"] * 500, b"Sum: 1\r\n"),
        5_000,
    ),
    "one segment": (request("PUT", body=b"7 bytes"), response(body=b"7 bytes"), 7),
}


@pytest.mark.parametrize(("asked", "answered", "body"), BODIES.values(), ids=BODIES)
def test_bodies(gateway: Meter, asked: bytes, answered: bytes, body: int) -> None:
    pair = gateway.lab.connect()
    for ordinal in range(3):
        with Worker(lambda: receive(pair.server, len(asked))):
            pair.client.sendall(asked)
        with Worker(lambda: pair.server.sendall(answered)):
            assert receive(pair.client, len(answered)) == answered
        record = gateway.record()
        assert record["ordinal"] == ordinal
        assert_whole(record, asked, answered)
        assert record["request_body_bytes"] == record["response_body_bytes"] == body
        at = stamps(record)
        if body == len(LARGE):
            for first, last in (
                (Stamp.TC_OUT, Stamp.TC_OUT_LAST),
                (Stamp.NIC, Stamp.NIC_LAST),
                (Stamp.READ, Stamp.READ_LAST),
            ):
                assert at[first] < at[last]
            assert at[Stamp.TC_OUT_LAST] < at[Stamp.NIC]
            assert max(at.values()) == at[Stamp.READ_LAST]
    assert_next_is_right(gateway, pair, 3)


def test_bytes_one_by_one(gateway: Meter) -> None:
    """Each a segment of its own, and read as it comes."""
    pair = gateway.lab.connect()
    for byte in REQUEST:
        pair.ask(bytes([byte]))
    for byte in OK:
        pair.answer(bytes([byte]))
    record = gateway.record()
    assert_whole(record)
    assert max(stamps(record).values()) == stamps(record)[Stamp.READ_LAST]
    assert_next_is_right(gateway, pair, 1)


@pytest.mark.parametrize(
    ("method", "answered"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        ("HEAD", response(headers=CHUNKED)),
        ("GET", response(204)),
        ("GET", response(304, {"Content-Length": "1000"})),
    ],
)
def test_responses_without_a_body(gateway: Meter, method: str, answered: bytes) -> None:
    pair = gateway.lab.connect()
    asked = request(method)
    pair.exchange(asked, answered)
    record = gateway.record()
    assert_whole(record, asked, answered)
    assert record["response_body_bytes"] == 0
    assert_next_is_right(gateway, pair, 1)


def test_100_continue_is_not_the_response(gateway: Meter) -> None:
    pair = gateway.lab.connect()
    asked = request("POST", headers={"Expect": "100-continue"}, body=b"the body")
    pair.ask(asked[:-8])
    pair.answer(CONTINUE)
    pair.ask(b"the body")
    assert gateway.records(0, others_in_flight=1).size == 0
    pair.answer(OK)
    record = gateway.record()
    assert_whole(record, asked)
    assert record["status"] == 200
    # The response comes after the body has left, and is read once.
    at = stamps(record)
    assert at[Stamp.TC_OUT] < at[Stamp.TC_OUT_LAST] < at[Stamp.NIC]
    assert Stamp.READ_LAST not in at
    assert_next_is_right(gateway, pair, 1)


@pytest.mark.parametrize("cut", [None, 1, 9, 30])
def test_several_interim_responses(gateway: Meter, cut: int | None) -> None:
    """In one write, or in several of which each is read when it comes."""
    pair = gateway.lab.connect()
    pair.ask(REQUEST)
    parts = [EARLY_HINTS, b"HTTP/1.1 102 Processing\r\n\r\n" + EARLY_HINTS, OK]
    if cut is None:
        pair.answer(b"".join(parts))
    else:
        for part in parts:
            pair.answer(part[:cut])
            pair.answer(part[cut:])
    record = gateway.record()
    assert_whole(record)
    assert record["status"] == 200
    if cut is None:
        assert Stamp.READ_LAST not in stamps(record)
    else:
        at = stamps(record)
        # Both of them of the last write but one, and of the last.
        assert at[Stamp.NIC] < at[Stamp.READ] < at[Stamp.NIC_LAST] < at[Stamp.READ_LAST]
    assert_next_is_right(gateway, pair, 1)


def test_an_early_answer_waits_for_the_rest_of_the_request(gateway: Meter) -> None:
    pair = gateway.lab.connect()
    asked = request("POST", body=b"the body")
    pair.ask(asked[:-4])
    pair.answer(OK)
    assert gateway.records(0, others_in_flight=1).size == 0
    pair.ask(asked[-4:])
    record = gateway.record()
    assert flags(record) == OUTGOING
    assert record["request_bytes"] == len(asked)
    at = stamps(record)
    assert at[Stamp.READ] < at[Stamp.WRITE_LAST] < at[Stamp.TC_OUT_LAST]
    assert_next_is_right(gateway, pair, 1)


@pytest.mark.parametrize("read_before_the_end", [True, False])
def test_a_response_that_the_end_of_the_connection_ends(
    gateway: Meter, read_before_the_end: bool
) -> None:
    pair = gateway.lab.connect()
    answered = response() + b"until the end"
    pair.ask(REQUEST)
    pair.server.sendall(answered)
    if read_before_the_end:
        assert receive(pair.client, len(answered)) == answered
        assert gateway.records(0, others_in_flight=1).size == 0
        pair.server.close()
    else:
        pair.server.close()
        assert receive(pair.client, len(answered)) == answered
    record = gateway.record()
    assert flags(record) & ~ENDINGS == OUTGOING | RequestFlag.RESPONSE_UNTIL_CLOSE
    assert record["response_body_bytes"] == len(b"until the end")
    assert Stamp.READ in stamps(record)
    assert pair.client.recv(1) == b""


def test_switching_protocols_ends_what_is_measured(gateway: Meter) -> None:
    pair = gateway.lab.connect()
    switched = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\n\r\n"
    pair.exchange(request(headers={"Upgrade": "other"}), switched)
    record = gateway.record()
    assert flags(record) == OUTGOING | RequestFlag.UPGRADED
    pair.exchange(b"anything", b"whatever")
    pair.exchange(REQUEST, OK)
    assert gateway.counted(Counter.SEEN) == 1


PARTIAL = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nthe first part"


@pytest.mark.parametrize(
    ("who", "how", "told"),
    [
        ("server", reset, RequestFlag.PEER_RESET),
        ("server", socket.socket.close, RequestFlag.PEER_CLOSED),
        ("client", reset, RequestFlag.LOCAL_RESET),
        ("client", socket.socket.close, RequestFlag.LOCAL_CLOSED),
    ],
)
def test_cut_short_in_the_middle_of_the_response(
    gateway: Meter, who: str, how, told: RequestFlag
) -> None:
    pair = gateway.lab.connect()
    pair.exchange(REQUEST, PARTIAL)
    how(getattr(pair, who))
    if who == "server":
        with pytest.raises(ConnectionError) if how is reset else _nothing():
            assert pair.client.recv(1) == b""
    pair.close()
    record = gateway.record()
    assert flags(record) & told
    assert not flags(record) & RequestFlag.REQUEST_ANSWERED
    assert flags(record) & RequestFlag.REQUEST_RECEIVED
    assert record["status"] == 200
    assert record["response_body_bytes"] == len(b"the first part")
    assert gateway.losses() == {}


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_the_client_goes_without_an_answer(gateway: Meter) -> None:
    pair = gateway.lab.connect()
    pair.ask(REQUEST)
    pair.close()
    record = gateway.record()
    assert flags(record) & RequestFlag.LOCAL_CLOSED
    assert record["status"] == 0
    assert list(stamps(record)) == [Stamp.WRITE, Stamp.TC_OUT, Stamp.ENDED]


def test_the_client_reads_only_a_part_of_the_response(gateway: Meter) -> None:
    pair = gateway.lab.connect()
    pair.ask(REQUEST)
    pair.server.sendall(response(body=bytes(1000)))
    wait_until(lambda: unread_bytes(pair.client) > 1000, "the response is there")
    receive(pair.client, 100)
    assert gateway.records(0, others_in_flight=1).size == 0
    pair.client.close()
    record = gateway.record()
    assert flags(record) & ~ENDINGS == OUTGOING
    assert Stamp.READ in stamps(record)
    assert Stamp.READ_LAST not in stamps(record)


def test_a_head_cut_off_is_counted_as_lost(gateway: Meter) -> None:
    pair = gateway.lab.connect()
    pair.ask(REQUEST[:-2])
    pair.close()
    gateway.wait_for(Counter.LOST_CLOSED, 1)
    assert gateway.counted(Counter.SEEN) == 1


def test_an_upstream_that_speaks_unasked(gateway: Meter) -> None:
    pair = gateway.lab.connect()
    pair.answer(b"220 here\r\n")
    assert gateway.counted(Counter.SEGMENTS_UNASKED) == 1
    assert gateway.counted(Counter.SEEN) == 0


def test_what_is_not_http_is_counted_once_and_not_seen(gateway: Meter) -> None:
    pair = gateway.lab.connect()
    for _ in range(3):
        pair.exchange(b"\x16\x03\x01 a hello of TLS", b"\x16\x03\x03 another")
    assert gateway.counted(Counter.CONNECTIONS_NOT_HTTP) == 1
    assert gateway.counted(Counter.SEEN) == 0


def test_200_connections_with_three_requests_each(gateway: Meter) -> None:
    pairs = [gateway.lab.connect() for _ in range(200)]
    for _ in range(3):
        for pair in pairs:
            pair.client.sendall(REQUEST)
        for pair in reversed(pairs):
            receive(pair.server, len(REQUEST))
            pair.answer(OK)
    records = gateway.records(600)
    assert sorted(records["ordinal"].tolist()) == [0] * 200 + [1] * 200 + [2] * 200
    assert set(records["local_port"].tolist()) == {pair.peer_port for pair in pairs}
    for record in records:
        assert_whole(record)


@pytest.mark.parametrize(("port", "count"), [(SPARE_PORT, 0), (FREE_PORT, 1)])
def test_only_upstreams_are_measured(gateway: Meter, port: int, count: int) -> None:
    """An upstream's address with another port is none; a client port is one anywhere."""
    with (
        gateway.lab.socket("server", socket.AF_INET) as listener,
        gateway.lab.socket("client", socket.AF_INET) as client,
    ):
        listener.bind((SERVER_IPV4, port))
        listener.listen()
        client.connect((SERVER_IPV4, port))
        pair = Pair(client, prepare(listener.accept()[0]))
        pair.exchange(REQUEST, OK)
        assert gateway.records(count).size == count
        pair.close()
    assert gateway.counted(Counter.SEEN) == count


def test_both_roles_on_loopback(gateway: Meter) -> None:
    """A server and its client on one machine: each is measured, on its own connection."""
    with (
        gateway.lab.socket("client", socket.AF_INET) as listener,
        gateway.lab.socket("client", socket.AF_INET) as client,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", GATEWAY_PORT))
        listener.listen()
        client.connect(("127.0.0.1", GATEWAY_PORT))
        pair = Pair(client, prepare(listener.accept()[0]))
        answered = response(body=bytes(50_000))
        for _ in range(23):
            pair.exchange(REQUEST, answered)
        records = gateway.records(46)
        port = pair.peer_port
        pair.close()
    outgoing = records["flags"] & RequestFlag.CLIENT != 0
    asked, handled = records[outgoing], records[~outgoing]
    assert asked["ordinal"].tolist() == handled["ordinal"].tolist() == list(range(23))
    assert set(asked["peer_port"].tolist()) == set(handled["local_port"].tolist()) == {GATEWAY_PORT}
    assert set(asked["local_port"].tolist()) == set(handled["peer_port"].tolist()) == {port}
    assert len(set(records["connection_id"].tolist())) == 2
    for client_side, server_side in zip(asked, handled, strict=True):
        assert_whole(client_side, REQUEST, answered)
        sent, got = stamps(client_side), stamps(server_side)
        assert sent[Stamp.WRITE] < sent[Stamp.TC_OUT] < got[Stamp.NIC] < got[Stamp.READ]
        assert got[Stamp.WRITE] < got[Stamp.TC_OUT] < sent[Stamp.NIC] < sent[Stamp.READ]
    assert gateway.losses() == {}


def test_the_agents_own_connections_are_left_alone(gateway: Meter) -> None:
    """An upstream's port is the collector's."""
    gateway.let_this_process_be_the_agent()
    try:
        pair = gateway.lab.connect()
        pair.exchange(REQUEST, OK)
        pair.exchange(REQUEST, OK)
        gateway.wait_for(Counter.CONNECTIONS_OWN, 1)
    finally:
        gateway.let_another_process_be_the_agent()
    assert gateway.counted(Counter.SEEN) == 0


def test_chunks_that_end_with_the_connection_are_told_as_cut_short(gateway: Meter) -> None:
    pair = gateway.lab.connect()
    pair.exchange(REQUEST, response(headers=CHUNKED) + chunk(b"all but the last"))
    pair.server.close()
    assert pair.client.recv(1) == b""
    pair.client.close()
    record = gateway.record()
    assert flags(record) & RequestFlag.PEER_CLOSED
    assert not flags(record) & RequestFlag.REQUEST_ANSWERED
