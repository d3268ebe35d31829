# SPDX-License-Identifier: Apache-2.0
"""What two processors do at once, one within the other's program, as host_programs.py has them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from host_programs import Event, HostPrograms, Outcome, Passing, SocketState, StateChange, build
from support.frames import ACK, Frame, packed

from otelbpf.kernel.records import Counter, FixedLength, Stamp

pytestmark = pytest.mark.impure  # gcc

ASKED = b"GET /one HTTP/1.1\r\nHost: a\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
ONE, OTHER = Frame(client_port=40001), Frame(client_port=40002)
HEADERS = 14 + 20 + 20


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostPrograms]:
    running = HostPrograms(build(tmp_path_factory.mktemp("host")))
    yield running
    running.close()


def ask(frame: Frame, data: bytes = ASKED, at: int = 0, answered: int = 0, **how: int) -> Passing:
    """A client's segment; unless told so, the card has not seen it."""
    octets = bytes(replace(frame, payload=data, seq=1000 + at, ack_seq=5000 + answered, flags=ACK))
    return Passing(**({"event": Event.TO_SERVER, "frame": octets, "linear": HEADERS} | how))


def answer(frame: Frame, asked: bytes = ASKED, at: int = 0) -> Passing:
    octets = bytes(
        replace(frame, payload=ANSWER, seq=5000 + at, ack_seq=1000 + len(asked), outbound=True)
    )
    return Passing(Event.FROM_SERVER, octets, HEADERS)


def whole(frame: Frame) -> list[Passing]:
    return [ask(frame), answer(frame), ask(frame, b"", len(ASKED), len(ANSWER))]


def changes(frame: Frame, earlier: SocketState, state: SocketState, within: int = 0) -> StateChange:
    server, client = (
        (packed(frame.server), frame.server_port), (packed(frame.client), frame.client_port),
    )  # fmt: skip
    return StateChange(earlier, state, server, client, 1000, 5000, within=within)


def paths(outcome: Outcome) -> list[bytes]:
    return sorted(record["http1"]["request_line"].split()[1] for record in outcome.records)


#: Of the table, and how many connections it has room for.
SETS = 64
PLACES = SETS * FixedLength.WAYS


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostPrograms]:
    """With a table of more than one set."""
    running = HostPrograms(build(tmp_path_factory.mktemp("many")), SETS)
    yield running
    running.close()


def drawn(count: int) -> list[Frame]:
    """Of so many connections, always the same."""
    ports = random.Random(1).sample(range(1024, 60_000), count)
    return [Frame(client_port=port) for port in ports]


@pytest.mark.parametrize(("share", "most"), [(0.5, 0), (0.75, 0.02), (1.0, 0.1)])
def test_connections_have_a_place_until_the_table_is_nearly_full(
    many: HostPrograms, share: float, most: float
) -> None:
    """In the second of two sets, where the first one is full.

    With one set for each 0.8%, 5.2% and 14% had none, and took the places of others.
    """
    frames = drawn(int(share * PLACES))
    opened = [changes(frame, SocketState.CLOSE, SocketState.ESTABLISHED) for frame in frames]
    closed = [changes(frame, SocketState.ESTABLISHED, SocketState.CLOSE) for frame in frames]
    outcome = many.play(opened + closed)
    evicted = outcome.counts.get(Counter.CONNECTIONS_EVICTED, 0)
    assert evicted <= most * len(frames)
    assert outcome.counts[Counter.CONNECTIONS_OPENED] == len(frames)
    # Each that was not evicted was found again when it ended, and has given its place back.
    assert outcome.counts[Counter.CONNECTIONS_CLOSED] == len(frames) - evicted
    again = many.play(2 * (opened + closed))
    assert again.counts.get(Counter.CONNECTIONS_EVICTED, 0) == 2 * evicted
    assert again.counts[Counter.CONNECTIONS_CLOSED] == 2 * (len(frames) - evicted)


