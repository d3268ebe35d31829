# SPDX-License-Identifier: Apache-2.0
"""Requests that nothing ends: the agent's sweep does, and says which."""

from __future__ import annotations

import time

import pytest
from frames import Frame, Wire, fresh_port
from lab import Lab
from messages import OK, request, response
from meter import WHOLE, Meter, flags, stamps

from otelbpf.records import Counter, RequestFlag, Stamp
from otelbpf.sweeper import ACK_WAIT_NS, Sweeper

RECEIVED = RequestFlag.REQUEST_RECEIVED
IDLE_NS = 30_000_000_000


@pytest.fixture
def sweeper(meter: Meter):
    sweeper = Sweeper(meter.programs, IDLE_NS)
    yield sweeper
    sweeper.close()


def test_an_idle_request_is_reported_as_such(lab: Lab, meter: Meter, sweeper: Sweeper) -> None:
    pair = lab.connect()
    pair.ask(request(target="/idle"))
    now = time.monotonic_ns()
    sweeper.sweep(now)
    sweeper.sweep(now + IDLE_NS - 1_000_000_000)
    assert meter.records(0, others_in_flight=1).size == 0
    sweeper.sweep(now + IDLE_NS)
    record = meter.record()
    assert record["request_line"] == b"GET /idle HTTP/1.1"
    assert flags(record) == RECEIVED | RequestFlag.IDLE_TIMEOUT
    assert record["status"] == 0
    assert Stamp.READ in stamps(record)

    # Its answer comes after all: it is nobody's now, and harms nobody.
    pair.answer(OK)
    meter.assert_next_is_right(pair, 1)


def test_activity_keeps_a_request_alive(lab: Lab, meter: Meter, sweeper: Sweeper) -> None:
    pair = lab.connect()
    pair.ask(request(target="/slow"))
    asked_at = time.monotonic_ns()
    time.sleep(0.05)
    pair.answer(response(headers={"Content-Length": "4"}) + b"ab")
    sweeper.sweep(asked_at + IDLE_NS)
    assert meter.records(0, others_in_flight=1).size == 0
    pair.answer(b"cd")
    assert flags(meter.record()) == WHOLE


def test_an_idle_response_is_reported_with_what_is_known(
    lab: Lab, meter: Meter, sweeper: Sweeper
) -> None:
    pair = lab.connect()
    pair.ask(request())
    pair.answer(response(503, {"Content-Length": "4"}) + b"ab")
    sweeper.sweep(time.monotonic_ns() + IDLE_NS)
    record = meter.record()
    assert flags(record) == RECEIVED | RequestFlag.IDLE_TIMEOUT
    assert record["status"] == 503
    assert Stamp.TC_OUT in stamps(record)
    pair.answer(b"cd")
    meter.assert_next_is_right(pair, 1)


def test_an_answer_is_reported_even_if_it_is_never_acknowledged(
    meter: Meter, sweeper: Sweeper
) -> None:
    wire, frame = Wire(meter), Frame(client_port=fresh_port(), payload=request())
    wire.deliver(frame)
    wire.emit(frame.turned(payload=OK, seq=5000))
    now = time.monotonic_ns()
    sweeper.sweep(now)
    assert meter.records(0, others_in_flight=1).size == 0
    sweeper.sweep(now + ACK_WAIT_NS)
    record = meter.record()
    assert flags(record) == WHOLE
    assert Stamp.ACKED not in stamps(record)


def test_half_a_head_is_no_record(lab: Lab, meter: Meter, sweeper: Sweeper) -> None:
    pair = lab.connect()
    pair.ask(request(target="/half")[:-2])
    sweeper.sweep(time.monotonic_ns() + IDLE_NS)
    assert meter.records(0).size == 0
    assert meter.losses() == {Counter.LOST_CLOSED: 1}
    pair.ask(b"\r\n")
    pair.answer(OK)
    pair.exchange(request(target="/next"), OK)
    assert meter.record()["request_line"] == b"GET /next HTTP/1.1"


def test_when_the_agent_stops_every_request_is_accounted_for(
    lab: Lab, meter: Meter, sweeper: Sweeper
) -> None:
    unanswered, half, in_part = lab.connect(), lab.connect(), lab.connect()
    unanswered.ask(request())
    half.ask(request()[:10])
    in_part.ask(request())
    in_part.answer(OK[:-1])
    wire, frame = Wire(meter), Frame(client_port=fresh_port(), payload=request(target="/done"))
    wire.deliver(frame)
    wire.emit(frame.turned(payload=OK, seq=5000))
    assert meter.in_flight() == 4
    sweeper.finish(time.monotonic_ns())
    assert meter.losses() == {Counter.LOST_STOPPED: 3}
    assert meter.record()["request_line"] == b"GET /done HTTP/1.1"


def test_sweeping_an_empty_table_does_nothing(meter: Meter, sweeper: Sweeper) -> None:
    sweeper.sweep(time.monotonic_ns() + IDLE_NS)
    for slot in (0, 1, 4095, 4096, 2**32 - 1):
        meter.programs.sweep(slot, time.monotonic_ns(), RequestFlag.IDLE_TIMEOUT)
    assert meter.counted_all() == {}
