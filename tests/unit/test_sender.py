# SPDX-License-Identifier: Apache-2.0
"""The queue in front of the exporter: what fits, what is tried again, and what is lost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from hours import Hours, passing
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from samples import numbered

from otelbpf.export import sender
from otelbpf.export.sender import QueueLimits, Sender
from otelbpf.export.ways_out import by_export
from otelbpf.kernel.records import Counter
from otelbpf.ledger.request import Request
from otelbpf.ledger.tally import Lost, Sums, Tally

DEADLINE_S = 10.0
NEVER_S = 1_000.0
FAILURE, SUCCESS = SpanExportResult.FAILURE, SpanExportResult.SUCCESS
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
        self.offered.append([span.name for span in spans])
        return self._answer(len(self.offered) - 1)

    def shutdown(self) -> None:
        self.shut_down.set()

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.offered]


class Line:
    """A sender, what it counts, and a test's hold on both. Two spans for each request."""

    def __init__(self, collector: Collector | None, limits: QueueLimits = QUICK) -> None:
        self.tally = Tally()
        way_out = None if collector is None else by_export(collector, "the collector")
        self.sender = Sender(way_out, self.to_spans, 2, self.tally, limits)
        self.made_of: list[int] = []

    def to_spans(self, request: Request) -> list[ReadableSpan]:
        self.made_of.append(request.span_id)
        return [ReadableSpan(f"{request.span_id}{part}") for part in "ab"]

    def sums(self, seen: int = 0) -> Sums:
        return self.tally.sums({c: seen if c is Counter.SEEN else 0 for c in Counter})

    def lost(self) -> dict[Lost, int]:
        return {reason: count for reason, count in self.sums().lost.items() if count}

    def wait_for_exported(self, count: int) -> None:
        end = time.monotonic() + DEADLINE_S
        while self.sums().exported < count:
            assert time.monotonic() < end, f"{self.sums()} and not {count} exported"
            time.sleep(0.001)


def names(first: int, last: int) -> list[str]:
    return [f"{number}{part}" for number in range(first, last + 1) for part in "ab"]


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Hours:
    return passing(monkeypatch)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    left = [t for t in threading.enumerate() if t.name == "otelbpf-sender" and t.is_alive()]
    assert not left


def run_to_the_end(line: Line, count: int) -> None:
    line.sender.put(numbered(count))
    line.sender.start()
    line.sender.stop()
    assert line.sums(seen=count).in_flight == 0


def test_what_does_not_fit_is_lost() -> None:
    line = Line(Collector(), QueueLimits(requests=16))
    assert line.sender.admit(16) == 16
    line.sender.put(numbered(10))
    assert line.sender.admit(6) == 6
    line.sender.put(numbered(13))
    assert line.sender.admit(0) == 0
    line.sender.put(numbered(2))
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
    assert [name for batch in collector.offered for name in batch] == names(1, 23)
    assert line.sums().exported == 23
    assert line.lost() == {}


def test_a_request_that_is_more_than_a_batch() -> None:
    collector = Collector()
    run_to_the_end(Line(collector, QueueLimits(batch_spans=1)), 3)
    assert collector.sizes == [2, 2, 2]


def test_a_whole_batch_does_not_wait() -> None:
    collector = Collector()
    line = Line(collector, QueueLimits(batch_spans=10, delay_s=NEVER_S))
    line.sender.start()
    line.sender.put(numbered(5))
    line.wait_for_exported(5)
    line.sender.put(numbered(4))
    line.sender.put(numbered(1))
    line.wait_for_exported(10)
    line.sender.put(numbered(3))
    assert line.sums().exported == 10
    line.sender.stop()
    assert collector.sizes == [10, 10, 6]


def test_batches_that_are_there_already_do_not_wait() -> None:
    line = Line(Collector(), QueueLimits(batch_spans=10, delay_s=NEVER_S))
    line.sender.put(numbered(10))
    line.sender.start()
    line.wait_for_exported(10)
    line.sender.stop()


def test_a_part_of_a_batch_does_not_wait_for_ever() -> None:
    collector = Collector()
    line = Line(collector)
    line.sender.start()
    line.sender.put(numbered(1))
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
    line.sender.put(numbered(7))
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
    line.sender.put(numbered(7))
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
    line.sender.put(numbered(5))
    line.wait_for_exported(5)
    line.sender.stop()
    assert collector.offered == [names(1, 5)] * 3
    assert line.lost() == {}
    assert sum(bool(r.exc_info) for r in caplog.records) == 1  # it is told once


def test_a_request_that_cannot_become_spans(caplog: pytest.LogCaptureFixture) -> None:
    """It is lost, and no other."""
    collector = Collector()
    line = Line(collector)
    plain = line.sender._to_spans

    def to_spans(request: Request) -> list[ReadableSpan]:
        if request.span_id == 7:
            raise ValueError("a bug of ours")
        return plain(request)

    line.sender._to_spans = to_spans
    run_to_the_end(line, 23)
    assert sum(collector.sizes) == 2 * 22
    assert line.sums().exported == 22
    assert line.lost() == {Lost.EXPORT_FAILED: 1}
    assert sum(bool(r.exc_info) for r in caplog.records) == 1


def test_a_dead_collector_does_not_hold_up_the_stop() -> None:
    collector = Collector(lambda _: FAILURE)
    line = Line(collector, QueueLimits(batch_spans=10, flush_s=0.05))
    line.sender.put(numbered(23))
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
    line.sender.put(numbered(5))
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was counted as lost, and so it stays."""
    monkeypatch.setattr(sender, "_LAST_EXPORT_S", 0.01)
    release = threading.Event()
    collector = Collector(lambda _: SUCCESS if release.wait(DEADLINE_S) else FAILURE)
    line = Line(collector, QueueLimits(batch_spans=10, flush_s=0.01))
    run_to_the_end(line, 23)
    assert line.lost() == {Lost.EXPORT_FAILED: 23}
    release.set()
    line.sender._thread.join(DEADLINE_S)
    assert (line.sums(seen=23).exported, line.sums(seen=23).in_flight) == (0, 0)


def test_nowhere_to_send_to() -> None:
    line = Line(None)
    run_to_the_end(line, 23)
    assert line.sums().exported == 23
    assert line.made_of == []


def test_putting_never_waits_for_the_collector() -> None:
    release = threading.Event()
    collector = Collector(lambda _: SUCCESS if release.wait(DEADLINE_S) else FAILURE)
    line = Line(collector, QueueLimits(requests=20, batch_spans=10))
    line.sender.start()
    line.sender.put(numbered(5))
    end = time.monotonic() + DEADLINE_S
    while not collector.offered:
        assert time.monotonic() < end
        time.sleep(0.001)
    line.sender.put(numbered(23))
    assert line.lost() == {Lost.QUEUE_FULL: 3}
    release.set()
    line.sender.stop()
    assert line.sums(seen=28).in_flight == 0
    assert line.sums().exported == 25


def test_a_dead_collector_is_reported_once(hours: Hours, caplog: pytest.LogCaptureFixture) -> None:
    line = Line(Collector(lambda n: FAILURE if n < 25 else SUCCESS))
    with caplog.at_level(logging.WARNING):
        line.sender.start()
        line.sender.put(numbered(15))
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
