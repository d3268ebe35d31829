# SPDX-License-Identifier: Apache-2.0
"""Real connections over bad networks: every request ends as a record that tells what happened."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import netem
import numpy as np
import pytest
from lab import Lab, Pair, receive
from messages import CHUNKED, OK, chunks, request, response
from meter import WHOLE, Meter, flags, stages, stamps

from otelbpf.kernel.records import Counter, Stamp

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(
        not netem.available(),
        reason="this kernel has no sch_netem; run in a guest by scripts/test --vm",
    ),
]

CONNECTIONS = 8
REQUESTS = 25  # on each of them
PATIENCE_S = 120
DELAY_MS = 200
DELAY_NS = DELAY_MS * 1_000_000
#: Every request has these.
STAMPS = {
    Stamp.NIC, Stamp.TC, Stamp.TCP, Stamp.QUEUED, Stamp.READ, Stamp.WRITE, Stamp.TC_OUT,
    Stamp.ACKED,
}  # fmt: skip


@dataclass(frozen=True)
class Exchange:
    """A request and its response, and the lengths of their contents."""

    asked: bytes
    asked_content: int
    answered: bytes
    answered_content: int


def exchanges() -> list[Exchange]:
    """What one connection carries: contents of every length and framing, either way."""
    pieces = [bytes(1 + 97 * number % 1500) for number in range(25)]
    chunked = chunks(pieces)
    total = sum(map(len, pieces))
    asked = [
        (request(target="/small"), 0),
        (request("POST", "/long", {"X-Long": "l" * 1000, "X-Longer": "l" * 3000}), 0),
        (request("POST", "/length", body=bytes(20_000)), 20_000),
        (request("POST", "/chunks", CHUNKED) + chunked, total),
        (request("POST", "/large-chunks", CHUNKED) + chunks([bytes(9_000)] * 2), 18_000),
    ]
    answered = [
        (OK, 2),
        (response(headers=CHUNKED) + chunked, total),
        (response(201, body=bytes(30_000)), 30_000),
    ]
    return [
        Exchange(*asked[number % len(asked)], *answered[number % len(answered)])
        for number in range(REQUESTS)
    ]


EXCHANGES = exchanges()


def be_patient(pair: Pair) -> None:
    timeout = struct.pack("ll", PATIENCE_S, 0)
    for sock in (pair.client, pair.server):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)


def serve(pair: Pair) -> None:
    for exchange in EXCHANGES:
        assert receive(pair.server, len(exchange.asked)) == exchange.asked
        pair.server.sendall(exchange.answered)


def ask(pair: Pair) -> None:
    for exchange in EXCHANGES:
        pair.client.sendall(exchange.asked)
        assert receive(pair.client, len(exchange.answered)) == exchange.answered


def total_retransmits(sock: socket.socket) -> int:
    """How many segments the kernel says that it sent again."""
    tcpi_total_retrans = 100  # uapi/linux/tcp.h
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, tcpi_total_retrans + 4)
    return int.from_bytes(info[tcpi_total_retrans:], "little")


@dataclass(frozen=True)
class Outcome:
    """What became of CONNECTIONS times REQUESTS requests.

    Attributes:
        records: all of them, by connection and ordinal.
        statistics: by how much the kernel's own counts grew meanwhile, at the server.
    """

    records: np.ndarray
    pairs: list[Pair]
    statistics: dict[str, int]

    def total(self, field: str) -> int:
        return int(self.records[field].sum())


def carry(lab: Lab, meter: Meter, *impairments: contextlib.AbstractContextManager[None]) -> Outcome:
    """Carries all exchanges on all connections, which are established before."""
    pairs = sorted((lab.connect() for _ in range(CONNECTIONS)), key=lambda pair: pair.peer_port)
    before = netem.tcp_statistics(lab.server_netns)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2 * CONNECTIONS) as pool:
        for impairment in impairments:
            stack.enter_context(impairment)
        for pair in pairs:
            be_patient(pair)
        sides = [pool.submit(side, pair) for pair in pairs for side in (serve, ask)]
        for side in sides:
            side.result()
        # While the impairment lasts: what is on its way would be lost with it.
        records = meter.records(CONNECTIONS * REQUESTS, deadline_s=PATIENCE_S)
    after = netem.tcp_statistics(lab.server_netns)
    return Outcome(
        np.sort(records, order=["peer_port", "ordinal"]),
        pairs,
        {name: value - before.get(name, 0) for name, value in after.items()},
    )


def assert_whole(meter: Meter, outcome: Outcome) -> None:
    """Each request is a record that says what was sent, and its stages tile it."""
    assert meter.losses() == {}
    meter.assert_stamped(outcome.records, STAMPS)
    assert outcome.records["peer_port"].tolist() == [
        pair.peer_port for pair in outcome.pairs for _ in EXCHANGES
    ]
    for record, exchange in zip(outcome.records, CONNECTIONS * EXCHANGES, strict=True):
        assert flags(record) & WHOLE == WHOLE
        assert exchange.asked.startswith(record["http1"]["request_line"] + b"\r\n")
        assert record["request_bytes"] == len(exchange.asked)
        assert record["request_body_bytes"] == exchange.asked_content
        assert record["response_bytes"] == len(exchange.answered)
        assert record["response_body_bytes"] == exchange.answered_content
        at = stamps(record)
        lengths = stages(record)
        assert min(lengths.values()) >= 0
        assert sum(lengths.values()) == max(at.values()) - min(at.values())
        way = [at[stamp] for stamp in sorted(STAMPS) if stamp in at]
        assert way == sorted(way)


def assert_sent_again_as_the_kernel_says(meter: Meter, outcome: Outcome) -> None:
    """But for what was sent again after TC saw all acknowledged, and before TCP did."""
    late = meter.counted(Counter.RETRANSMITS_LATE)
    by_the_kernel = sum(total_retransmits(pair.server) for pair in outcome.pairs)
    assert outcome.total("response_retransmits") + late == by_the_kernel


def assert_early_as_the_kernel_says(outcome: Outcome) -> None:
    """But for repeats among them, and for those that TCP joined before it looked at them."""
    early, statistics = outcome.total("out_of_order"), outcome.statistics
    assert early <= statistics["TCPOFOQueue"] + statistics["TCPBacklogCoalesce"]
    assert early >= statistics["TCPOFOQueue"] - outcome.total("request_retransmits")


@pytest.fixture(params=["joined", "single"])
def segments(lab: Lab, request: pytest.FixtureRequest) -> Iterator[str]:
    """Segments come to the network joined or one by one."""
    if request.param == "joined":
        yield request.param
        return
    with netem.packets_of_one_segment(lab):
        yield request.param


@pytest.mark.usefixtures("segments")
def test_a_good_network(lab: Lab, meter: Meter) -> None:
    outcome = carry(lab, meter)
    assert_whole(meter, outcome)
    assert outcome.total("out_of_order") == outcome.statistics["TCPOFOQueue"] == 0
    # A client may send again for want of patience alone; several segments may be merged into one.
    sent_again = sum(total_retransmits(pair.client) for pair in outcome.pairs)
    assert min(1, sent_again) <= outcome.total("request_retransmits") <= sent_again
    assert_sent_again_as_the_kernel_says(meter, outcome)


@pytest.mark.usefixtures("segments")
def test_requests_that_are_reordered(lab: Lab, meter: Meter) -> None:
    outcome = carry(
        lab, meter, netem.what_is_sent(lab, "client", "delay", "10ms", "reorder", "30%")
    )
    assert_whole(meter, outcome)
    assert outcome.total("out_of_order") > 0
    assert_early_as_the_kernel_says(outcome)
    assert_sent_again_as_the_kernel_says(meter, outcome)


@pytest.mark.usefixtures("segments")
def test_requests_and_responses_that_are_lost(lab: Lab, meter: Meter) -> None:
    outcome = carry(
        lab, meter,
        netem.what_is_sent(lab, "client", "loss", "3%"),
        netem.what_is_sent(lab, "server", "loss", "3%"),
    )  # fmt: skip
    assert_whole(meter, outcome)
    assert outcome.total("out_of_order") > 0
    assert outcome.total("response_retransmits") > 0
    assert_early_as_the_kernel_says(outcome)
    assert_sent_again_as_the_kernel_says(meter, outcome)


def test_packets_that_are_duplicated(lab: Lab, meter: Meter, segments: str) -> None:
    outcome = carry(
        lab, meter,
        netem.what_is_sent(lab, "client", "duplicate", "30%"),
        netem.what_is_sent(lab, "server", "duplicate", "30%"),
    )  # fmt: skip
    assert_whole(meter, outcome)
    assert outcome.total("out_of_order") == outcome.statistics["TCPOFOQueue"] == 0
    # Linux acknowledges each repeat as one, those that it has joined to the next segment, too.
    repeats = outcome.statistics["TCPDSACKOldSent"]
    assert repeats > 0
    if segments == "single":
        assert outcome.total("request_retransmits") == repeats
    else:  # It may have joined several of them.
        assert repeats <= outcome.total("request_retransmits") <= 1.2 * repeats
    # Responses are duplicated behind the hook, by the network.
    assert_sent_again_as_the_kernel_says(meter, outcome)


@pytest.mark.usefixtures("segments")
def test_everything_at_once(lab: Lab, meter: Meter) -> None:
    bad = ("delay", "5ms", "5ms", "loss", "1%", "duplicate", "5%", "reorder", "20%")
    outcome = carry(
        lab, meter, netem.what_is_sent(lab, "client", *bad), netem.what_is_sent(lab, "server", *bad)
    )
    assert_whole(meter, outcome)
    assert outcome.total("out_of_order") > 0
    assert outcome.total("request_retransmits") > 0
    assert_early_as_the_kernel_says(outcome)
    assert_sent_again_as_the_kernel_says(meter, outcome)


PADDED = request(target="/padded", headers={"X-Padding": "p" * 100})
PADDED_OK = response(body=bytes(100))


def one(pair: Pair, meter: Meter) -> tuple[np.void, int]:
    """One request on a warm connection: its record, and how long its client waited, in ns."""
    begin = time.monotonic_ns()
    pair.exchange(PADDED, PADDED_OK)
    waited_ns = time.monotonic_ns() - begin
    record = meter.record()
    assert flags(record) == WHOLE
    assert set(stamps(record)) >= STAMPS
    return record, waited_ns


def warm(lab: Lab, meter: Meter) -> Pair:
    pair = lab.connect()
    be_patient(pair)
    one(pair, meter)
    return pair


@pytest.mark.parametrize("count", [1, 3])
def test_a_slow_way_to_the_client_is_between_tc_out_and_acked(
    lab: Lab, meter: Meter, count: int
) -> None:
    pair = warm(lab, meter)
    with netem.long_packets_sent(lab, "server", "delay", f"{DELAY_MS}ms"):
        for _ in range(count):
            record, waited_ns = one(pair, meter)
            lengths = stages(record)
            assert waited_ns >= DELAY_NS
            assert lengths.pop((Stamp.TC_OUT, Stamp.ACKED)) >= DELAY_NS
            assert sum(lengths.values()) < DELAY_NS


def test_a_slow_way_of_the_acknowledgement_is_there_too(lab: Lab, meter: Meter) -> None:
    pair = warm(lab, meter)
    begin_ns = time.monotonic_ns()
    with netem.what_is_sent(lab, "client", "delay", f"{DELAY_MS}ms"):
        record, _ = one(pair, meter)
    lengths = stages(record)
    assert min(stamps(record).values()) - begin_ns >= DELAY_NS
    assert lengths.pop((Stamp.TC_OUT, Stamp.ACKED)) >= DELAY_NS
    assert sum(lengths.values()) < DELAY_NS


def test_a_slow_way_to_the_server_is_in_no_stage(lab: Lab, meter: Meter) -> None:
    pair = warm(lab, meter)
    with netem.long_packets_sent(lab, "client", "delay", f"{DELAY_MS}ms"):
        record, waited_ns = one(pair, meter)
    assert waited_ns >= DELAY_NS
    assert sum(stages(record).values()) < DELAY_NS


def test_a_wait_behind_tc_is_between_tc_and_tcp(lab: Lab, meter: Meter) -> None:
    pair = warm(lab, meter)
    with netem.what_the_server_receives(lab, "delay", f"{DELAY_MS}ms"):
        record, waited_ns = one(pair, meter)
    lengths = stages(record)
    assert waited_ns >= DELAY_NS
    assert lengths.pop((Stamp.TC, Stamp.TCP)) >= DELAY_NS
    assert sum(lengths.values()) < DELAY_NS
