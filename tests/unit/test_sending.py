# SPDX-License-Identifier: Apache-2.0
"""What is counted as exported has arrived: a sender, an official exporter, and a receiver."""

from __future__ import annotations

import itertools
import time
from collections import Counter as Multiset
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import grpc
import pytest
from hours import passing
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from samples import description, numbered
from support.misbehaving import (
    PROTOBUF,
    Receiver,
    Rpc,
    Web,
    grpc_receiver,
    http_receiver,
    partial,
    retry_info,
)
from support.threads import none_is_left

from otelbpf.export import sender
from otelbpf.export.sender import QueueLimits, Sender
from otelbpf.export.ways_out import spans_way_out
from otelbpf.kernel.records import Counter, Stamp
from otelbpf.ledger.tally import Lost, Tally

DEADLINE_S = 30.0
GRPC, HTTP = "grpc", "http/protobuf"
Code = grpc.StatusCode
COUNT = 23
# A request with these is three spans: its own, and two stages'.
STAMPS = {Stamp.NIC: 0, Stamp.READ: 1_000, Stamp.TC_OUT: 5_000}
STAGES = ("nic_to_read", "read_to_tc_out")
EACH = 3
QUICK = QueueLimits(batch_spans=5 * EACH, delay_s=0.001, flush_s=DEADLINE_S)
NAMES = {GRPC: "otlp_proto_grpc", HTTP: "otlp_proto_http"}


class Line:
    """A sender to a receiver; requests become three spans each, in batches of five requests."""

    def __init__(
        self,
        protocol: str,
        receiver: Receiver,
        monkeypatch: pytest.MonkeyPatch,
        limits: QueueLimits = QUICK,
    ) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.port}")
        self.receiver = receiver
        self.tally = Tally()
        self._limits = limits
        self._way_out = spans_way_out(NAMES[protocol], description())
        self.sender = Sender(self._way_out, EACH, self.tally, limits)

    def send(self, count: int) -> None:
        """All of them, until what became of each is known."""
        self.sender.put(numbered(count, STAMPS))
        self.sender.start()
        deadline = time.monotonic() + DEADLINE_S
        while sum(self.sums().values()) < count:
            assert time.monotonic() < deadline, self.sums()
            time.sleep(0.001)
        self.sender.stop()

    def sums(self) -> dict[str, int]:
        """What is counted, with what is in flight only if there is some."""
        sums = self.tally.sums({c: 0 for c in Counter})
        lost = {reason.value: count for reason, count in sums.lost.items() if count}
        return {"exported": sums.exported, **lost}


def arrived(receiver: Receiver) -> list[int]:
    """The requests that came and were taken, in order; all of each in one message."""
    numbers = []
    for body in receiver.kept:
        spans = [
            span
            for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]
        own = [_number(span.span_id) for span in spans if span.kind == Span.SPAN_KIND_SERVER]
        stages = Multiset(
            (_number(span.parent_span_id), span.name)
            for span in spans
            if span.kind == Span.SPAN_KIND_INTERNAL
        )
        assert stages == Multiset(itertools.product(own, STAGES))
        numbers += own
    return numbers


def _number(span_id: bytes) -> int:
    return int.from_bytes(span_id, "big")


ALL = list(range(1, COUNT + 1))
BATCHES = 5  # 5 + 5 + 5 + 5 + 3


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("", "_TRACES"):
        for what in ("ENDPOINT", "HEADERS", "COMPRESSION", "CERTIFICATE", "TIMEOUT"):
            monkeypatch.delenv(f"OTEL_EXPORTER_OTLP{name}_{what}", raising=False)
    with none_is_left("otelbpf-sender"):
        yield


@pytest.fixture
def receivers() -> Iterator[dict[str, Receiver]]:
    with ExitStack() as stack:
        yield {
            GRPC: stack.enter_context(grpc_receiver()),
            HTTP: stack.enter_context(http_receiver()),
        }


REFUSALS = [
    *((HTTP, Web(status)) for status in
      (301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 405, 415, 422, 500, 501, 505)),
    *((GRPC, Rpc(code, "no")) for code in
      (Code.UNKNOWN, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS,
       Code.PERMISSION_DENIED, Code.RESOURCE_EXHAUSTED, Code.FAILED_PRECONDITION,
       Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAUTHENTICATED)),
]  # fmt: skip


