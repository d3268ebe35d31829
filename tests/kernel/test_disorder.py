# SPDX-License-Identifier: Apache-2.0
"""Segments that overtake each other: nothing is lost by it, and the record says how many did."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator

import numpy as np
import pytest
from conversation import Conversation, cut, early
from frames import Wire, fresh_port
from messages import CHUNKED, OK, chunks, request
from meter import UNKNOWN, WHOLE, Meter, flags, stages, stamps
from support.frames import ACK, FIN, Frame

from otelbpf.host.interfaces import find_interfaces
from otelbpf.kernel.records import Counter, RequestFlag, Stamp

HEADERS = {"User-Agent": "overtaken/1", "Host": "disorder.example"}
GET = request("GET", "/head", HEADERS)
UPLOAD = request("POST", "/upload", HEADERS, body=b"0123456789" * 30)
HEAD = len(UPLOAD) - 300
CHUNKY = request("PUT", "/chunky", HEADERS | CHUNKED) + chunks(
    [b"first", b"x" * 40, b"and", b"the last"]
)
CHUNKY_HEAD = len(request("PUT", "/chunky", HEADERS | CHUNKED))
BEFORE = request(target="/before")
PIECES_MAX, PIECE_MAX = 32, 2048  # bpf/state/disorder.h


@pytest.fixture(
    params=[(1000, 1), (2**32 - 150, 1), (2**32 - 4000, 1), (1000, 2)],
    ids=["", "wrap soon", "wrap later", "at two interfaces"],
)
def talk(meter: Meter, request: pytest.FixtureRequest) -> Iterator[Conversation]:
    """A connection on which one request has been answered."""
    start, interfaces = request.param
    seq = start - len(BEFORE)
    both = find_interfaces((meter.interface, "lo"), meter.netns).values()
    wire = Wire(meter, *(both if interfaces == 2 else ()))
    talk = Conversation(
        wire, Frame(client_port=fresh_port(), seq=seq, ack_seq=seq), interfaces=interfaces
    )
    talk.ask(BEFORE, 0)
    talk.answer(OK, 0)
    talk.ask(b"", len(BEFORE), acknowledging=len(OK))
    meter.record()
    yield talk
    meter.sweep()


def finish(talk: Conversation, meter: Meter, stream: bytes, count: int) -> np.ndarray:
    """Answers what the stream asked, and one request more to see that all went on as it should.

    Returns:
        The stream's records, in the order in which they were asked.
    """
    asked = len(BEFORE + stream)
    talk.answer(count * OK, len(OK), acknowledging=asked)
    talk.ask(GET, asked, acknowledging=(1 + count) * len(OK))
    talk.answer(OK, (1 + count) * len(OK), acknowledging=asked + len(GET))
    talk.ask(b"", asked + len(GET), acknowledging=(2 + count) * len(OK))
    *records, following = np.sort(meter.records(count + 1), order="ordinal")
    assert meter.losses() == {}
    assert following["http1"]["request_line"] == b"GET /head HTTP/1.1"
    assert flags(following) == WHOLE
    assert (following["out_of_order"], following["request_retransmits"]) == (0, 0)
    for record in records:
        assert flags(record) & WHOLE == WHOLE
        assert record["status"] == 200
    return np.array(records)


def deliver(talk: Conversation, order: list[tuple[int, bytes]]) -> None:
    for at, data in order:
        talk.ask(data, len(BEFORE) + at)


def orders(count: int) -> list[tuple[int, ...]]:
    return list(itertools.permutations(range(count)))


@pytest.mark.parametrize("order", [*orders(2), *orders(3)])
@pytest.mark.parametrize("first", [1, 8, GET.index(b"\n"), len(GET) - 3])
def test_a_head_in_segments_in_every_order(
    talk: Conversation, meter: Meter, order: tuple[int, ...], first: int
) -> None:
    places = [first, first + 2][: len(order) - 1]
    segments = [cut(GET, *places)[number] for number in order]
    deliver(talk, segments)
    (record,) = finish(talk, meter, GET, 1)
    assert record["http1"]["request_line"] == b"GET /head HTTP/1.1"
    assert record["http1"]["host"] == b"disorder.example"
    assert record["http1"]["user_agent"] == b"overtaken/1"
    assert record["request_bytes"] == len(GET)
    assert record["out_of_order"] == early(segments)
    assert record["request_retransmits"] == 0


@pytest.mark.parametrize("order", orders(4))
@pytest.mark.parametrize(
    "places",
    [
        (CHUNKY_HEAD, CHUNKY_HEAD + 10, CHUNKY_HEAD + 20),
        (CHUNKY_HEAD - 1, CHUNKY_HEAD + 1, len(CHUNKY) - 5),
        (10, CHUNKY_HEAD + 12, len(CHUNKY) - 1),
    ],
)
def test_a_chunked_body_in_segments_in_every_order(
    talk: Conversation, meter: Meter, order: tuple[int, ...], places: tuple[int, ...]
) -> None:
    segments = [cut(CHUNKY, *places)[number] for number in order]
    deliver(talk, segments)
    (record,) = finish(talk, meter, CHUNKY, 1)
    assert flags(record) == WHOLE | RequestFlag.REQUEST_CHUNKED
    assert record["http1"]["request_line"] == b"PUT /chunky HTTP/1.1"
    assert record["request_bytes"] == len(CHUNKY)
    assert record["request_body_bytes"] == 56
    assert record["out_of_order"] == early(segments)
    assert record["request_retransmits"] == 0


@pytest.mark.parametrize("order", orders(4))
@pytest.mark.parametrize(
    "places",
    [
        (HEAD, HEAD + 100, HEAD + 200),
        (HEAD - 1, HEAD + 1, len(UPLOAD) - 1),
        (10, HEAD - 10, HEAD + 10),
    ],
)
def test_a_body_of_known_length_in_segments_in_every_order(
    talk: Conversation, meter: Meter, order: tuple[int, ...], places: tuple[int, ...]
) -> None:
    segments = [cut(UPLOAD, *places)[number] for number in order]
    deliver(talk, segments)
    (record,) = finish(talk, meter, UPLOAD, 1)
    assert flags(record) == WHOLE
    assert record["request_bytes"] == len(UPLOAD)
    assert record["request_body_bytes"] == 300
    assert record["out_of_order"] == early(segments)
    assert record["request_retransmits"] == 0


STREAM = UPLOAD + CHUNKY + GET + UPLOAD
KINDS = [(UPLOAD, 300), (CHUNKY, 56), (GET, 0), (UPLOAD, 300)]


@pytest.mark.parametrize("seed", range(40))
def test_pipelined_requests_in_segments_in_any_order(
    talk: Conversation, meter: Meter, seed: int
) -> None:
    """Cut and shuffled at random, with some segments twice and some that overlap.

    Not at two interfaces: there the socket is found, which takes nothing here, and of several
    requests that come again nobody knows then which are read.
    """
    chance = random.Random(seed)
    places = sorted(chance.sample(range(1, len(STREAM)), chance.choice((1, 3, 10, 20))))
    segments = cut(STREAM, *places)
    for _ in range(chance.choice((0, 0, 3)) if talk.interfaces == 1 else 0):
        at = chance.randrange(len(STREAM))
        segments.append((at, STREAM[at : at + chance.randrange(1, 400)]))
    if chance.random() < 0.5:
        chance.shuffle(segments)
    else:  # only what is near each other changes places
        segments.sort(key=lambda segment: segment[0] + chance.randrange(300))
    deliver(talk, segments)
    records = finish(talk, meter, STREAM, 4)
    assert records["http1"]["request_line"].tolist() == [k.split(b"\r\n")[0] for k, _ in KINDS]
    assert records["request_bytes"].tolist() == [len(k) for k, _ in KINDS]
    assert records["request_body_bytes"].tolist() == [body for _, body in KINDS]
    seen: set[int] = set()
    repeats = out_of_order = 0
    for at, data in segments:
        mine = set(range(at, at + len(data)))
        repeats += bool(mine & seen)
        # What brings nothing new is a repeat, and no more than that.
        out_of_order += bool(mine - seen) and not set(range(at)) <= seen
        seen |= mine
    assert records["out_of_order"].sum() == out_of_order
    assert records["request_retransmits"].sum() == repeats


@pytest.mark.parametrize("times", [1, 2, 5])
def test_an_early_segment_that_comes_again_is_a_repeat(
    talk: Conversation, meter: Meter, times: int
) -> None:
    head, tail = cut(GET, 20)
    deliver(talk, [tail, *[tail] * times, head])
    (record,) = finish(talk, meter, GET, 1)
    assert record["request_bytes"] == len(GET)
    assert record["out_of_order"] == 1
    assert record["request_retransmits"] == times


@pytest.mark.parametrize("kept", [(20, 40), (20, 41), (40, len(GET)), (60, len(GET))])
@pytest.mark.parametrize("sent_again", [(0, 40), (10, 50), (0, len(GET)), (19, 30)])
def test_what_is_sent_again_may_be_cut_in_other_places(
    talk: Conversation, meter: Meter, kept: tuple[int, int], sent_again: tuple[int, int]
) -> None:
    pieces = [(10, 60), kept, sent_again]
    deliver(talk, [(first, GET[first:last]) for first, last in [(0, 5), *pieces, (0, len(GET))]])
    (record,) = finish(talk, meter, GET, 1)
    assert record["http1"]["request_line"] == b"GET /head HTTP/1.1"
    assert record["http1"]["user_agent"] == b"overtaken/1"
    assert record["request_bytes"] == len(GET)


def long_head(length: int) -> bytes:
    """A head of at least so many bytes, in lines none of which is long."""
    lines = {f"x-{number}": "y" * 100 for number in range(length // 107 + 1)}
    return request("POST", "/long", HEADERS | lines, b"0123456789")


def keep_back_the_first(data: bytes, size: int, count: int) -> list[tuple[int, bytes]]:
    """So many segments of so many bytes that come before the data's first ten bytes do."""
    return [
        *((at, data[at : at + size]) for at in range(10, 10 + size * count, size)),
        (0, data[:10]),
    ]


