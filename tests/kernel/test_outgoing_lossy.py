# SPDX-License-Identifier: Apache-2.0
"""Upstreams behind networks that lose, repeat and reorder: the same requests, told as they were."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import netem
import numpy as np
import pytest
from conversation import Conversation, cut, early
from frames import UpstreamWire, fresh_port
from lab import Pair, Worker, receive
from messages import CHUNKED, OK, chunks, request, response
from meter import FREE_PORT, OUTGOING, UNKNOWN, Meter, flags, stages, stamps
from strangers import Strangers
from support.frames import ACK, FIN, RST, Frame

from otelbpf.kernel import libbpf
from otelbpf.kernel.records import Counter, RequestFlag, Stamp

RTO_NS = 190_000_000  # the least is 200 ms, by the kernel's coarse clock
ASK = request(target="/asked")
CHUNKED_FLAGS = RequestFlag.REQUEST_CHUNKED | RequestFlag.RESPONSE_CHUNKED


@contextlib.contextmanager
def losing(
    gateway: Meter, stranger: Strangers, hook: int, *, first: bool = False
) -> Iterator[Strangers]:
    """Loses what passes a hook of the client's interface, once it is told to."""
    with stranger.attached(gateway.lab, "lose", "client", hook, first=first):
        try:
            yield stranger
        finally:
            stranger.lose(0)


def test_a_lost_request_is_sent_again(gateway: Meter, stranger: Strangers) -> None:
    """The wait is the network's, which begins when the request left for the first time."""
    pair = gateway.lab.connect()
    pair.exchange(request(), OK)
    gateway.record()
    asked = request(headers={"Padding": "p" * 500})
    with losing(gateway, stranger, libbpf.BPF_TCX_EGRESS) as loss:
        loss.lose(1, least_length=500)
        pair.exchange(asked, OK)
        assert loss.still_to_lose() == 0
    record = gateway.record()
    assert flags(record) == OUTGOING
    assert record["request_bytes"] == len(asked)
    assert record["request_retransmits"] == 1
    lengths = stages(record)
    assert lengths.pop((Stamp.TC_OUT, Stamp.NIC)) > RTO_NS
    assert max(lengths.values()) < RTO_NS // 4


def test_a_response_that_was_lost_behind_xdp(gateway: Meter, stranger: Strangers) -> None:
    """It begins with the packet that came through."""
    pair = gateway.lab.connect()
    pair.exchange(request(), OK)
    gateway.record()
    answered = response(body=bytes(500))
    with losing(gateway, stranger, libbpf.BPF_TCX_INGRESS, first=True) as loss:
        pair.ask(request())
        loss.lose(1, least_length=500)
        pair.answer(answered)
        assert loss.still_to_lose() == 0
    record = gateway.record()
    assert flags(record) == OUTGOING
    assert record["response_bytes"] == len(answered)
    assert record["response_retransmits"] == 0
    assert list(stamps(record))[:4] == [Stamp.NIC, Stamp.TC, Stamp.TCP, Stamp.QUEUED]


def test_a_response_sent_again_for_want_of_an_acknowledgement(
    gateway: Meter, stranger: Strangers
) -> None:
    pair = gateway.lab.connect()
    pair.ask(request())
    with losing(gateway, stranger, libbpf.BPF_TCX_EGRESS) as loss:
        loss.lose(1)
        pair.answer(OK)
        record = gateway.record()
        pair.exchange(request(), OK)
    assert flags(record) == OUTGOING
    assert record["response_bytes"] == len(OK)
    assert flags(gateway.record()) == OUTGOING


ASKED = (
    request("POST", "/length", body=bytes(20_000)),
    request("GET", "/none"),
    request("POST", "/chunks", CHUNKED) + chunks([bytes(700)] * 40),
)
# Each in fewer segments than are kept of one connection: all others may overtake the first.
ANSWERED = (
    response(body=bytes(40_000)),
    OK,
    # Some of its segments are not full.
    response(headers=CHUNKED) + chunks([bytes(700)] * 40),
    response(headers={"Padding": "p" * 3000}, body=bytes(5_000)),
)
EXCHANGES = list(itertools.islice(zip(itertools.cycle(ASKED), itertools.cycle(ANSWERED)), 24))

#: Every request has these, in this order.
STAMPS = (Stamp.WRITE, Stamp.TC_OUT, Stamp.NIC, Stamp.TC, Stamp.QUEUED, Stamp.READ)


def serve(pair: Pair) -> None:
    for asked, answered in EXCHANGES:
        assert receive(pair.server, len(asked)) == asked
        pair.server.sendall(answered)


def ask(pair: Pair) -> None:
    for asked, answered in EXCHANGES:
        pair.client.sendall(asked)
        assert receive(pair.client, len(answered)) == answered