def _id(value: object) -> str | None:
    match value:
        case Web():
            return str(value.status)
        case Rpc():
            return value.code.name
    return None


@pytest.mark.parametrize("compression", ["", "gzip"])
@pytest.mark.parametrize(("protocol", "answer"), REFUSALS, ids=_id)
def test_what_is_refused_is_lost_at_once(
    receivers: dict[str, Receiver],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    protocol: str,
    answer: Web | Rpc,
    compression: str,
) -> None:
    """Nothing is asked twice, and it is told once, with the collector's words."""
    if compression:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    line = Line(protocol, receivers[protocol], monkeypatch)
    line.receiver.otherwise = answer
    line.send(COUNT)
    assert line.sums() == {"exported": 0, "refused": COUNT}
    assert (line.receiver.tries, line.receiver.spans()) == (BATCHES, [])
    (record,) = caplog.records
    said = f"HTTP {answer.status} " if isinstance(answer, Web) else f"gRPC {answer.code.name}: no"
    assert said in record.getMessage()
    assert record.getMessage().startswith("the collector refuses spans (")


PASSING = [
    *((HTTP, Web(status)) for status in (429, 502, 503, 504)),
    (HTTP, Web(503, {"Retry-After": "30"})),
    *((GRPC, Rpc(code, "soon")) for code in
      (Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.OUT_OF_RANGE, Code.UNAVAILABLE,
       Code.DATA_LOSS)),
    (GRPC, Rpc(Code.UNAVAILABLE, "soon", retry_info(30))),
    (GRPC, Rpc(Code.RESOURCE_EXHAUSTED, "soon", retry_info(30))),
]  # fmt: skip


@pytest.mark.parametrize(("protocol", "answer"), PASSING, ids=_id)
def test_what_is_not_taken_for_a_while_arrives_once(
    receivers: dict[str, Receiver],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    protocol: str,
    answer: Web | Rpc,
) -> None:
    hours = passing(monkeypatch)
    line = Line(protocol, receivers[protocol], monkeypatch)
    line.receiver.answers = [answer] * 2
    line.send(COUNT)
    assert line.sums() == {"exported": COUNT}
    assert arrived(line.receiver) == ALL
    assert line.receiver.tries == BATCHES + 2
    is_asked = (isinstance(answer, Rpc) and answer.trailers) or getattr(answer, "headers", None)
    assert hours.waits == ([30, 30] if is_asked else [1, 2])
    assert len(caplog.records) == 2


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_what_is_rejected_in_part_is_lost_in_part(
    receivers: dict[str, Receiver],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    protocol: str,
) -> None:
    """4 spans are two requests at the least."""
    line = Line(protocol, receivers[protocol], monkeypatch)
    body = partial(4, "too old")
    line.receiver.answers = [Rpc(body=body) if protocol == GRPC else Web(200, PROTOBUF, body)]
    line.send(COUNT)
    assert line.sums() == {"exported": COUNT - 2, "rejected": 2}
    assert line.receiver.tries == BATCHES
    assert [record.getMessage() for record in caplog.records] == [
        "the collector has rejected 4 of 15 spans, which are lost (too old)",
        "the collector takes spans again",
    ]


MOST_OCTETS = 2_600  # of which 2 requests are 2,147, and 3 are 3,193


@pytest.mark.parametrize("compression", ["", "gzip"])
def test_a_grpc_server_that_takes_little_gets_it_in_parts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, compression: str
) -> None:
    """By gRPC's own limit, which is of what was decompressed."""
    if compression:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    with grpc_receiver(most_octets=MOST_OCTETS) as receiver:
        line = Line(GRPC, receiver, monkeypatch)
        line.send(COUNT)
    assert line.sums() == {"exported": COUNT}
    assert arrived(receiver) == ALL
    assert max(map(len, receiver.kept)) <= MOST_OCTETS
    assert caplog.records == []