@pytest.mark.guest
@pytest.mark.parametrize("size", [1, 100])
def test_as_many_early_segments_as_there_are_places_for(
    talk: Conversation, meter: Meter, size: int
) -> None:
    asked = long_head(PIECES_MAX * size + 10)
    segments = keep_back_the_first(asked, size, PIECES_MAX)
    rest = 10 + size * PIECES_MAX
    deliver(talk, [*segments, (rest, asked[rest:])])
    (record,) = finish(talk, meter, asked, 1)
    assert record["http1"]["request_line"] == b"POST /long HTTP/1.1"
    assert record["request_bytes"] == len(asked)
    assert record["request_body_bytes"] == 10
    assert record["out_of_order"] == PIECES_MAX
    assert record["request_retransmits"] == 0


def lose_and_go_on(talk: Conversation, meter: Meter, asked: bytes, lost: int) -> None:
    """The requests in flight are lost, and those that follow until one is certain, not told."""
    assert meter.losses() == ({Counter.LOST_PARSER: lost} if lost else {})
    assert meter.in_flight() == 0
    at, answered = len(BEFORE) + len(asked), 10 * len(OK)
    for _ in range(UNKNOWN + 1):
        talk.ask(GET, at, acknowledging=answered)
        at += len(GET)
        talk.answer(OK, answered, acknowledging=at)
        answered += len(OK)
    talk.ask(b"", at, acknowledging=answered)
    record = meter.record()
    assert record["http1"]["request_line"] == b"GET /head HTTP/1.1"
    assert flags(record) == WHOLE
    assert (record["out_of_order"], record["request_retransmits"]) == (0, 0)