def converse(gateway: Meter) -> np.ndarray:
    """All exchanges on four connections at once; gives their records."""
    with netem.packets_of_one_segment(gateway.lab):
        pairs = [gateway.lab.connect() for _ in range(4)]
        with contextlib.ExitStack() as stack:
            for pair in pairs:
                stack.enter_context(Worker(lambda pair=pair: serve(pair)))
                stack.enter_context(Worker(lambda pair=pair: ask(pair)))
    return gateway.records(len(EXCHANGES) * len(pairs), deadline_s=20)


def assert_all_whole(gateway: Meter, records: np.ndarray) -> None:
    gateway.assert_stamped(records, STAMPS)
    for record in records:
        asked, answered = EXCHANGES[int(record["ordinal"])]
        assert flags(record) & ~CHUNKED_FLAGS == OUTGOING
        assert record["request_bytes"] == len(asked)
        assert record["response_bytes"] == len(answered)
        at = stamps(record)
        way = [at[stamp] for stamp in STAMPS if stamp in at]
        assert way == sorted(way)
        assert at[Stamp.TC_OUT] < at[Stamp.NIC]
    assert gateway.losses() == {}


LENGTH = response(body=b"l" * 300)
CHUNKY = response(headers=CHUNKED) + chunks([b"a" * 20, b"b" * 30, b"c" * 6])
UNTIL_CLOSE = response() + b"u" * 300
HEAD = len(response())
ORDERS = list(itertools.permutations(range(4)))


@pytest.fixture(params=[1000, 2**32 - 150])
def talk(gateway: Meter, request: pytest.FixtureRequest) -> Conversation:
    """A made-up connection to an upstream, on which one request has been answered."""
    frame = Frame(
        client_port=fresh_port(), server_port=FREE_PORT,
        seq=request.param, ack_seq=request.param - len(OK),
    )  # fmt: skip
    talk = Conversation(UpstreamWire(gateway), frame)
    talk.ask(ASK, 0)
    talk.answer(OK, 0, acknowledging=len(ASK))
    return talk


def answer(talk: Conversation, segments: list[tuple[int, bytes]], answered: bytes) -> None:
    """The next response, in these segments."""
    talk.ask(ASK, len(ASK), acknowledging=len(OK))
    for at, data in segments:
        last = at + len(data) == len(answered) and answered == UNTIL_CLOSE
        talk.answer(data, len(OK) + at, acknowledging=2 * len(ASK), flags=ACK | FIN * last)


def end(talk: Conversation, gateway: Meter, count: int) -> np.ndarray:
    """The client resets the connection. Gives its records, in order."""
    talk.ask(b"", 3 * len(ASK), flags=ACK | RST)
    return np.sort(gateway.records(count), order="ordinal")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("answered", "body", "places"),
    [
        (LENGTH, 300, (10, HEAD - 1, HEAD + 40)),
        (LENGTH, 300, (len(LENGTH) - 300, len(LENGTH) - 200, len(LENGTH) - 1)),
        (CHUNKY, 56, (10, len(CHUNKY) - 40, len(CHUNKY) - 3)),
        (CHUNKY, 56, (len(CHUNKY) - 70, len(CHUNKY) - 30, len(CHUNKY) - 5)),
    ],
)
def test_a_response_in_segments_in_every_order(
    talk: Conversation, gateway: Meter, order: tuple[int, ...], answered: bytes, body: int,
    places: tuple[int, ...],
) -> None:  # fmt: skip
    segments = [cut(answered, *places)[number] for number in order]
    answer(talk, segments, answered)
    talk.ask(ASK, 2 * len(ASK), acknowledging=len(OK + answered))
    talk.answer(OK, len(OK + answered), acknowledging=3 * len(ASK))
    before, record, after = end(talk, gateway, 3)
    for each in (before, record, after):
        assert flags(each) & OUTGOING == OUTGOING
    assert (record["response_bytes"], record["response_body_bytes"]) == (len(answered), body)
    assert record["out_of_order"] == early(segments)
    assert record["response_retransmits"] == 0
    assert (after["response_bytes"], after["out_of_order"]) == (len(OK), 0)
    began, ended = (talk.handed_back[len(OK) + at] for at in (0, max(at for at, _ in segments)))
    at = stamps(record)
    assert began[0] <= at[Stamp.NIC] <= at[Stamp.TC] <= began[1]
    assert ended[0] <= at[Stamp.NIC_LAST] <= ended[1]
    assert gateway.losses() == {}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("places", [(HEAD, HEAD + 100, HEAD + 200), (10, HEAD - 1, HEAD + 100)])
def test_a_response_until_close_in_segments_in_every_order(
    talk: Conversation, gateway: Meter, order: tuple[int, ...], places: tuple[int, ...]
) -> None:
    """Its end is the FIN, whenever that comes: what is missing then is inside, or before it."""
    segments = [cut(UNTIL_CLOSE, *places)[number] for number in order]
    answer(talk, segments, UNTIL_CLOSE)
    _, record = end(talk, gateway, 2)
    assert flags(record) & OUTGOING == OUTGOING
    assert flags(record) & RequestFlag.RESPONSE_UNTIL_CLOSE
    assert (record["response_bytes"], record["response_body_bytes"]) == (len(UNTIL_CLOSE), 300)


