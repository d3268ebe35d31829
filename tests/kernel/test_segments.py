# SPDX-License-Identifier: Apache-2.0
"""Segments that come twice, too late, too early or never: made-up frames, in a chosen order."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from conversation import Conversation
from frames import Wire, fresh_port
from lab import Lab
from messages import CHUNKED, OK, chunk, chunks, request, response
from meter import WHOLE, Meter, flags, stamps
from support.frames import ACK, FIN, RST, Frame

from otelbpf.kernel.records import Counter, RequestFlag, Stamp

UPLOAD = request("POST", body=b"0123456789" * 30)
HEAD = len(UPLOAD) - 300


@pytest.fixture(params=[1000, 2**32 - 40, 2**32 - 4000], ids=["", "wrap soon", "wrap later"])
def talk(meter: Meter, request: pytest.FixtureRequest) -> Iterator[Conversation]:
    seq = request.param
    yield Conversation(Wire(meter), Frame(client_port=fresh_port(), seq=seq, ack_seq=seq))
    meter.sweep()


def test_a_request_that_comes_twice_is_one(talk: Conversation, meter: Meter) -> None:
    for _ in range(3):
        talk.ask(UPLOAD, 0)
    talk.answer(OK, 0)
    talk.ask(UPLOAD, 0)
    talk.ask(b"", len(UPLOAD), acknowledging=len(OK))
    record = meter.record()
    assert flags(record) == WHOLE
    assert record["request_bytes"] == len(UPLOAD)
    assert record["request_retransmits"] == 3
    at = stamps(record)
    assert at[Stamp.NIC] < at[Stamp.TC]
    assert Stamp.NIC_LAST not in at
    # Once it is reported, what comes again is nobody's.
    talk.ask(UPLOAD, 0)
    assert meter.counted(Counter.SEEN) == 1


@pytest.mark.parametrize("first", [1, 10, HEAD - 1, HEAD, HEAD + 1, len(UPLOAD) - 1])
@pytest.mark.parametrize("overlap", [0, 1, 20])
def test_segments_that_overlap_are_read_once(
    talk: Conversation, meter: Meter, first: int, overlap: int
) -> None:
    talk.ask(request(target="/before"), 0)  # so that the connection is known from a whole request
    start = len(request(target="/before"))
    talk.ask(UPLOAD[:first], start)
    again = max(0, first - overlap)
    talk.ask(UPLOAD[again:], start + again)
    talk.answer(2 * OK, 0)
    talk.ask(b"", start + len(UPLOAD), acknowledging=2 * len(OK))
    record = meter.records(2)[1]
    assert flags(record) == WHOLE
    assert record["request_bytes"] == len(UPLOAD)
    assert record["request_body_bytes"] == 300
    assert record["request_retransmits"] == (1 if overlap else 0)


def test_a_response_sent_again_has_left_when_it_last_did(talk: Conversation, meter: Meter) -> None:
    talk.ask(request(), 0)
    for _ in range(2):
        talk.answer(OK, 0)
    last_ns = time.monotonic_ns()
    talk.answer(OK, 0)
    talk.ask(b"", len(request()), acknowledging=len(OK))
    record = meter.record()
    assert flags(record) == WHOLE
    assert record["response_bytes"] == len(OK)
    assert record["response_retransmits"] == 2
    at = stamps(record)
    assert at[Stamp.TC_OUT] < last_ns < at[Stamp.TC_OUT_LAST] < at[Stamp.ACKED]


def test_a_response_sent_again_after_its_acknowledgement_is_counted_apart(
    talk: Conversation, meter: Meter
) -> None:
    talk.ask(request(), 0)
    talk.answer(OK, 0)
    talk.answer(OK, 0)
    talk.ask(b"", len(request()), acknowledging=len(OK))
    talk.answer(OK, 0)
    assert meter.record()["response_retransmits"] == 1
    assert meter.counted(Counter.RETRANSMITS_LATE) == 1


def test_a_part_of_a_response_sent_again(talk: Conversation, meter: Meter) -> None:
    answered = response(headers=CHUNKED) + chunks([b"first", b"second", b"third"])
    cut = answered.index(b"second")
    talk.ask(2 * request(), 0)
    talk.answer(OK + answered[:cut], 0)
    talk.ask(b"", 2 * len(request()), acknowledging=len(OK))
    talk.answer(answered[:cut], len(OK))
    talk.answer(answered[cut - 5 :], len(OK) + cut - 5)
    talk.ask(b"", 2 * len(request()), acknowledging=len(OK + answered))
    first, second = meter.records(2)
    assert (first["response_retransmits"], second["response_retransmits"]) == (0, 2)
    assert second["response_bytes"] == len(answered)
    assert second["response_body_bytes"] == 16


def test_one_acknowledgement_of_many_responses(talk: Conversation, meter: Meter) -> None:
    talk.ask(5 * request(), 0)
    talk.answer(5 * OK, 0)
    talk.ask(b"", 5 * len(request()), acknowledging=3 * len(OK))
    assert meter.records(3, others_in_flight=2)["ordinal"].tolist() == [0, 1, 2]
    talk.ask(b"", 5 * len(request()), acknowledging=5 * len(OK) - 1)
    assert meter.records(1, others_in_flight=1)["ordinal"].tolist() == [3]
    talk.ask(b"", 5 * len(request()), acknowledging=5 * len(OK))
    assert meter.record()["ordinal"] == 4


def test_an_acknowledgement_that_comes_with_the_next_request(
    talk: Conversation, meter: Meter
) -> None:
    talk.ask(request(target="/1"), 0)
    talk.answer(OK, 0)
    talk.ask(request(target="/2"), len(request(target="/1")), acknowledging=len(OK))
    record = meter.records(1, others_in_flight=1)[0]
    assert record["http1"]["request_line"] == b"GET /1 HTTP/1.1"
    meter.sweep()
    unanswered = meter.record()
    assert unanswered["http1"]["request_line"] == b"GET /2 HTTP/1.1"
    assert flags(unanswered) == RequestFlag.REQUEST_RECEIVED | RequestFlag.IDLE_TIMEOUT
    assert stamps(record)[Stamp.ACKED] <= stamps(unanswered)[Stamp.TC]


def test_bytes_beyond_a_reset_or_a_close_do_no_harm(talk: Conversation, meter: Meter) -> None:
    talk.ask(UPLOAD[:100], 0)
    talk.ask(b"", 100, flags=RST)
    talk.ask(b"", 100, flags=FIN | ACK)
    talk.answer(b"", 0, flags=RST)
    talk.answer(b"", 0, flags=FIN | ACK)
    talk.ask(UPLOAD[100:], 100)
    talk.answer(response(headers=CHUNKED) + chunk(b"x"), 0, flags=FIN | ACK)
    meter.sweep()
    record = meter.record()
    assert record["request_bytes"] == 100
    assert record["status"] == 0
    assert flags(record) == RequestFlag.PEER_RESET  # which came first


def arrive_together(talk: Conversation, count: int, again: int | None = None) -> list[int]:
    """So many requests at XDP, and one of them again, before TC takes the first.

    Returns:
        A time before each arrived, and one after the last, in CLOCK_MONOTONIC ns.
    """
    asked = request()
    frames = [
        replace(talk.frame, payload=asked, seq=talk.frame.seq + number * len(asked))
        for number in range(count)
    ]
    talk.wire.deliver(replace(talk.frame, payload=asked, seq=talk.frame.seq - len(asked)))
    times = []
    for frame in frames:
        times.append(time.monotonic_ns())
        talk.wire.arrive(frame)
    times.append(time.monotonic_ns())
    if again is not None:
        talk.wire.arrive(frames[again])
    for frame in frames:
        talk.wire.take(frame)
    return times


@pytest.mark.parametrize("again", [1, 2, 4])
def test_a_segment_noted_twice_arrived_when_it_first_did(
    talk: Conversation, meter: Meter, again: int
) -> None:
    times = arrive_together(talk, 5, again)
    meter.sweep()
    records = np.sort(meter.records(6), order="ordinal")
    for number, record in enumerate(records[1:]):
        assert times[number] <= stamps(record)[Stamp.NIC] <= times[number + 1]


def test_arrivals_that_are_forgotten_are_absent_and_never_mixed_up(
    talk: Conversation, meter: Meter
) -> None:
    """TC comes late: of twelve arrivals the first and the last eight are still known."""
    times = arrive_together(talk, 12)
    meter.sweep()
    records = np.sort(meter.records(13), order="ordinal")[1:]
    known = [number for number, record in enumerate(records) if Stamp.NIC in stamps(record)]
    assert known == [0, 4, 5, 6, 7, 8, 9, 10, 11]
    for number in known:
        assert times[number] <= stamps(records[number])[Stamp.NIC] <= times[number + 1]


def test_a_part_that_was_sent_again_in_vain_does_not_prolong_the_response(
    lab: Lab, meter: Meter
) -> None:
    """TCP probes for a lost tail where the client merely takes its time to acknowledge it."""
    probed = 0
    for _ in range(40):
        pair = lab.connect()
        for _ in range(3):  # a short round trip is known
            pair.exchange(request(), OK)
            meter.record()
        pair.ask(request())
        pair.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        for part in (OK[:20], OK[20:40], OK[40:]):
            pair.server.sendall(part)
        left_ns = time.monotonic_ns()
        record = meter.record()
        at = stamps(record)
        pair.close()
        if record["response_retransmits"] and at[Stamp.ACKED] > left_ns + 2_000_000:
            assert at[Stamp.TC_OUT_LAST] < left_ns
            probed += 1
            if probed == 2:
                return
    raise AssertionError(f"TCP has probed {probed} times only")
