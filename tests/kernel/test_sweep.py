# SPDX-License-Identifier: Apache-2.0
"""Requests that nothing ends: the agent's sweep does, and says which."""

from __future__ import annotations

import time

import pytest
from conversation import Conversation
from frames import Wire, fresh_port
from lab import Lab
from messages import OK, request, response
from meter import WHOLE, Meter, flags, stamps
from support.frames import Frame

from otelbpf.kernel.records import Counter, RequestFlag, Stamp
from otelbpf.ledger.sweeper import ACK_WAIT_NS, Sweeper

RECEIVED = RequestFlag.REQUEST_RECEIVED
IDLE_NS = 30_000_000_000


@pytest.fixture
def sweeper(meter: Meter) -> Sweeper:
    return Sweeper(meter.programs, IDLE_NS)


@pytest.fixture
def talk(meter: Meter) -> Conversation:
    """A connection of which no socket is known: one that is open keeps its requests."""
    return Conversation(Wire(meter), Frame(client_port=fresh_port()))


def test_an_idle_request_is_reported_as_such(
    talk: Conversation, meter: Meter, sweeper: Sweeper
) -> None:
    asked = request(target="/idle")
    before_ns = time.monotonic_ns()
    talk.ask(asked, 0)
    now = time.monotonic_ns()
    sweeper.sweep(now)
    sweeper.sweep(before_ns + IDLE_NS)
    assert meter.records(0, others_in_flight=1).size == 0
    assert meter.programs.in_flight() == 1
    sweeper.sweep(now + 2 * IDLE_NS)
    assert meter.programs.in_flight() == 0
    record = meter.record()
    assert record["http1"]["request_line"] == b"GET /idle HTTP/1.1"
    assert flags(record) == RECEIVED | RequestFlag.IDLE_TIMEOUT
    assert record["status"] == 0

    # Its answer comes after all: it is nobody's now, and harms nobody.
    talk.answer(OK, 0)
    talk.ask(asked, len(asked), acknowledging=len(OK))
    talk.answer(OK, len(OK))
    talk.ask(b"", 2 * len(asked), acknowledging=2 * len(OK))
    assert flags(meter.record()) == WHOLE


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
    talk: Conversation, meter: Meter, sweeper: Sweeper
) -> None:
    talk.ask(request(), 0)
    talk.answer(response(503, {"Content-Length": "4"}) + b"ab", 0)
    sweeper.sweep(time.monotonic_ns() + IDLE_NS)
    record = meter.record()
    assert flags(record) == RECEIVED | RequestFlag.IDLE_TIMEOUT
    assert record["status"] == 503
    assert Stamp.TC_OUT in stamps(record)


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


def test_half_a_head_is_no_record(talk: Conversation, meter: Meter, sweeper: Sweeper) -> None:
    talk.ask(request(target="/half")[:-2], 0)
    sweeper.sweep(time.monotonic_ns() + IDLE_NS)
    assert meter.records(0).size == 0
    assert meter.losses() == {Counter.LOST_CLOSED: 1}


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
    assert meter.record()["http1"]["request_line"] == b"GET /done HTTP/1.1"


def test_sweeping_an_empty_table_does_nothing(meter: Meter) -> None:
    assert meter.programs.sweep(time.monotonic_ns(), time.monotonic_ns()) == 0
    assert meter.counted_all() == {}


def test_the_whole_table_is_swept(meter: Meter, sweeper: Sweeper) -> None:
    """Whatever part of it one run of the program looks at, and however many are silent."""
    count = meter.programs.limits.exchanges // 4
    for _ in range(count):
        Conversation(Wire(meter), Frame(client_port=fresh_port())).ask(request(), 0)
    assert meter.programs.in_flight() == count
    later_ns = time.monotonic_ns() + 2 * IDLE_NS
    assert sweeper.sweep(later_ns) == count
    assert meter.programs.in_flight() == 0
    assert len(meter.records(count)) == count
