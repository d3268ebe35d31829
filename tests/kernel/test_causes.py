# SPDX-License-Identifier: Apache-2.0
"""Which request a request to an upstream is for: said where it is certain, else not at all."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from lab import CLIENT_IPV4, Pair, Worker, prepare, receive
from messages import OK, request, response
from meter import GATEWAY_PORT, OUTGOING, Meter, flags
from test_marks import JOINED, Mark

from otelbpf.kernel.records import Counter, RequestFlag

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ANOTHER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b8-01"
ASKED = request(target="/asked")
CARRIES = request(target="/asked", headers={"traceparent": TRACEPARENT})
CALL = request(target="/call")


class Gateway:
    """The lab's client as a gateway: connections to it, and from it to an upstream."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._pairs: list[Pair] = []
        self._listener = meter.lab.socket("client", socket.AF_INET)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((CLIENT_IPV4, GATEWAY_PORT))
        self._listener.listen()

    def connect(self) -> Pair:
        """A connection to the gateway, whose server side is the gateway's."""
        client = self._meter.lab.socket("server", socket.AF_INET)
        client.connect((CLIENT_IPV4, GATEWAY_PORT))
        pair = Pair(client, prepare(self._listener.accept()[0]))
        self._pairs.append(pair)
        return pair

    def upstream(self) -> Pair:
        """One from the gateway to an upstream, whose client side is the gateway's."""
        return self._meter.lab.connect()

    def close(self) -> None:
        for pair in self._pairs:
            pair.close()
        self._listener.close()


@pytest.fixture
def front(gateway: Meter) -> Iterator[Gateway]:
    front = Gateway(gateway)
    try:
        yield front
    finally:
        front.close()


@contextlib.contextmanager
def upstreams_answer(*pairs: Pair, asked: bytes = CALL) -> Iterator[None]:
    """The other sides of the gateway's connections answer one request each."""
    with contextlib.ExitStack() as stack:
        for pair in pairs:
            stack.enter_context(Worker(lambda pair=pair: answer(pair, asked)))
        yield


def answer(pair: Pair, asked: bytes) -> None:
    assert receive(pair.server, len(asked)) == asked
    pair.server.sendall(OK)


def call(pair: Pair, asked: bytes = CALL) -> None:
    """The gateway asks an upstream."""
    pair.client.sendall(asked)
    assert receive(pair.client, len(OK)) == OK