@pytest.mark.parametrize(
    ("size", "places"), [(1, 1), (PIECE_MAX, 1), (PIECE_MAX + 1, 2), (3000, 2)]
)
@pytest.mark.parametrize("begun", [5, 0], ids=["begun", "not begun"])
def test_early_segments_that_do_not_fit_lose_the_request_and_say_so(
    talk: Conversation, meter: Meter, size: int, places: int, begun: int
) -> None:
    fit = PIECES_MAX // places
    asked = long_head((fit + 1) * size + 10)
    if begun:
        deliver(talk, [(0, asked[:begun])])
    *early_ones, first = keep_back_the_first(asked, size, fit + 1)
    deliver(talk, early_ones[:-1])
    assert meter.losses() == {}
    deliver(talk, early_ones[-1:])
    assert meter.counted(Counter.LOST_PARSER) == (1 if begun else 0)
    # What comes now is not understood any more, be it the missing bytes.
    deliver(talk, [first, early_ones[0]] if begun else early_ones[:2])
    lose_and_go_on(talk, meter, asked, 1 if begun else 0)


def test_what_takes_too_many_tail_calls_goes_on_with_the_next_segment(
    talk: Conversation, meter: Meter
) -> None:
    """Of a head 1 KiB is read in a run, so that these pieces take two runs each."""
    asked = long_head(20 * PIECE_MAX)
    segments = keep_back_the_first(asked, PIECE_MAX, 19)
    rest = 10 + 19 * PIECE_MAX
    deliver(talk, [*segments, (rest, asked[rest:-5]), (len(asked) - 5, asked[-5:])])
    (record,) = finish(talk, meter, asked, 1)
    assert record["request_bytes"] == len(asked)
    assert record["request_body_bytes"] == 10
    assert record["out_of_order"] == 19


