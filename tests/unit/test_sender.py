# SPDX-License-Identifier: Apache-2.0
"""The queue in front of the exporter: what fits, what is tried again, and what is lost."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import time
from collections import Counter as Multiset
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hours import Hours, passing
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind
from samples import SMALL, description, numbered, requests
from support.threads import none_is_left
from support.waiting import wait_until
from varied_records import varied

from otelbpf.export import sender
from otelbpf.export.answers import Answer, Door, Verdict
from otelbpf.export.sender import QueueLimits, Sender
from otelbpf.export.ways_out import by_export
from otelbpf.kernel.records import Counter, Stamp
from otelbpf.ledger.batch import SPANS_MOST, Requests, spans_each
from otelbpf.ledger.tally import Lost, Sums, Tally
from otelbpf.traces.spans import readable_spans

DEADLINE_S = 10.0
NEVER_S = 1_000.0
WHILE_S = 0.5
FAILURE, SUCCESS = SpanExportResult.FAILURE, SpanExportResult.SUCCESS
# A request with these is two spans: its own, and that of one stage.
STAMPS = {Stamp.NIC: 0, Stamp.TC_OUT: 5_000}
QUICK = QueueLimits(requests=100, batch_spans=10, delay_s=0.001, flush_s=DEADLINE_S)


class Collector(SpanExporter):
    """An exporter that answers as the test says.

    Args:
        answer: called for each export with its number, from 0.
    """

    def __init__(self, answer: Callable[[int], SpanExportResult] = lambda _: SUCCESS) -> None:
        self._answer = answer
        self.offered: list[list[str]] = []
        self.shut_down = threading.Event()
        self.offered_afterwards = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.offered_afterwards += self.shut_down.is_set()
        self.offered.append([name_of(span) for span in spans])
        return self._answer(len(self.offered) - 1)

    def shutdown(self) -> None:
        self.shut_down.set()

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.offered]


def number_of(span: ReadableSpan) -> int:
    """Of its request, by the id of that one's own span."""
    context = span.parent if span.kind is SpanKind.INTERNAL else span.context
    assert context is not None
    return int(context.span_id)


def name_of(span: ReadableSpan) -> str:
    """The number of its request; `a` for the request's own span, `b` for its stage's."""
    return f"{number_of(span)}{'b' if span.kind is SpanKind.INTERNAL else 'a'}"


class Line:
    """A sender, what it counts, and a test's hold on both. Two spans for each request.

    Attributes:
        made_of: the requests that became spans, in order.
        unmakeable: the requests that cannot.
    """

    def __init__(
        self,
        collector: Collector | None,
        limits: QueueLimits = QUICK,
        *,
        door: Door[Any] | None = None,
        most: int | None = None,
        spans_most: int = 2,
    ) -> None:
        self.tally = Tally()
        self.made_of: list[int] = []
        self.unmakeable: set[int] = set()
        way_out = None
        if collector is not None:
            way_out = by_export(collector, description(), "the collector")
            self._form = way_out.form
            way_out = dataclasses.replace(
                way_out,
                form=self.to_spans,
                door=way_out.door if door is None else door,
                most=most,
            )
        self.sender = Sender(way_out, spans_most, self.tally, limits)

    def to_spans(self, requests: Requests) -> list[ReadableSpan]:
        numbers = requests.contexts.span_id.tolist()
        if not self.unmakeable.isdisjoint(numbers):
            raise ValueError("a bug of ours")
        self.made_of += numbers
        spans: list[ReadableSpan] = self._form(requests)
        return spans

    def sums(self, seen: int = 0) -> Sums:
        return self.tally.sums({c: seen if c is Counter.SEEN else 0 for c in Counter})

    def lost(self) -> dict[Lost, int]:
        return {reason: count for reason, count in self.sums().lost.items() if count}

    def wait_for_exported(self, count: int) -> None:
        end = time.monotonic() + DEADLINE_S
        while self.sums().exported < count:
            assert time.monotonic() < end, f"{self.sums()} and not {count} exported"
            time.sleep(0.001)

    def wait_for_offered(self, collector: Collector, count: int) -> None:
        end = time.monotonic() + DEADLINE_S
        while len(collector.offered) < count:
            assert time.monotonic() < end
            time.sleep(0.001)