def split(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(what the gateway was asked, what it asked), each by connection and ordinal."""
    records = np.sort(records, order=["connection_id", "ordinal"])
    outgoing = records["flags"] & RequestFlag.CLIENT != 0
    return records[~outgoing], records[outgoing]


def assert_caused(record: np.void, cause: np.void) -> None:
    assert flags(record) == OUTGOING | RequestFlag.CAUSED
    assert record["join"]["cause_connection_id"] == cause["connection_id"]
    assert record["join"]["cause_ordinal"] == cause["ordinal"]
    assert record["join"]["traceparent"] == cause["join"]["traceparent"]
    assert record["join"]["traceparent_length"] == cause["join"]["traceparent_length"]
    assert record["tid"] == cause["tid"]


def assert_not_caused(record: np.void) -> None:
    assert flags(record) == OUTGOING
    assert (record["join"]["cause_connection_id"], record["join"]["cause_ordinal"]) == (0, 0)


@pytest.mark.parametrize("asked", [ASKED, CARRIES], ids=["without", "with traceparent"])
def test_a_thread_that_waits_for_each_request_calls_for_that_one(
    gateway: Meter, front: Gateway, asked: bytes
) -> None:
    """23 requests with two calls each, to two upstreams."""
    caller, upstreams = front.connect(), [front.upstream(), front.upstream()]

    def serve() -> None:
        for _ in range(23):
            assert receive(caller.server, len(asked)) == asked
            for upstream in upstreams:
                call(upstream)
            caller.server.sendall(OK)

    def answer_all(pair: Pair) -> None:
        for _ in range(23):
            answer(pair, CALL)

    with (
        Worker(serve), Worker(lambda: answer_all(upstreams[0])),
        Worker(lambda: answer_all(upstreams[1])),
    ):  # fmt: skip
        for _ in range(23):
            caller.client.sendall(asked)
            assert receive(caller.client, len(OK)) == OK
    handled, called = split(gateway.records(3 * 23))
    assert len(handled) == 23
    for record in called:
        assert_caused(record, handled[int(record["ordinal"])])
    assert gateway.counted(Counter.CAUSES_AMBIGUOUS) == 0
    assert gateway.losses() == {}


def test_many_threads_each_call_for_their_own(gateway: Meter, front: Gateway) -> None:
    """Sixteen connections with a thread each, ten requests on each, all at once."""
    callers = [front.connect() for _ in range(16)]
    upstreams = [front.upstream() for _ in callers]

    def serve(number: int) -> None:
        for turn in range(10):
            asked = request(target=f"/{number:02}/{turn}")
            assert receive(callers[number].server, len(asked)) == asked
            call(upstreams[number], asked)
            callers[number].server.sendall(OK)

    def ask(number: int) -> None:
        for turn in range(10):
            asked = request(target=f"/{number:02}/{turn}")
            callers[number].client.sendall(asked)
            assert receive(callers[number].client, len(OK)) == OK

    def answer_all(number: int) -> None:
        for turn in range(10):
            answer(upstreams[number], request(target=f"/{number:02}/{turn}"))

    with contextlib.ExitStack() as stack:
        for number in range(16):
            for part in (serve, ask, answer_all):
                stack.enter_context(Worker(lambda part=part, number=number: part(number)))
    handled, called = split(gateway.records(320))
    lines = {(int(each["connection_id"]), int(each["ordinal"])): each for each in handled}
    assert len(lines) == len(called) == 160
    for record in called:
        join = record["join"]
        cause = lines[int(join["cause_connection_id"]), int(join["cause_ordinal"])]
        assert_caused(record, cause)
        assert record["http1"]["request_line"] == cause["http1"]["request_line"]


def test_a_context_that_is_handed_on_is_the_causes(gateway: Meter, front: Gateway) -> None:
    caller, upstream = front.connect(), front.upstream()
    caller.ask(CARRIES)
    with upstreams_answer(upstream, asked=CARRIES):
        call(upstream, CARRIES)
    caller.answer(OK)
    (handled,), (called,) = split(gateway.records(2))
    assert_caused(called, handled)


@pytest.mark.parametrize("asked", [ASKED, CARRIES], ids=["without", "with traceparent"])
def test_a_context_of_its_own_is_from_an_application_that_is_traced(
    gateway: Meter, front: Gateway, asked: bytes
) -> None:
    caller, upstream = front.connect(), front.upstream()
    carries = request(headers={"traceparent": ANOTHER})
    caller.ask(asked)
    with upstreams_answer(upstream, asked=carries):
        call(upstream, carries)
    caller.answer(OK)
    _, (called,) = split(gateway.records(2))
    assert_not_caused(called)
    assert called["join"]["traceparent"] == ANOTHER.encode()


@pytest.mark.parametrize("trace_flags", [0, 1])
def test_what_the_application_said_of_the_cause_holds_for_what_it_caused(
    gateway: Meter, front: Gateway, trace_flags: int
) -> None:
    """Its name for the cause's span, and whether the trace is kept."""
    caller, upstream = front.connect(), front.upstream()
    mark = Mark(trace_flags=trace_flags)
    caller.ask(ASKED)
    assert mark.tell(caller.server) == JOINED
    with upstreams_answer(upstream):
        call(upstream)
    caller.answer(OK)
    if not trace_flags:
        gateway.wait_for(Counter.SAMPLED_OUT, 2)
        return
    (handled,), (called,) = split(gateway.records(2))
    assert_caused(called, handled)
    join = called["join"]
    assert join["marked"] == 1
    assert bytes(join["trace_id"]) == mark.trace_id
    assert bytes(join["parent_span_id"]) == bytes(handled["join"]["span_id"]) == mark.span_id
    assert bytes(join["span_id"]) == bytes(8)
    assert join["trace_flags"] == trace_flags


def do_not_wait(caller: Pair, _: Gateway) -> None:
    caller.server.setblocking(False)


def have_two(caller: Pair, front: Gateway) -> None:
    """Another connection's request is taken in hand before this one's is answered."""
    other = front.connect()
    other.ask(ASKED)


@pytest.mark.parametrize("prepare_for", [do_not_wait, have_two])
def test_a_thread_that_may_have_others_in_hand_calls_for_none(
    gateway: Meter, front: Gateway, prepare_for: Callable[[Pair, Gateway], None]
) -> None:
    """Even if the one that it is asked for is the only one that it was seen to read."""
    caller, upstream = front.connect(), front.upstream()

    def serve() -> None:
        prepare_for(caller, front)
        caller.client.sendall(ASKED)
        data = b""
        while len(data) < len(ASKED):
            with contextlib.suppress(BlockingIOError):
                data += caller.server.recv(len(ASKED))
        call(upstream)
        caller.server.sendall(OK)

    with upstreams_answer(upstream), Worker(serve):
        assert receive(caller.client, len(OK)) == OK
    front.close()
    _, called = split(gateway.records(3 if prepare_for is have_two else 2))
    assert_not_caused(called[0])
    assert gateway.counted(Counter.CAUSES_AMBIGUOUS) == 1


@pytest.mark.parametrize("asked", [ASKED, CARRIES], ids=["without", "with traceparent"])
@pytest.mark.parametrize("prepare_for", [do_not_wait, have_two])
def test_what_carries_a_context_is_told_to_start_no_trace(
    gateway: Meter, front: Gateway, prepare_for: Callable[[Pair, Gateway], None], asked: bytes
) -> None:
    """Ten calls, each with a parent: its own application's span, or one that was handed on."""
    caller, upstream = front.connect(), front.upstream()
    carries = CARRIES if asked == CARRIES else request(headers={"traceparent": ANOTHER})

    def serve() -> None:
        prepare_for(caller, front)
        caller.client.sendall(asked)
        data = b""
        while len(data) < len(asked):
            with contextlib.suppress(BlockingIOError):
                data += caller.server.recv(len(asked))
        for _ in range(10):
            call(upstream, carries)
        caller.server.sendall(OK)

    def answer_all() -> None:
        for _ in range(10):
            answer(upstream, carries)

    with Worker(answer_all), Worker(serve):
        assert receive(caller.client, len(OK)) == OK
    front.close()
    _, called = split(gateway.records(12 if prepare_for is have_two else 11))
    assert len(called) == 10
    for record in called:
        assert_not_caused(record)
        assert record["join"]["traceparent_length"] == 55
    assert gateway.counted(Counter.CAUSES_AMBIGUOUS) == 0


def test_two_requests_on_one_connection(gateway: Meter, front: Gateway) -> None:
    caller, upstream = front.connect(), front.upstream()
    caller.client.sendall(2 * ASKED)
    receive(caller.server, 2 * len(ASKED))
    with upstreams_answer(upstream):
        call(upstream)
    caller.answer(2 * OK)
    _, (called,) = split(gateway.records(3))
    assert_not_caused(called)
    assert gateway.counted(Counter.CAUSES_AMBIGUOUS) == 1


def test_of_requests_in_one_write_only_the_first_is_known_to_be_one_of_several(
    gateway: Meter, front: Gateway
) -> None:
    """And only if it carries no context, whatever the others do."""
    caller, upstream = front.connect(), front.upstream()
    caller.client.sendall(2 * ASKED)
    receive(caller.server, 2 * len(ASKED))
    for number, asked in enumerate((2 * CALL, CARRIES + CALL, CALL + CARRIES)):
        upstream.ask(asked)
        upstream.answer(2 * OK)
        called = gateway.records(2, others_in_flight=2)
        assert [bool(record["join"]["traceparent_length"]) for record in called] == (
            [[False, False], [True, False], [False, True]][number]
        )
        assert gateway.counted(Counter.CAUSES_AMBIGUOUS) == (1, 1, 2)[number]
    caller.answer(2 * OK)
    gateway.records(2)


def test_once_mingled_never_trusted(gateway: Meter, front: Gateway) -> None:
    first, second, upstream = front.connect(), front.connect(), front.upstream()

    def serve() -> None:
        receive(first.server, len(ASKED))
        receive(second.server, len(ASKED))
        for pair in (first, second):
            pair.server.sendall(OK)
        receive(first.server, len(ASKED))
        call(upstream)
        first.server.sendall(OK)

    for pair in (first, second):
        pair.client.sendall(ASKED)
    with upstreams_answer(upstream), Worker(serve):
        for pair in (first, second):
            receive(pair.client, len(OK))
        first.client.sendall(ASKED)
        receive(first.client, len(OK))
    _, (called,) = split(gateway.records(4))
    assert_not_caused(called)
    assert gateway.counted(Counter.CAUSES_AMBIGUOUS) == 1


@pytest.mark.parametrize("begun", [OK, response(body=bytes(100))[:-50]], ids=["whole", "begun"])
def test_what_is_asked_after_the_answer_is_for_itself(
    gateway: Meter, front: Gateway, begun: bytes
) -> None:
    """A whole answer, or the beginning of one: there may be others by now."""
    caller, upstream = front.connect(), front.upstream()

    def serve() -> None:
        receive(caller.server, len(ASKED))
        caller.server.sendall(begun)
        call(upstream)

    with upstreams_answer(upstream), Worker(serve):
        caller.client.sendall(ASKED)
        receive(caller.client, len(begun))
    if begun != OK:
        caller.answer(bytes(50))
    _, (called,) = split(gateway.records(2))
    assert_not_caused(called)
    assert gateway.counted(Counter.CAUSES_AMBIGUOUS) == 0


def test_another_threads_request_is_not_this_ones(gateway: Meter, front: Gateway) -> None:
    caller, upstream = front.connect(), front.upstream()
    with Worker(lambda: caller.ask(ASKED)):
        pass
    with upstreams_answer(upstream), Worker(lambda: call(upstream)):
        pass
    caller.answer(OK)
    _, (called,) = split(gateway.records(2))
    assert_not_caused(called)
    assert gateway.counted(Counter.CAUSES_AMBIGUOUS) == 0


def test_requests_in_one_write_are_for_nobody_but_the_first(gateway: Meter, front: Gateway) -> None:
    """Who wrote the others is not certain."""
    caller, upstream = front.connect(), front.upstream()
    caller.ask(ASKED)
    upstream.ask(3 * CALL)
    upstream.answer(3 * OK)
    caller.answer(OK)
    (handled,), (first, *others) = split(gateway.records(4))
    assert_caused(first, handled)
    assert len(others) == 2
    for record in others:
        assert_not_caused(record)


def test_a_body_that_follows_changes_nothing(gateway: Meter, front: Gateway) -> None:
    caller, upstream = front.connect(), front.upstream()
    caller.ask(ASKED)
    called = request("POST", body=b"the body")
    for part in (called[:10], called[10:-8], called[-8:-4], called[-4:]):
        upstream.ask(part)
    upstream.answer(OK)
    caller.answer(OK)
    (handled,), (record,) = split(gateway.records(2))
    assert_caused(record, handled)


def test_an_interim_response_is_no_answer(gateway: Meter, front: Gateway) -> None:
    caller, upstream = front.connect(), front.upstream()
    caller.ask(ASKED)
    caller.answer(b"HTTP/1.1 102 Processing\r\n\r\n")
    with upstreams_answer(upstream):
        call(upstream)
    caller.answer(OK)
    (handled,), (record,) = split(gateway.records(2))
    assert_caused(record, handled)