def test_requests_of_connections_in_their_second_set(many: HostPrograms) -> None:
    frames = drawn(PLACES // 2)
    happened: list[Passing | StateChange] = [
        changes(frame, SocketState.CLOSE, SocketState.ESTABLISHED) for frame in frames
    ]
    # As many requests as have room until the agent reads them; those that came last have found
    # their first set full.
    for frame in frames[-64:]:
        happened += whole(frame)
    outcome = many.play(happened)
    assert len(outcome.records) == 64
    assert outcome.lost == 0
    ports = {int(record["peer_port"]) for record in outcome.records}
    assert ports == {frame.client_port for frame in frames[-64:]}


def test_two_processors_make_one_connection(programs: HostPrograms) -> None:
    """Neither has found it. Once it has ended, no twin of it answers for the next one."""
    opened = changes(ONE, SocketState.CLOSE, SocketState.ESTABLISHED)
    closed = changes(ONE, SocketState.ESTABLISHED, SocketState.CLOSE)
    outcome = programs.play([replace(opened, within=1), opened, *whole(ONE), closed, *whole(ONE)])
    assert outcome.counts[Counter.SEEN] == 1
    assert outcome.counts[Counter.SEGMENTS_STRAY] == 1
    assert len(outcome.records) == 1


@pytest.mark.parametrize("within", [1, 2])
def test_another_connection_has_got_the_place_meanwhile(
    programs: HostPrograms, within: int
) -> None:
    """A segment of a connection is on its way when that ends, and the next one begins."""
    late = ask(ONE, b"POST /late HTTP/1.1\r\nContent-Length: 999\r\n\r\n", len(ASKED), len(ANSWER))
    outcome = programs.play(
        [
            changes(ONE, SocketState.CLOSE, SocketState.ESTABLISHED),
            *whole(ONE),
            changes(ONE, SocketState.CLOSE_WAIT, SocketState.CLOSE, within),
            changes(OTHER, SocketState.CLOSE, SocketState.ESTABLISHED, within),
            late,
            *whole(OTHER),
        ]
    )
    of_other = [r for r in outcome.records if r["peer_port"] == OTHER.client_port]
    assert len(of_other) == 1
    assert of_other[0]["request_bytes"] == len(ASKED)
    assert of_other[0]["response_bytes"] == len(ANSWER)
    assert paths(outcome).count(b"/one") == 2
    assert not any(
        record["peer_port"] == OTHER.client_port and b"/late" in record["http1"]["request_line"]
        for record in outcome.records
    )


def test_who_comes_second_lets_nobody_elses_lock_go(programs: HostPrograms) -> None:
    """The first one is stopped for as long as the second one waits, and so is a third."""
    head, rest = ASKED[:20], ASKED[20:]
    outcome = programs.play(
        [
            changes(ONE, SocketState.CLOSE, SocketState.ESTABLISHED),
            ask(ONE, rest, 20, within=2),
            ask(ONE, rest, 20, within=2),
            ask(ONE, head),
            ask(ONE, rest, 20),
            answer(ONE),
            ask(ONE, b"", len(ASKED), len(ANSWER)),
        ]
    )
    assert outcome.counts[Counter.PACKETS_UNREAD] == 2
    (record,) = outcome.records
    assert record["request_bytes"] == len(ASKED)
    assert record["status"] == 200


def test_the_card_has_the_next_segment_before_the_last_one_is_read(programs: HostPrograms) -> None:
    """As with RPS: what came when is told by the card's processor, and asked for by another."""
    head, rest = ASKED[:20], ASKED[20:]
    arrives = {"event": Event.ARRIVES, "linear": HEADERS + len(head)}
    outcome = programs.play(
        [
            changes(ONE, SocketState.CLOSE, SocketState.ESTABLISHED),
            ask(ONE, head, **arrives),
            ask(ONE, rest, 20, within=2, event=Event.ARRIVES, linear=HEADERS + len(rest)),
            ask(ONE, head),
            ask(ONE, rest, 20),
            answer(ONE),
            ask(ONE, b"", len(ASKED), len(ANSWER)),
        ]
    )
    (record,) = outcome.records
    assert record["stamp_ktime_ns"][Stamp.NIC]
    assert record["stamp_ktime_ns"][Stamp.NIC_LAST] > record["stamp_ktime_ns"][Stamp.NIC]


@pytest.mark.parametrize("linear", [14, 20, 34, 50])
def test_headers_in_a_page_of_their_own(programs: HostPrograms, linear: int) -> None:
    opened = changes(ONE, SocketState.CLOSE, SocketState.ESTABLISHED)
    outcome = programs.play([opened, *(replace(each, linear=linear) for each in whole(ONE))])
    assert len(outcome.records) == 1
    assert outcome.counts.get(Counter.PACKETS_UNPARSED, 0) == 0