def names(first: int, last: int) -> list[str]:
    return [f"{number}{part}" for part in "ab" for number in range(first, last + 1)]


def some(count: int) -> Requests:
    return numbered(count, STAMPS)


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Hours:
    return passing(monkeypatch)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    with none_is_left("otelbpf-sender"):
        yield


def run_to_the_end(line: Line, count: int) -> None:
    line.sender.put(some(count))
    line.sender.start()
    line.sender.stop()
    assert line.sums(seen=count).in_flight == 0


def test_what_does_not_fit_is_lost() -> None:
    line = Line(Collector(), QueueLimits(requests=16))
    assert line.sender.admit(16) == 16
    line.sender.put(some(10))
    assert line.sender.admit(6) == 6
    line.sender.put(some(13))
    assert line.sender.admit(0) == 0
    line.sender.put(some(2))
    assert line.lost() == {Lost.QUEUE_FULL: 7 + 2}
    line.sender.start()
    line.sender.stop()
    assert line.sums().exported == 16
    assert line.made_of == [*range(1, 11), *range(1, 7)]


def test_batches() -> None:
    collector = Collector()
    line = Line(collector)
    run_to_the_end(line, 23)
    assert collector.sizes == [10, 10, 10, 10, 6]
    assert collector.offered == [
        names(1, 5), names(6, 10), names(11, 15), names(16, 20), names(21, 23)
    ]  # fmt: skip
    assert line.sums().exported == 23
    assert line.lost() == {}


def test_a_request_that_is_more_than_a_batch() -> None:
    collector = Collector()
    run_to_the_end(Line(collector, QueueLimits(batch_spans=1)), 3)
    assert collector.sizes == [2, 2, 2]


def test_batches_are_of_many_requests_where_nothing_else_is_asked_for() -> None:
    """Whatever number of spans these become: they are whole after 1,024 and no sooner."""
    collector = Collector()
    limits = dataclasses.replace(QueueLimits.from_environment({}), delay_s=NEVER_S)
    line = Line(collector, limits, spans_most=SPANS_MOST)
    line.sender.start()
    line.sender.put(some(1))
    line.wait_for_exported(1)
    line.sender.put(some(1_023))
    time.sleep(0.05)
    assert collector.sizes == [2]
    line.sender.put(some(1))
    line.wait_for_exported(1 + 1_024)
    line.sender.stop()
    assert collector.sizes == [2, 2 * 1_024]


@pytest.mark.parametrize(
    ("asked_for", "sizes"),
    [
        ({}, [2_048, 2_048, 1_404]),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "1500"}, [1_500]),
        ({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4000"}, [2_000, 2_000, 1_500]),
    ],
)
def test_where_more_wait_more_go_at_once(asked_for: dict[str, str], sizes: list[int]) -> None:
    """Unless somebody has said how many."""
    line = Line(collector := Collector(), QueueLimits.from_environment(asked_for))
    run_to_the_end(line, 5_500)
    assert collector.sizes == [2 * size for size in sizes]