# At a second interface the last segment would be the next one, too, and go on with it.
@pytest.mark.parametrize("talk", [(1000, 1)], ids=[""], indirect=True)
def test_what_is_never_read_is_lost_once_it_is_acknowledged(
    talk: Conversation, meter: Meter
) -> None:
    asked = long_head(20 * PIECE_MAX)[: 10 + 20 * PIECE_MAX]
    deliver(talk, keep_back_the_first(asked, PIECE_MAX, 20))
    assert meter.losses() == {}
    talk.answer(b"H", len(OK), acknowledging=len(BEFORE + asked) - 1)
    lose_and_go_on(talk, meter, asked, 1)


@pytest.mark.parametrize("first", [5, 0], ids=["begun", "not begun"])
def test_bytes_that_went_another_way_are_not_waited_for(
    talk: Conversation, meter: Meter, first: int
) -> None:
    """The server acknowledges what the programs have not seen."""
    if first:
        deliver(talk, [(0, GET[:first])])
    deliver(talk, [(first + 10, GET[first + 10 :])])
    talk.answer(b"", len(OK), acknowledging=len(BEFORE) + first, flags=ACK | FIN)
    assert meter.losses() == {}
    talk.answer(OK, len(OK), acknowledging=len(BEFORE + GET))
    lose_and_go_on(talk, meter, GET, 1 if first else 0)


def test_a_hole_in_a_body_that_is_acknowledged_is_none(talk: Conversation, meter: Meter) -> None:
    """Else all that comes after it would seem to be early."""
    (head, _, *rest) = cut(UPLOAD, HEAD + 10, HEAD + 20, HEAD + 30, HEAD + 40)
    deliver(talk, [head, rest[0]])
    talk.answer(b"H", len(OK), acknowledging=len(BEFORE) + rest[0][0] + 10)
    deliver(talk, rest[1:])
    asked = len(BEFORE + UPLOAD)
    talk.answer(OK[1:], len(OK) + 1, acknowledging=asked)
    talk.ask(b"", asked, acknowledging=2 * len(OK))
    record = meter.record()
    assert flags(record) == WHOLE
    assert record["request_bytes"] == len(UPLOAD)
    assert record["out_of_order"] == 1


