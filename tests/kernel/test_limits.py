# SPDX-License-Identifier: Apache-2.0
"""Tables and rings that are too small: whatever does not fit is counted, to the last one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from conversation import Conversation
from frames import Wire, fresh_port
from lab import Lab, Pair, laboratory
from messages import OK, request, response
from meter import WHOLE, Meter, flags, load
from support.frames import Frame

from otelbpf.kernel.limits import Limits
from otelbpf.kernel.records import MAPS, Counter

CONNECTIONS = 8
RING = 8
LIMITS = Limits(connections=CONNECTIONS, ring=RING)
# So that of some thousand connections no nine share a set of the table, which has room for eight.
ROOMY = Limits(connections=1 << 16, ring=4_096)
SLOTS = LIMITS.exchanges
HALF_LINE = b"GET /%d"
LINES_KEPT = MAPS["carries"].max_entries


@contextlib.contextmanager
def loaded(limits: Limits) -> Iterator[Meter]:
    with laboratory() as lab:
        meter = load(lab, limits)
        try:
            with meter.attached():
                yield meter
        finally:
            meter.close()


@pytest.fixture(scope="module")
def _small_meter() -> Iterator[Meter]:
    with loaded(LIMITS) as meter:
        yield meter


@pytest.fixture
def roomy() -> Iterator[Meter]:
    """Programs with room for more connections than there are."""
    with loaded(ROOMY) as meter:
        meter.begin()
        yield meter
        meter.end()


@pytest.fixture
def small(_small_meter: Meter) -> Iterator[Meter]:
    """Programs that can remember very little."""
    _small_meter.begin()
    yield _small_meter
    _small_meter.end()


def test_a_full_ring_loses_what_comes_after(small: Meter) -> None:
    pair = small.lab.connect()
    for number in range(23):
        pair.exchange(request(target=f"/{number}"), OK)
    small.wait_for(Counter.LOST_RING_FULL, 23 - RING)
    assert small.counted(Counter.SUBMITTED) == RING
    records = small.records(RING)
    assert records["ordinal"].tolist() == list(range(RING))
    # Once it was read there is room again, and nothing is mixed up at its end.
    for number in range(50):
        pair.exchange(request(target=f"/again/{number}"), OK)
        record = small.record()
        assert record["http1"]["request_line"] == f"GET /again/{number} HTTP/1.1".encode()
        assert record["ordinal"] == 23 + number
    assert small.losses() == {Counter.LOST_RING_FULL: 23 - RING}


def test_the_ring_is_read_in_batches_of_any_size(small: Meter) -> None:
    pair = small.lab.connect()
    ordinal = 0
    for size in (1, RING, 5, RING, RING, 7, 2, RING):
        for _ in range(size):
            pair.exchange(request(), OK)
        expected = list(range(ordinal, ordinal + size))
        assert small.records(size)["ordinal"].tolist() == expected
        ordinal += size


def test_requests_beyond_the_table_are_lost_and_counted(small: Meter) -> None:
    """On one connection, so that only the table of requests is too small."""
    pair = small.lab.connect()
    other = small.lab.connect()
    for _ in range(SLOTS):
        pair.ask(request())
    for _ in range(7):
        other.ask(request())
    small.wait_for(Counter.LOST_TABLE_FULL, 7)
    # What was not stored is answered all the same, and the connection goes on.
    for _ in range(7):
        other.answer(OK)
    for number in range(SLOTS):
        pair.answer(OK)
        assert small.records(1, others_in_flight=SLOTS - number - 1)[0]["ordinal"] == number
    other.exchange(request(target="/room"), OK)
    record = small.record()
    assert (record["ordinal"], record["http1"]["request_line"]) == (7, b"GET /room HTTP/1.1")
    assert flags(record) == WHOLE
    assert small.losses() == {Counter.LOST_TABLE_FULL: 7}


def test_a_slot_that_another_connection_has_now_is_not_this_ones(small: Meter) -> None:
    """Swept, then taken by somebody else's request of the same ordinal: answers do not mix."""
    # No socket is known of it: one that is open would keep its request.
    swept = Conversation(Wire(small), Frame(client_port=fresh_port()))
    between = small.lab.connect()
    swept.ask(request(target="/swept"), 0)
    small.sweep()
    assert small.record()["http1"]["request_line"] == b"GET /swept HTTP/1.1"
    between.ask((SLOTS - 1) * request())
    now = small.lab.connect()
    now.ask(request(target="/now"))  # only that slot is left
    assert small.slots_in_use() == SLOTS
    swept.answer(OK, 0)
    assert small.in_flight() == SLOTS
    created = response(201, body=b"created")
    now.answer(created)
    record = small.record(others_in_flight=SLOTS - 1)
    assert record["http1"]["request_line"] == b"GET /now HTTP/1.1"
    assert (record["status"], record["response_bytes"]) == (201, len(created))
    between.answer((SLOTS - 1) * OK)
    small.wait_for(Counter.LOST_RING_FULL, SLOTS - 1 - RING)
    small.records(RING)