def test_what_is_found_too_large_is_no_larger_than_a_batch_for_a_while() -> None:
    """So it is not parted, and while one is on its way the next is formed."""
    door, release = Narrow(1_100), threading.Event()
    take = door.send

    def send(spans: list[ReadableSpan], within_s: float) -> Answer:
        assert len(door.sizes) < 5 or release.wait(DEADLINE_S)
        return take(spans, within_s)

    door.send = send  # type: ignore[method-assign]
    line = Line(Collector(), QueueLimits(), door=door)
    line.sender.put(some(8_192))
    line.sender.start()
    # Twice what was formed before it was known, and its halves; then one by one.
    wait_until(lambda: len(line.made_of) == 2 * (2_048 + 2_048) + 2 * 1_024, "one is formed ahead")
    release.set()
    line.sender.stop()
    assert [size // 2 for size in door.sizes] == [2_048] + 8 * [1_024]
    assert line.lost() == {}


@pytest.mark.parametrize(
    ("batch_spans", "spans_most", "batch"),
    [(512, 1, 512), (512, 2, 256), (512, SPANS_MOST, 512 // SPANS_MOST), (9, 2, 4), (1, 2, 1)],
)
def test_the_variable_counts_the_spans_that_a_batch_may_become(
    batch_spans: int, spans_most: int, batch: int
) -> None:
    limits = QueueLimits.from_environment({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": str(batch_spans)})
    line = Line(collector := Collector(), limits, spans_most=spans_most)
    run_to_the_end(line, 2 * batch + 1)
    assert collector.sizes == [2 * batch, 2 * batch, 2]


@pytest.mark.parametrize("limits", [QueueLimits(requests=5), QueueLimits(5, batch_spans=1_000)])
def test_a_full_queue_waits_for_no_others(limits: QueueLimits) -> None:
    """Though it is no batch: none could come."""
    line = Line(collector := Collector(), dataclasses.replace(limits, delay_s=NEVER_S))
    line.sender.start()
    line.sender.put(some(5))
    line.wait_for_exported(5)
    line.sender.stop()
    assert collector.sizes == [2 * 5]


def test_between_parts_of_batches_is_a_delay() -> None:
    """The first part goes at once; all that come in the meantime go together."""
    delay_s = 0.2
    line = Line(collector := Collector(), QueueLimits(batch=10, delay_s=delay_s))
    begin = time.monotonic()
    line.sender.start()
    line.sender.put(some(1))
    line.wait_for_exported(1)
    line.sender.put(some(2))
    line.sender.put(some(3))
    line.wait_for_exported(1 + 5)
    assert time.monotonic() - begin >= delay_s
    assert collector.sizes == [2 * 1, 2 * 5]
    line.sender.stop()


def test_what_comes_after_a_delay_without_any_goes_at_once() -> None:
    delay_s = 0.01
    line = Line(collector := Collector(), QueueLimits(batch=10, delay_s=delay_s))
    line.sender.start()
    for number in range(1, 4):
        line.sender.put(some(1))
        line.wait_for_exported(number)
        time.sleep(2 * delay_s)
    assert collector.sizes == [2, 2, 2]
    line.sender.stop()


def test_a_way_out_may_take_fewer_at_once() -> None:
    collector = Collector()
    line = Line(collector, QueueLimits(batch=10), most=4)
    run_to_the_end(line, 13)
    assert collector.offered == [names(1, 4), names(5, 8), names(9, 10), names(11, 13)]
    assert line.sums().exported == 13


def test_what_has_no_room_in_a_batch_goes_first_in_the_next() -> None:
    """Requests come in parts of any size, and leave in the order in which they came."""
    line = Line(collector := Collector(), dataclasses.replace(QUICK, delay_s=NEVER_S))
    all_of_them = some(23)
    for first, last in itertools.pairwise((0, 3, 7, 19, 20, 23)):
        line.sender.put(all_of_them[first:last])
    line.sender.start()
    line.sender.stop()
    assert collector.offered == [
        names(1, 5), names(6, 10), names(11, 15), names(16, 20), names(21, 23)
    ]  # fmt: skip
    assert line.sums(seen=23).exported == 23
    assert line.sums(seen=23).in_flight == 0


def test_what_comes_later_does_not_go_before_the_rest_of_a_part() -> None:
    release = threading.Event()
    collector = Collector(lambda _: SUCCESS if release.wait(DEADLINE_S) else FAILURE)
    line = Line(collector, QueueLimits(requests=20, batch_spans=10, delay_s=NEVER_S))
    all_of_them = some(22)
    line.sender.start()
    line.sender.put(all_of_them[:7])
    line.wait_for_offered(collector, 1)
    line.sender.put(all_of_them[7:19])
    assert line.sender.admit(100) == 20 - (19 - 5)  # the rest of the first part counts
    release.set()
    line.wait_for_exported(15)
    line.sender.stop()
    assert collector.offered == [names(1, 5), names(6, 10), names(11, 15), names(16, 19)]
    assert line.lost() == {Lost.QUEUE_FULL: 94}


def test_a_part_of_which_not_all_fits_into_the_queue_loses_its_last() -> None:
    line = Line(collector := Collector(), QueueLimits(requests=8, batch_spans=10))
    line.sender.put(some(3))
    line.sender.put(some(9)[3:])
    line.sender.start()
    line.sender.stop()
    assert collector.offered == [names(1, 5), names(6, 8)]
    assert line.lost() == {Lost.QUEUE_FULL: 1}


class Narrow:
    """A door that takes so many requests at once, and keeps what it took."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.taken: list[list[ReadableSpan]] = []
        self.sizes: list[int] = []

    def send(self, spans: list[ReadableSpan], _: float) -> Answer:
        self.sizes.append(len(spans))
        if len(spans) > 2 * self._most:
            return Answer(Verdict.TOO_LARGE)
        self.taken.append(spans)
        return Answer(Verdict.TAKEN)

    def close(self) -> None:
        """Nothing to do."""


@pytest.mark.parametrize("most", [1, 2, 3, 10])
def test_a_batch_that_is_parted_is_the_same_requests(most: int) -> None:
    """With all that is theirs, though they came in several parts, of several processes."""
    count = 10
    of_process = [Resource({"service.name": f"shop-{number}"}) for number in range(3)]
    one_by_one = [
        requests(
            STAMPS,
            request_line=f"GET /items/{number} HTTP/1.1".encode(),
            resource=of_process[number // 4],
        )
        for number in range(1, count + 1)
    ]
    for number, each in enumerate(one_by_one, 1):
        each.contexts.span_id[:] = number
        each.contexts.trace_id_low[:] = 100 + number
    line = Line(Collector(), QueueLimits(batch=count), door=(door := Narrow(most)))
    for first, last in itertools.pairwise((0, 1, 5, count)):
        line.sender.put(Requests.joined(one_by_one[first:last]))
    line.sender.start()
    line.sender.stop()
    assert line.sums(seen=count).exported == count
    assert line.lost() == {}
    assert door.sizes[0] == 2 * count
    # The parts are in order; within one those of a process stand together.
    own, stages = [], []
    for part in door.taken:
        of_part = sorted((span for span in part if span.kind is SpanKind.SERVER), key=number_of)
        own += of_part
        stages += sorted(set(part) - set(of_part), key=number_of)
    assert [
        (span.context.span_id, span.context.trace_id & 0xFF, span.attributes["url.path"])
        for span in own
    ] == [(number, 100 + number, f"/items/{number}") for number in range(1, count + 1)]
    assert [span.resource for span in own] == [of_process[n // 4] for n in range(1, count + 1)]
    assert [(span.parent, span.resource) for span in stages] == [
        (span.context, span.resource) for span in own
    ]


@pytest.mark.parametrize(("rejected", "lost"), [(1, 1), (9, 1), (10, 2), (12, 3), (100, 4)])
def test_what_is_rejected_is_as_few_requests_as_it_can_be(rejected: int, lost: int) -> None:
    """Of three of two spans, and one of nine."""
    assert len(SMALL) == 10  # with the acknowledgement, which bounds no stage
    door = Narrow(100)
    door.send = lambda *_: Answer(Verdict.TAKEN, "", rejected)  # type: ignore[method-assign]
    line = Line(Collector(), door=door)
    line.sender.put(Requests.joined([some(2), requests(), some(1)]))
    line.sender.start()
    line.sender.stop()
    assert line.sums(seen=4).exported == 4 - lost
    assert line.lost() == {Lost.REJECTED: lost}


def test_as_many_spans_are_counted_as_there_are() -> None:
    """Of requests of every shape."""
    records = varied(1_000, seed=1)
    made = dataclasses.replace(numbered(len(records)), records=records)
    spans = Multiset(map(number_of, readable_spans(description(), made)))
    assert spans_each(records).tolist() == [spans[number] for number in range(1, 1_001)]
    assert max(spans.values()) <= SPANS_MOST


def test_there_is_room_to_wait_for_while_some_were_taken_lately(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not when nobody takes any, though there is room: what comes then is lost, and counted."""
    release = threading.Event()
    collector = Collector(lambda n: SUCCESS if n < 1 or release.wait(DEADLINE_S) else FAILURE)
    line = Line(collector, QueueLimits(requests=20, batch_spans=10, delay_s=NEVER_S))
    assert line.sender.room() == 20
    line.sender.put(some(23))
    assert line.sender.room() == 0
    line.sender.start()
    line.wait_for_offered(collector, 2)
    assert line.sender.room() == 10
    monkeypatch.setattr(sender, "_LATELY_S", -1.0)
    assert line.sender.room() is None
    monkeypatch.undo()
    release.set()
    line.wait_for_exported(20)
    line.sender.stop()
    assert line.sender.room() == 20


def test_while_a_batch_is_on_its_way_the_next_one_is_formed() -> None:
    """One, if it is full, and it has its places in the queue until its turn comes."""
    release = threading.Event()
    collector = Collector(lambda _: SUCCESS if release.wait(DEADLINE_S) else FAILURE)
    line = Line(collector, QueueLimits(requests=20, batch_spans=10, delay_s=NEVER_S))
    line.sender.put(some(18))
    line.sender.start()
    wait_until(lambda: len(line.made_of) == 10, "two are formed")
    line.wait_for_offered(collector, 1)
    assert line.sender.room() == 20 - 13
    release.set()
    line.sender.stop()
    assert collector.offered == [names(1, 5), names(6, 10), names(11, 15), names(16, 18)]
    assert line.made_of == list(range(1, 19))


def formers() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name.startswith("otelbpf-former")}


def test_both_threads_are_there_before_there_is_anything_to_send() -> None:
    """Later there may be no room for another one."""
    before = formers()  # Some of another test's may just be ending.
    line = Line(Collector())
    line.sender.start()
    new = formers() - before
    line.sender.stop()
    assert len(new) == 1
    wait_until(lambda: not new & formers(), "it has ended")


def test_what_was_given_up_is_not_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is its thread waited for when the process ends."""
    monkeypatch.setattr(sender, "_LAST_EXPORT_S", 0.01)
    release = threading.Event()
    collector = Collector(lambda _: SUCCESS if release.wait(DEADLINE_S) else FAILURE)
    line = Line(collector, QueueLimits(requests=40, batch_spans=10, flush_s=0.01))
    line.sender.put(some(40))
    line.sender.start()
    line.wait_for_offered(collector, 1)
    wait_until(lambda: len(line.made_of) == 10, "two are formed")
    line.sender.stop()
    assert line.lost() == {Lost.EXPORT_FAILED: 40}
    release.set()
    line.sender._thread.join(DEADLINE_S)
    assert not line.sender._thread.is_alive()
    assert line.made_of == list(range(1, 11))


def test_nothing_is_formed_ahead_that_would_be_parted() -> None:
    release = threading.Event()
    collector = Collector(lambda _: SUCCESS if release.wait(DEADLINE_S) else FAILURE)
    line = Line(collector, QueueLimits(requests=20, batch_spans=10), most=3)
    line.sender.put(some(20))
    line.sender.start()
    line.wait_for_offered(collector, 1)
    assert line.made_of == [1, 2, 3]
    release.set()
    line.sender.stop()
    assert sorted(line.made_of) == list(range(1, 21))


def test_a_whole_batch_does_not_wait() -> None:
    collector = Collector()
    line = Line(collector, QueueLimits(batch_spans=10, delay_s=NEVER_S))
    line.sender.start()
    line.sender.put(some(5))
    line.wait_for_exported(5)
    line.sender.put(some(4))
    line.sender.put(some(1))
    line.wait_for_exported(10)
    line.sender.put(some(3))
    assert line.sums().exported == 10
    line.sender.stop()
    assert collector.sizes == [10, 10, 6]


def test_batches_that_are_there_already_do_not_wait() -> None:
    line = Line(Collector(), QueueLimits(batch_spans=10, delay_s=NEVER_S))
    line.sender.put(some(10))
    line.sender.start()
    line.wait_for_exported(10)
    line.sender.stop()


def test_a_part_of_a_batch_does_not_wait_for_ever() -> None:
    collector = Collector()
    line = Line(collector)
    line.sender.start()
    line.sender.put(some(1))
    line.wait_for_exported(1)
    line.sender.stop()
    assert collector.sizes == [2]


def test_stopping_sends_what_is_queued() -> None:
    collector = Collector()
    line = Line(collector, QueueLimits(delay_s=NEVER_S))
    run_to_the_end(line, 3)
    assert line.sums().exported == 3
    assert collector.shut_down.is_set()
    assert collector.offered_afterwards == 0


def test_a_refused_batch_is_offered_again(hours: Hours, caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector(lambda n: FAILURE if n < 6 else SUCCESS)
    line = Line(collector)
    line.sender.start()
    line.sender.put(some(7))
    line.wait_for_exported(7)
    line.sender.stop()
    assert hours.waits == [1, 2, 4, 8, 8, 8]
    assert collector.offered == [names(1, 5)] * 7 + [names(6, 7)]
    assert line.lost() == {}
    assert [r.getMessage() for r in caplog.records] == [
        "the collector does not take spans now (Collector does not say why); they wait in a queue "
        "of 100 requests, and what does not fit, or is not taken for 60 s, is counted as lost",
        "the collector takes spans again",
    ]


def test_giving_up(hours: Hours) -> None:
    collector = Collector(lambda n: FAILURE if n < 10 else SUCCESS)
    line = Line(collector)
    line.sender.start()
    line.sender.put(some(7))
    line.wait_for_exported(2)
    line.sender.stop()
    assert hours.waits == [1, 2, 4, 8, 8, 8, 8, 8, 8]  # 8 more: past the minute
    assert collector.offered == [names(1, 5)] * 10 + [names(6, 7)]
    assert line.lost() == {Lost.EXPORT_FAILED: 5}
    assert line.sums(seen=7).in_flight == 0


def test_an_exporter_that_raises(hours: Hours, caplog: pytest.LogCaptureFixture) -> None:
    def answer(number: int) -> SpanExportResult:
        if number < 2:
            raise RuntimeError("a bug of the exporter's")
        return SUCCESS

    collector = Collector(answer)
    line = Line(collector)
    line.sender.start()
    line.sender.put(some(5))
    line.wait_for_exported(5)
    line.sender.stop()
    assert collector.offered == [names(1, 5)] * 3
    assert line.lost() == {}
    assert sum(bool(r.exc_info) for r in caplog.records) == 1  # it is told once


def test_a_request_that_cannot_become_spans(caplog: pytest.LogCaptureFixture) -> None:
    """It is lost, and no other."""
    collector = Collector()
    line = Line(collector)
    line.unmakeable = {7}
    run_to_the_end(line, 23)
    assert sum(collector.sizes) == 2 * 22
    assert set(line.made_of) == set(range(1, 24)) - {7}
    assert line.sums().exported == 22
    assert line.lost() == {Lost.EXPORT_FAILED: 1}
    assert sum(bool(r.exc_info) for r in caplog.records) == 1


def test_a_dead_collector_does_not_hold_up_the_stop() -> None:
    collector = Collector(lambda _: FAILURE)
    line = Line(collector, QueueLimits(batch_spans=10, flush_s=0.05))
    line.sender.put(some(23))
    begin = time.monotonic()
    line.sender.start()
    line.sender.stop()
    assert time.monotonic() - begin < 1.0
    assert line.lost() == {Lost.EXPORT_FAILED: 23}
    assert line.sums(seen=23).in_flight == 0
    assert collector.offered[0] == names(1, 5)
    assert collector.offered_afterwards == 0


def test_a_stop_interrupts_a_long_wait() -> None:
    """Between two tries, with seconds to go: stopping wakes it and tries once more."""
    refused = threading.Event()

    def answer(number: int) -> SpanExportResult:
        refused.set()
        return FAILURE if number == 0 else SUCCESS

    line = Line(Collector(answer))
    line.sender.start()
    line.sender.put(some(5))
    assert refused.wait(DEADLINE_S)
    begin = time.monotonic()
    line.sender.stop()
    assert time.monotonic() - begin < 0.9  # the back-off would be a second
    assert line.sums().exported == 5


@pytest.mark.parametrize("result", [SUCCESS, FAILURE])
def test_an_export_that_hangs_ends_with_the_shut_down(result: SpanExportResult) -> None:
    def answer(_: int) -> SpanExportResult:
        assert collector.shut_down.wait(DEADLINE_S)
        return result

    collector = Collector(answer)
    line = Line(collector, QueueLimits(batch_spans=10, flush_s=0.05))
    run_to_the_end(line, 23)
    taken = 5 if result is SUCCESS else 0
    assert line.sums().exported == taken
    assert line.lost() == {Lost.EXPORT_FAILED: 23 - taken}
    assert collector.sizes == [10]  # nothing is offered to what was shut down


def test_what_comes_of_an_export_after_it_was_given_up_counts_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was counted as lost, which is said, and so it stays."""
    monkeypatch.setattr(sender, "_LAST_EXPORT_S", 0.01)
    release = threading.Event()
    collector = Collector(lambda _: SUCCESS if release.wait(DEADLINE_S) else FAILURE)
    line = Line(collector, QueueLimits(batch_spans=10, flush_s=0.01))
    run_to_the_end(line, 23)
    assert line.lost() == {Lost.EXPORT_FAILED: 23}
    assert caplog.messages == [
        "the collector has not answered until now: 23 requests are given up, and counted as lost"
    ]
    release.set()
    line.sender._thread.join(DEADLINE_S)
    assert (line.sums(seen=23).exported, line.sums(seen=23).in_flight) == (0, 0)


def test_an_exporter_that_raises_while_it_shuts_down(caplog: pytest.LogCaptureFixture) -> None:
    """The sums are told all the same."""
    collector = Collector()
    collector.shutdown = lambda: 1 / 0  # type: ignore[method-assign,assignment]
    line = Line(collector)
    run_to_the_end(line, 23)
    assert line.sums().exported == 23
    assert caplog.messages == ["Collector failed while it shut down"]


def test_an_exporter_that_never_shuts_down_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("otelbpf.export.ways_out._SHUT_DOWN_S", 0.01)
    release = threading.Event()
    collector = Collector()
    collector.shutdown = lambda: release.wait()  # type: ignore[method-assign,assignment]
    line = Line(collector)
    run_to_the_end(line, 23)
    assert line.sums().exported == 23
    assert caplog.messages == ["Collector does not shut down: it is left alone"]
    release.set()


def test_a_slow_collector_costs_no_processor_time() -> None:
    """While it has not answered, the thread that waits for it does nothing at all."""
    release = threading.Event()
    collector = Collector(lambda _: SUCCESS if release.wait(DEADLINE_S) else FAILURE)
    line = Line(collector, QueueLimits(requests=20, batch_spans=10))
    line.sender.put(some(20))
    line.sender.start()
    line.wait_for_offered(collector, 1)
    ident = line.sender._thread.ident
    assert ident is not None
    clock = time.pthread_getcpuclockid(ident)
    before_s = time.clock_gettime(clock)
    line.sender.put(some(100))
    # A thread that waits takes none, however busy the machine is.
    time.sleep(WHILE_S)
    assert time.clock_gettime(clock) - before_s < WHILE_S / 50
    release.set()
    line.sender.stop()
    assert line.sums().exported == 25


def test_nowhere_to_send_to() -> None:
    """No span is made of requests: nobody looks at what these are."""
    line = Line(None)
    line.sender.put(dataclasses.replace(some(23), records=np.zeros(23)))
    line.sender.start()
    line.sender.stop()
    assert line.sums(seen=23).in_flight == 0
    assert line.sums().exported == 23
    assert line.lost() == {}
    assert line.made_of == []


def test_putting_never_waits_for_the_collector() -> None:
    release = threading.Event()
    collector = Collector(lambda _: SUCCESS if release.wait(DEADLINE_S) else FAILURE)
    line = Line(collector, QueueLimits(requests=20, batch_spans=10))
    line.sender.start()
    line.sender.put(some(5))
    line.wait_for_offered(collector, 1)
    line.sender.put(some(23))
    assert line.lost() == {Lost.QUEUE_FULL: 3}
    release.set()
    line.sender.stop()
    assert line.sums(seen=28).in_flight == 0
    assert line.sums().exported == 25


def test_a_dead_collector_is_reported_once(hours: Hours, caplog: pytest.LogCaptureFixture) -> None:
    line = Line(Collector(lambda n: FAILURE if n < 25 else SUCCESS))
    with caplog.at_level(logging.WARNING):
        line.sender.start()
        line.sender.put(some(15))
        line.wait_for_exported(5)
        line.sender.stop()
    assert line.lost() == {Lost.EXPORT_FAILED: 10}
    assert len(caplog.records) == 2


def test_a_stop_that_waits_for_the_collector_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """How many requests wait, and for how long at most; not where it need not wait."""
    line = Line(Collector())
    run_to_the_end(line, 23)
    assert caplog.messages == []

    def answer(_: int) -> SpanExportResult:
        end = time.monotonic() + DEADLINE_S
        while not caplog.messages and time.monotonic() < end:
            time.sleep(0.001)
        return SUCCESS

    line = Line(Collector(answer))
    run_to_the_end(line, 23)
    assert caplog.messages == ["stopping: 23 requests wait for the collector, for 10 s at most"]
    assert line.sums().exported == 23
