# SPDX-License-Identifier: Apache-2.0
"""Requests and segments do not match one to one; the records do not care."""

from __future__ import annotations

import numpy as np
import pytest
from lab import Lab, Pair, receive
from messages import OK, request, response
from meter import WHOLE, Meter, flags, stamps

from otelbpf.kernel.records import Counter, Stamp

IN_FLIGHT_MAX = 16  # bpf/state/connection.h
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def numbered(count: int) -> list[bytes]:
    return [request(target=f"/{number}") for number in range(count)]


def answers(count: int) -> list[bytes]:
    return [response(status=400 + number, body=b"x" * number) for number in range(count)]


def assert_each_is_its_own(records: np.ndarray, count: int) -> None:
    assert records["ordinal"].tolist() == list(range(count))
    lines = [b"GET /%d HTTP/1.1" % number for number in range(count)]
    assert records["http1"]["request_line"].tolist() == lines
    assert records["status"].tolist() == [400 + number for number in range(count)]
    assert records["response_body_bytes"].tolist() == list(range(count))
    assert records["request_bytes"].tolist() == [len(each) for each in numbered(count)]
    assert records["response_bytes"].tolist() == [len(each) for each in answers(count)]
    assert set(map(flags, records)) == {WHOLE}


@pytest.mark.parametrize("count", [2, 5, 16])
def test_several_requests_in_one_segment_answered_one_by_one(
    lab: Lab, meter: Meter, count: int
) -> None:
    pair = lab.connect()
    pair.send_segment(b"".join(numbered(count)))
    for one, answer in zip(numbered(count), answers(count), strict=True):
        assert receive(pair.server, len(one)) == one
        pair.server.sendall(answer)
        assert receive(pair.client, len(answer)) == answer
    records = meter.records(count)
    assert_each_is_its_own(records, count)
    # They came together and were read and answered one after another.
    times = records["stamp_ktime_ns"].astype(np.int64)
    for together in (Stamp.NIC, Stamp.TC, Stamp.TCP, Stamp.QUEUED):
        assert np.ptp(times[:, together]) < 1_000_000
        assert (times[:, together] > 0).all() or together is Stamp.NIC
    for apart in (Stamp.READ, Stamp.WRITE, Stamp.TC_OUT, Stamp.ACKED):
        assert (np.diff(times[:, apart]) > 0).all()
    assert (times[1:, Stamp.READ] > times[:-1, Stamp.ACKED]).all()


@pytest.mark.parametrize("count", [2, 5, 16])
def test_several_responses_in_one_write(lab: Lab, meter: Meter, count: int) -> None:
    pair = lab.connect()
    for one in numbered(count):
        pair.send_segment(one)
    receive(pair.server, sum(map(len, numbered(count))))
    pair.server.sendall(b"".join(answers(count)))
    receive(pair.client, sum(map(len, answers(count))))
    records = meter.records(count)
    assert_each_is_its_own(records, count)
    times = records["stamp_ktime_ns"].astype(np.int64)
    for apart in (Stamp.NIC, Stamp.TC, Stamp.TCP, Stamp.QUEUED):
        assert (np.diff(times[:, apart]) > 0).all()
    for together in (Stamp.READ, Stamp.WRITE, Stamp.TC_OUT, Stamp.ACKED):
        assert len(set(times[:, together].tolist())) == 1
        assert times[0, together] > 0