def test_more_holes_than_are_known_of_do_no_harm(talk: Conversation, meter: Meter) -> None:
    body = bytes(100 * 40)
    asked = request("POST", body=body)
    segments = cut(asked, *range(len(asked) - len(body), len(asked), 40))
    deliver(talk, [segments[0], *segments[2::2], *segments[1::2]])
    (record,) = finish(talk, meter, asked, 1)
    assert flags(record) == WHOLE
    assert record["request_bytes"] == len(asked)
    assert record["request_body_bytes"] == len(body)


@pytest.mark.parametrize("asked", [GET, UPLOAD, CHUNKY])
def test_an_early_segment_that_ends_the_connection(
    talk: Conversation, meter: Meter, asked: bytes
) -> None:
    head, tail = cut(asked, len(asked) - 12)
    talk.ask(tail[1], len(BEFORE) + tail[0], flags=ACK | FIN)
    talk.ask(head[1], len(BEFORE) + head[0])
    talk.answer(OK, len(OK), acknowledging=len(BEFORE + asked) + 1)
    talk.ask(b"", len(BEFORE + asked) + 1, acknowledging=2 * len(OK))
    record = meter.record()
    assert flags(record) & WHOLE == WHOLE
    assert record["request_bytes"] == len(asked)
    assert record["out_of_order"] == 1


@pytest.mark.guest
def test_stamps_are_those_of_the_segment_that_brought_the_byte(
    talk: Conversation, meter: Meter
) -> None:
    """Of three requests the last comes first."""
    stream = UPLOAD + GET + CHUNKY
    middle = len(UPLOAD)
    last = middle + len(GET)
    order = cut(stream, middle - 7, middle, last)
    deliver(talk, [order[number] for number in (3, 2, 1, 0)])
    records = finish(talk, meter, stream, 3)
    for record, first_byte, last_byte in zip(
        records, (0, middle, last), (middle - 7, middle, last), strict=True
    ):
        at = stamps(record)
        begin, end = talk.handed_over[len(BEFORE) + first_byte]
        assert begin <= at[Stamp.NIC] <= at[Stamp.TC] <= end
        if last_byte == first_byte:
            assert Stamp.NIC_LAST not in at
        else:
            begin, end = talk.handed_over[len(BEFORE) + last_byte]
            assert begin <= at[Stamp.NIC_LAST] <= end
            assert at[Stamp.NIC_LAST] < at[Stamp.NIC]
        # Only the socket's own hooks could know these.
        assert Stamp.TCP not in at
        assert Stamp.QUEUED not in at
        assert sum(stages(record).values()) == max(at.values()) - min(at.values())
    assert stamps(records[2])[Stamp.TC] < stamps(records[1])[Stamp.TC]
    assert stamps(records[1])[Stamp.TC] < stamps(records[0])[Stamp.TC]


@pytest.mark.guest
def test_packets_that_overtook_each_other_before_they_were_merged(
    talk: Conversation, meter: Meter
) -> None:
    """XDP sees them one by one, TC only later and in fewer segments."""
    first, second, third = cut(3 * GET, len(GET), 2 * len(GET))
    times = {}
    for at, data in (second, third, first):
        times[at] = time.monotonic_ns()
        talk.wire.arrive(talk.asked(data, len(BEFORE) + at))
    end = time.monotonic_ns()
    talk.wire.take(talk.asked(second[1] + third[1], len(BEFORE) + second[0]))
    talk.wire.take(talk.asked(first[1], len(BEFORE) + first[0]))
    records = finish(talk, meter, 3 * GET, 3)
    one, two, three = (stamps(record)[Stamp.NIC] for record in records)
    assert times[second[0]] <= two <= times[third[0]] <= three <= times[first[0]] <= one <= end
    assert records["out_of_order"].tolist() == [0, 1, 0]


