# SPDX-License-Identifier: Apache-2.0
"""Sequence numbers wrap after 4 GiB, anywhere in a request or its response."""

from __future__ import annotations

import pytest
import repair
from lab import SERVER_IPV4, SERVER_IPV6, Lab, Pair, Worker, receive
from messages import CHUNKED, OK, chunks, request, response
from meter import WHOLE, Meter, flags, stamps

from otelbpf.kernel.records import Counter, Stamp

WRAP = 2**32
ASKED = request("POST", "/wrap", {"User-Agent": "wrap/1"}, b"a body of some length")
CHUNKY = response(headers=CHUNKED) + chunks([b"a few", b"chunks"])
ALL = {
    Stamp.NIC, Stamp.TC, Stamp.TCP, Stamp.QUEUED, Stamp.READ, Stamp.WRITE, Stamp.TC_OUT,
    Stamp.ACKED,
}  # fmt: skip


def assert_is_whole(record) -> None:
    assert flags(record) & WHOLE == WHOLE
    assert record["http1"]["request_line"] == b"POST /wrap HTTP/1.1"
    assert record["http1"]["user_agent"] == b"wrap/1"
    assert record["request_bytes"] == len(ASKED)
    assert record["request_body_bytes"] == 21
    assert (record["request_retransmits"], record["response_retransmits"]) == (0, 0)
    assert record["out_of_order"] == 0
    assert set(stamps(record)) >= ALL


@pytest.mark.parametrize("host", [SERVER_IPV4, SERVER_IPV6])
@pytest.mark.parametrize("before", [0, 1, 2, 20, len(ASKED) - 21, len(ASKED) - 1, len(ASKED)])
def test_the_wrap_is_anywhere_in_a_request(lab: Lab, meter: Meter, host: str, before: int) -> None:
    pair = repair.connect(
        lab, host=host, request_seq=(WRAP - before) % WRAP, response_seq=1_000_000
    )
    for ordinal in range(3):
        pair.exchange(ASKED, OK)
        record = meter.record()
        assert record["ordinal"] == ordinal
        assert_is_whole(record)


@pytest.mark.parametrize("before", [1, 9, 60, len(CHUNKY) - 1, len(CHUNKY)])
def test_the_wrap_is_anywhere_in_a_response(lab: Lab, meter: Meter, before: int) -> None:
    pair = repair.connect(lab, request_seq=1_000_000, response_seq=WRAP - before)
    for ordinal in range(3):
        pair.exchange(ASKED, CHUNKY)
        record = meter.record()
        assert record["ordinal"] == ordinal
        assert record["response_body_bytes"] == 11
        assert record["response_bytes"] == len(CHUNKY)
        assert_is_whole(record)


@pytest.mark.parametrize("before", [1, 20, len(ASKED), len(ASKED) + 20])
def test_the_wrap_is_between_requests_in_flight(lab: Lab, meter: Meter, before: int) -> None:
    pair = repair.connect(lab, request_seq=WRAP - before, response_seq=WRAP - len(OK) - 3)
    for piece in (ASKED[:7], ASKED[7:] + ASKED[:-1], ASKED[-1:] + ASKED):
        pair.send_segment(piece)
    receive(pair.server, 3 * len(ASKED))
    pair.answer(OK)
    pair.answer(OK + OK)
    records = meter.records(3)
    assert records["ordinal"].tolist() == [0, 1, 2]
    for record in records:
        assert_is_whole(record)


def carry_a_mib_each_way(pair: Pair) -> None:
    asked = request("POST", body=bytes(1 << 20))
    answered = response(body=bytes(1 << 20))
    for sender, receiver, data in (
        (pair.client, pair.server, asked),
        (pair.server, pair.client, answered),
    ):
        with Worker(lambda receiver=receiver, data=data: receive(receiver, len(data))):
            # Twice: what a single call hands over has no last write of its own.
            for half in (data[: len(data) // 2], data[len(data) // 2 :]):
                sender.sendall(half)


def test_the_wrap_is_in_the_middle_of_a_mib_each_way(lab: Lab, meter: Meter) -> None:
    pair = repair.connect(lab, request_seq=WRAP - 500_000, response_seq=WRAP - 500_000)
    for _ in range(2):
        carry_a_mib_each_way(pair)
    for record in meter.records(2):
        assert flags(record) & WHOLE == WHOLE
        assert record["request_body_bytes"] == 1 << 20
        assert record["response_body_bytes"] == 1 << 20
        at = stamps(record)
        assert at[Stamp.NIC] < at[Stamp.NIC_LAST] < at[Stamp.WRITE] < at[Stamp.TC_OUT]
        assert at[Stamp.READ] < at[Stamp.READ_LAST] < at[Stamp.WRITE_LAST]
        assert at[Stamp.WRITE_LAST] < at[Stamp.TC_OUT_LAST] < at[Stamp.ACKED]
    assert meter.counted(Counter.CONNECTIONS_OPENED) == 1