def test_connections_beyond_the_table_are_evicted_and_their_requests_counted(
    small: Meter,
) -> None:
    count = 4 * CONNECTIONS
    pairs = [small.lab.connect() for _ in range(count)]
    for pair in pairs:
        pair.ask(request())
    assert small.counted(Counter.SEEN) == count
    assert small.counted(Counter.LOST_TABLE_FULL) == count - SLOTS
    for pair in pairs:
        pair.answer(OK)
    small.lab.close_connections()
    small.sweep()
    assert small.in_flight() == 0
    evicted = small.counted(Counter.LOST_EVICTED)
    assert evicted > 0
    small.records(small.counted(Counter.SUBMITTED))
    ring_full = small.counted(Counter.LOST_RING_FULL)
    assert small.counted(Counter.SUBMITTED) == SLOTS - evicted - ring_full

    # Each of their slots has come back.
    assert small.slots_in_use() == 0
    pair = small.lab.connect()
    pair.ask(SLOTS * request())
    assert small.slots_in_use() == SLOTS
    assert small.counted(Counter.LOST_TABLE_FULL) == count - SLOTS
    for number in range(SLOTS):
        pair.answer(OK)
        record = small.records(1, others_in_flight=SLOTS - number - 1)[0]
        assert flags(record) & WHOLE == WHOLE


def test_a_thousand_connections_one_after_another_leave_no_trace(small: Meter) -> None:
    for number in range(1000):
        pair = small.lab.connect()
        pair.exchange(request(target=f"/{number}"), OK)
        small.lab.close_connections()
        if number % RING == RING - 1:
            small.records(RING)
    small.records(1000 % RING)
    assert small.losses() == {}
    assert small.counted(Counter.CONNECTIONS_OPENED) == 1000
    small.wait_for(Counter.CONNECTIONS_CLOSED, 1000)


def _half_asked(lab: Lab, count: int) -> list[Pair]:
    """Connections, each with a request of which the first half of a line has come."""
    pairs = [lab.connect() for _ in range(count)]
    for number, pair in enumerate(pairs):
        pair.send_segment(HALF_LINE % number)
    return pairs


def test_lines_of_many_connections_wait_for_their_ends(roomy: Meter) -> None:
    """However many come after them."""
    pairs = _half_asked(roomy.lab, 1500)
    for pair in pairs:
        pair.send_segment(b" HTTP/1.1\r\nHost: x\r\n\r\n")
    for number, pair in enumerate(pairs):
        pair.answer(OK)
        assert roomy.records(1, others_in_flight=len(pairs) - number - 1)
    assert roomy.losses() == {}


def test_lines_whose_connections_end_leave_no_trace(roomy: Meter) -> None:
    lines = 0
    while lines <= LINES_KEPT:
        lines += len(_half_asked(roomy.lab, 1000))
        roomy.lab.close_connections()
        roomy.wait_for(Counter.LOST_CLOSED, lines)
    pair = roomy.lab.connect()
    pair.send_segment(HALF_LINE % 0)
    pair.send_segment(b" HTTP/1.1\r\n\r\n")
    pair.answer(OK)
    assert roomy.record()["http1"]["request_line"] == b"GET /0 HTTP/1.1"