def test_arrivals_that_are_forgotten_in_the_disorder_are_absent(
    talk: Conversation, meter: Meter
) -> None:
    """Ten packets come in the wrong order before TC takes the first of them."""
    segments = cut(10 * GET, *range(len(GET), 10 * len(GET), len(GET)))
    frames = [talk.asked(data, len(BEFORE) + at) for at, data in segments]
    times = {}
    for number in (9, *range(9)):
        begin = time.monotonic_ns()
        talk.wire.arrive(frames[number])
        times[number] = (begin, time.monotonic_ns())
    for number in (9, *range(9)):
        talk.wire.take(frames[number])
    records = finish(talk, meter, 10 * GET, 10)
    known = [number for number, r in enumerate(records) if Stamp.NIC in stamps(r)]
    assert len(known) >= 8
    for number in known:
        begin, end = times[number]
        assert begin <= stamps(records[number])[Stamp.NIC] <= end


def test_when_an_early_segment_came_is_known_however_many_come_until_its_turn(
    talk: Conversation, meter: Meter
) -> None:
    first, second, *others = cut(15 * GET, *range(len(GET), 15 * len(GET), len(GET)))
    deliver(talk, [second, *others])
    deliver(talk, [first])
    records = finish(talk, meter, 15 * GET, 15)
    for record, (at, _) in zip(records, [first, second, *others], strict=True):
        begin, end = talk.handed_over[len(BEFORE) + at]
        assert begin <= stamps(record)[Stamp.NIC] <= stamps(record)[Stamp.TC] <= end


def test_so_many_connections_in_disorder_that_the_oldest_are_forgotten(meter: Meter) -> None:
    """Each is a record or lost, and on each a later request is a record again."""
    asked = long_head(1000)
    count = 150
    talks = []
    for _ in range(count):
        talk = Conversation(Wire(meter), Frame(client_port=fresh_port()))
        talk.ask(asked[:20], 0)
        for at in range(21, 21 + 30):
            talk.ask(asked[at : at + 1], at)
        talks.append(talk)
    assert meter.counted(Counter.SEEN) == count
    for talk in talks:
        talk.ask(asked[20:21], 20)
        talk.ask(asked[51:], 51)
        talk.answer(OK, 0, acknowledging=len(asked))
        for number in range(UNKNOWN):
            at, answered = len(asked) + number * len(GET), (1 + number) * len(OK)
            talk.ask(GET, at, acknowledging=answered)
            talk.answer(OK, answered, acknowledging=at + len(GET))
        talk.ask(b"", at + len(GET), acknowledging=answered + len(OK))
    lost = meter.counted(Counter.LOST_PARSER)
    assert 0 < lost < count
    assert meter.losses() == {Counter.LOST_PARSER: lost}
    # The answer to what was lost is the first that is certain.
    told = (count - lost) * UNKNOWN + lost * (UNKNOWN - 1)
    records = meter.records(count - lost + told)
    lines = records["http1"]["request_line"].tolist()
    assert lines.count(b"GET /head HTTP/1.1") == told
    whole = records[records["http1"]["request_line"] == b"POST /long HTTP/1.1"]
    assert set(whole["request_bytes"].tolist()) == {len(asked)}
    assert set(whole["out_of_order"].tolist()) == {30}
    # And those are forgotten rather than what is kept now.
    for _ in range(30):
        talk = Conversation(Wire(meter), Frame(client_port=fresh_port()))
        talk.ask(asked[:20], 0)
        for at in range(21, 21 + PIECES_MAX):
            talk.ask(asked[at : at + 1], at)
        talk.ask(asked[20:21], 20)
        talk.ask(asked[21 + PIECES_MAX :], 21 + PIECES_MAX)
        talk.answer(OK, 0, acknowledging=len(asked))
        talk.ask(b"", len(asked), acknowledging=len(OK))
        assert meter.record()["request_bytes"] == len(asked)