@pytest.mark.parametrize(
    "answer", [Web(413), Web(400, {}, b"http: request body too large")], ids=_id
)
def test_an_http_server_that_takes_little_gets_it_in_parts(
    receivers: dict[str, Receiver],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    answer: Web,
) -> None:
    receiver = receivers[HTTP]
    plain = receiver.answer

    def answer_to(body: bytes, headers: dict[str, str]) -> Web | None:
        receiver.otherwise = answer if len(body) > MOST_OCTETS else None
        return plain(body, headers)  # type: ignore[return-value]

    receiver.answer = answer_to  # type: ignore[assignment, method-assign]
    line = Line(HTTP, receiver, monkeypatch)
    line.send(COUNT)
    assert line.sums() == {"exported": COUNT}
    assert arrived(receiver) == ALL
    assert caplog.records == []


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_what_is_too_large_alone_is_lost(
    receivers: dict[str, Receiver],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    protocol: str,
) -> None:
    line = Line(protocol, receivers[protocol], monkeypatch)
    line.receiver.otherwise = (
        Rpc(Code.RESOURCE_EXHAUSTED, "grpc: received message larger than max (9 vs. 8)")
        if protocol == GRPC else Web(413)
    )  # fmt: skip
    line.send(5)
    assert line.sums() == {"exported": 0, "too_large": 5}
    assert line.receiver.tries == 7  # 5, 2, 1, 1, 1, 1, 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_a_refusal_does_not_hold_up_the_queue(
    receivers: dict[str, Receiver], monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """Once all would have waited for a minute behind the first batch, and found the queue full."""
    limits = QueueLimits(requests=10, batch_spans=5 * EACH, delay_s=0.001, flush_s=DEADLINE_S)
    line = Line(protocol, receivers[protocol], monkeypatch, limits)
    line.receiver.otherwise = Rpc(Code.UNAUTHENTICATED) if protocol == GRPC else Web(401)
    line.sender.start()
    for batch in range(1, 21):
        line.sender.put(numbered(10, STAMPS))
        deadline = time.monotonic() + DEADLINE_S
        while line.sums() != {"exported": 0, "refused": 10 * batch}:
            assert time.monotonic() < deadline, line.sums()
            time.sleep(0.001)
    line.sender.stop()
    assert line.receiver.tries == 40


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_each_request_is_counted_once_whatever_is_answered(
    receivers: dict[str, Receiver], monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """All answers in turn; what is exported is what arrived."""
    passing(monkeypatch)
    line = Line(protocol, receivers[protocol], monkeypatch)
    body = partial(EACH)
    answers: Sequence[Web | Rpc | None] = (
        (None, Rpc(Code.UNAVAILABLE), Rpc(Code.INTERNAL), Rpc(body=body),
         Rpc(Code.RESOURCE_EXHAUSTED, "message too large"), Rpc(Code.RESOURCE_EXHAUSTED, "quota"))
        if protocol == GRPC
        else (None, Web(503), Web(500), Web(200, PROTOBUF, body), Web(413), Web(302))
    )  # fmt: skip
    line.receiver.answers = list(itertools.islice(itertools.cycle(answers), 500))
    line.send(500)
    sums = line.sums()
    assert sum(sums.values()) == 500
    assert sums.keys() >= {"exported", "rejected", "refused"}
    # One request of each that is answered so did arrive and was rejected.
    assert len(arrived(line.receiver)) == sums["exported"] + sums["rejected"]
    assert len(line.receiver.spans()) == EACH * (sums["exported"] + sums["rejected"])
    assert Lost.QUEUE_FULL.value not in sums


@pytest.mark.parametrize("name", ["none", "otlp_proto_grpc", "otlp_json_file", "console"])
def test_an_overflow_is_told_once_in_a_minute(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever spans go, and though nothing has failed."""
    hours = passing(monkeypatch)
    monkeypatch.setattr(sender, "time", hours)
    way_out, tally = spans_way_out(name, description()), Tally()
    queue = Sender(way_out, EACH, tally, QueueLimits(requests=4))
    said = (
        "more requests come than are taken in the same time: the queue of 4 is full, and what does "
        "not fit is counted as lost"
    )
    for times in (1, 2):
        queue.put(numbered(4, STAMPS))
        queue.put(numbered(10, STAMPS))
        hours.now += 59.0
        queue.put(numbered(10, STAMPS))
        assert caplog.messages == [said] * times
        hours.now += 1.0
    assert tally.sums({c: 0 for c in Counter}).lost[Lost.QUEUE_FULL] == 44
    if way_out is not None:
        way_out.door.close()