def send_in_pieces(pair: Pair, data: bytes, size: int) -> None:
    for start in range(0, len(data), size):
        pair.send_segment(data[start : start + size])


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_a_request_in_segments_of_any_size(lab: Lab, meter: Meter, size: int) -> None:
    pair = lab.connect()
    headers = {
        "Host": "piecemeal.example", "User-Agent": "slow/1", "traceparent": TRACEPARENT,
    }  # fmt: skip
    asked = request("POST", "/in/pieces", headers, b"0123456789")
    for ordinal in range(2):
        send_in_pieces(pair, asked, size)
        receive(pair.server, len(asked))
        pair.server.sendall(OK)
        receive(pair.client, len(OK))
        record = meter.record()
        assert record["ordinal"] == ordinal
        assert flags(record) == WHOLE
        assert record["http1"]["request_line"] == b"POST /in/pieces HTTP/1.1"
        assert record["http1"]["host"] == b"piecemeal.example"
        assert record["http1"]["user_agent"] == b"slow/1"
        assert record["join"]["traceparent"] == TRACEPARENT.encode()
        assert record["request_bytes"] == len(asked)
        assert record["request_body_bytes"] == 10
        at = stamps(record)
        assert at[Stamp.NIC] < at[Stamp.TC] < at[Stamp.TCP] < at[Stamp.QUEUED]
        assert at[Stamp.QUEUED] < at[Stamp.NIC_LAST] < at[Stamp.READ] < at[Stamp.WRITE]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_responses_in_segments_of_any_size(lab: Lab, meter: Meter, size: int) -> None:
    pair = lab.connect()
    pair.send_segment(b"".join(numbered(2)))
    receive(pair.server, sum(map(len, numbered(2))))
    whole = b"".join(answers(2))
    for start in range(0, len(whole), size):
        piece = whole[start : start + size]
        pair.server.sendall(piece)
        assert receive(pair.client, len(piece)) == piece
    records = meter.records(2)
    assert_each_is_its_own(records, 2)
    for record in records:
        at = stamps(record)
        assert at[Stamp.WRITE] < at[Stamp.TC_OUT] < at[Stamp.WRITE_LAST]
        assert at[Stamp.WRITE_LAST] < at[Stamp.TC_OUT_LAST] < at[Stamp.ACKED]


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_segment_that_ends_one_request_and_starts_the_next(
    lab: Lab, meter: Meter, cut: int
) -> None:
    pair = lab.connect()
    first, second = numbered(2)
    pair.send_segment(first + second[:cut])
    pair.send_segment(second[cut:])
    receive(pair.server, len(first + second))
    pair.server.sendall(b"".join(answers(2)))
    receive(pair.client, sum(map(len, answers(2))))
    assert_each_is_its_own(meter.records(2), 2)


@pytest.mark.parametrize("one_segment", [True, False], ids=["one segment", "a segment each"])
def test_beyond_16_in_flight_requests_are_counted_as_lost(
    lab: Lab, meter: Meter, one_segment: bool
) -> None:
    pair = lab.connect()
    asked, answered = numbered(20), answers(20)
    for segment in [b"".join(asked)] if one_segment else asked:
        pair.send_segment(segment)
    meter.wait_for(Counter.LOST_PIPELINE_FULL, 4)
    receive(pair.server, sum(map(len, asked)))
    for answer in answered:
        pair.server.sendall(answer)
        receive(pair.client, len(answer))
    assert_each_is_its_own(meter.records(IN_FLIGHT_MAX), IN_FLIGHT_MAX)

    # The connection is none the worse for it.
    for ordinal in range(20, 23):
        pair.exchange(request(target="/after"), OK)
        record = meter.record()
        assert record["ordinal"] == ordinal
        assert record["http1"]["request_line"] == b"GET /after HTTP/1.1"
        assert flags(record) == WHOLE
        for stamp in (Stamp.NIC, Stamp.TC, Stamp.TCP, Stamp.QUEUED, Stamp.READ, Stamp.WRITE):
            assert stamp in stamps(record)
    assert meter.losses() == {Counter.LOST_PIPELINE_FULL: 4}


def test_as_many_again_once_those_in_flight_are_answered(lab: Lab, meter: Meter) -> None:
    """Slots are used again, far beyond their number, with some always in flight."""
    pair = lab.connect()
    asked, answered = request(target="/again"), OK
    for _ in range(10):
        pair.send_segment(asked)
    for _ in range(100):
        receive(pair.server, len(asked))
        pair.server.sendall(answered)
        receive(pair.client, len(answered))
        pair.send_segment(asked)
    receive(pair.server, 10 * len(asked))
    pair.server.sendall(10 * answered)
    receive(pair.client, 10 * len(answered))
    records = meter.records(110)
    assert records["ordinal"].tolist() == list(range(110))
    times = records["stamp_ktime_ns"].astype(np.int64)
    for stamp in (Stamp.NIC, Stamp.TC, Stamp.TCP, Stamp.QUEUED, Stamp.READ):
        assert (times[:, stamp] > 0).all()
    assert (np.diff(times[:, Stamp.NIC]) > 0).all()