def test_what_was_seen_before_is_a_repeat(talk: Conversation, gateway: Meter) -> None:
    """Of the response that came last, or of the first request that is not answered yet."""
    answer(talk, [(0, LENGTH), (0, LENGTH), (5, LENGTH[5:90])], LENGTH)
    at = len(OK + LENGTH)
    for _ in range(3):
        talk.ask(ASK, 2 * len(ASK), acknowledging=at)
    talk.answer(OK, at, acknowledging=3 * len(ASK))
    records = end(talk, gateway, 3)
    assert records["response_retransmits"].tolist() == [0, 2, 0]
    assert records["request_retransmits"].tolist() == [0, 0, 2]
    assert records["response_bytes"].tolist() == [len(OK), len(LENGTH), len(OK)]
    assert gateway.losses() == {}


def test_bytes_that_never_came_lose_the_framing(talk: Conversation, gateway: Meter) -> None:
    """Of a response's head; it is taken up again behind another one."""
    answer(talk, [(40, LENGTH[40:])], LENGTH)
    # The client has read them nevertheless, as its next request says.
    talk.ask(ASK, 2 * len(ASK), acknowledging=len(OK + LENGTH))
    asked, answered = 3 * len(ASK), len(OK + LENGTH)
    talk.answer(OK, answered, acknowledging=asked)
    for _ in range(UNKNOWN):
        answered += len(OK)
        talk.ask(ASK, asked, acknowledging=answered)
        asked += len(ASK)
        talk.answer(OK, answered, acknowledging=asked)
    talk.ask(b"", asked, flags=ACK | RST)
    records = gateway.records(2)
    assert [bool(flags(each) & RequestFlag.REQUEST_ANSWERED) for each in records] == [True, True]
    assert gateway.losses() == {Counter.LOST_PARSER: 1}


needs_netem = pytest.mark.skipif(
    not netem.available(),
    reason="this kernel has no sch_netem; run in a guest by scripts/test --vm",
)
IMPAIRMENTS = {
    "reordered": ("delay", "3ms", "reorder", "70%", "50%"),
    "lost": ("delay", "1ms", "loss", "2%"),
    "duplicated": ("delay", "1ms", "duplicate", "20%"),
}


@pytest.mark.guest
@needs_netem
@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("impairment", IMPAIRMENTS.values(), ids=IMPAIRMENTS)
def test_every_request_is_whole(gateway: Meter, side: str, impairment: tuple[str, ...]) -> None:
    with netem.what_is_sent(gateway.lab, side, *impairment):
        records = converse(gateway)
    assert_all_whole(gateway, records)
    if side == "server" and "reorder" in impairment:
        assert records["out_of_order"].sum() > 0
    if side == "server" and "duplicate" in impairment:
        assert records["response_retransmits"].sum() > 0
    if side == "client" and "duplicate" in impairment:
        # What leaves is sent once; the network's copies are none of this side's.
        assert records["request_retransmits"].sum() <= gateway.counted(Counter.SEEN)


@pytest.mark.guest
@needs_netem
def test_a_response_that_ends_with_the_connection_in_disorder(gateway: Meter) -> None:
    answered = response() + bytes(100_000)
    with (
        netem.packets_of_one_segment(gateway.lab),
        netem.what_is_sent(gateway.lab, "server", *IMPAIRMENTS["reordered"]),
    ):
        pair = gateway.lab.connect()
        pair.client.sendall(request())
        receive(pair.server, len(request()))
        with Worker(lambda: receive(pair.client, len(answered))):
            pair.server.sendall(answered)
            pair.server.close()
        assert pair.client.recv(1) == b""
        pair.client.close()
        record = gateway.record()
    assert flags(record) & OUTGOING == OUTGOING
    assert record["response_bytes"] == len(answered)
    assert record["out_of_order"] > 0


@pytest.mark.parametrize("late", [0, 1, 7])
def test_a_long_response_whose_segment_comes_last(
    talk: Conversation, gateway: Meter, late: int
) -> None:
    """Nearly as many pieces as can be kept are read when it has come."""
    answered = response(headers=CHUNKED) + chunks([bytes(700)] * 60)
    segments = cut(answered, *range(1448, len(answered), 1448))
    segments.append(segments.pop(late))
    answer(talk, segments, answered)
    at = len(OK + answered)
    talk.ask(b"", 2 * len(ASK), acknowledging=at)
    talk.ask(ASK, 2 * len(ASK), acknowledging=at)
    talk.answer(OK, at, acknowledging=3 * len(ASK))
    records = end(talk, gateway, 3)
    assert records["response_bytes"].tolist() == [len(OK), len(answered), len(OK)]
    assert gateway.losses() == {}
