# SPDX-License-Identifier: Apache-2.0
"""requests -> a way out: a bounded queue in front of it, and a thread that empties it.

The queue holds requests, not spans: they are small, and become spans only when
their turn to be sent has come. Where many come that is one batch earlier: while
one is on its way another thread makes the spans of the next. What does not fit,
or is not taken, is counted as lost; nothing ever waits for the collector but the
sending thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from otelbpf.export.delivery import QUIET_S, UNSAID_S, Delivery, Fate, Formed, Wording
from otelbpf.export.exporters import whole_number
from otelbpf.export.ways_out import WayOut
from otelbpf.ledger.batch import Requests, spans_each
from otelbpf.ledger.tally import Lost, Tally

_log = logging.getLogger(__name__)

# While some were taken so lately, those that wait will soon have gone.
_LATELY_S = 1.0
# How long an export under way is waited for once its door was closed.
_LAST_EXPORT_S = 2.0


@dataclass(frozen=True)
class QueueLimits:
    """How much waits, and for how long.

    Attributes:
        requests: in the queue (OTEL_BSP_MAX_QUEUE_SIZE).
        batch: of requests, sent at once.
        batch_most: where more wait than a batch, so many go at once.
        batch_spans: as many requests as become so many spans at the most, instead of both
            (OTEL_BSP_MAX_EXPORT_BATCH_SIZE); None: they count.
        delay_s: between two batches that are not full (OTEL_BSP_SCHEDULE_DELAY).
        flush_s: the longest that stopping waits for what takes the spans (OTEL_BSP_EXPORT_TIMEOUT).
        retry_s: for how long a batch that is not taken is tried again.
    """

    requests: int = 16_384
    batch: int = 1_024
    batch_most: int = 2_048
    batch_spans: int | None = None
    delay_s: float = 5.0
    flush_s: float = 10.0
    retry_s: float = 60.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> QueueLimits:
        """The defaults, changed by the OTEL_BSP_* variables.

        Raises:
            UsageError: one of them is no whole number, or none from 1 to 999999999.
        """

        def number(name: str, default: float) -> float:
            return whole_number(environment, name, default)

        return cls(
            requests=int(number("OTEL_BSP_MAX_QUEUE_SIZE", cls.requests)),
            batch_spans=int(number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 0)) or None,
            delay_s=number("OTEL_BSP_SCHEDULE_DELAY", cls.delay_s * 1000) / 1000,
            flush_s=number("OTEL_BSP_EXPORT_TIMEOUT", cls.flush_s * 1000) / 1000,
        )


@dataclass(frozen=True)
class _Batch:
    """Requests that go together, and what is made of them, as soon as it is."""

    requests: Requests
    formed: Future[Formed] | None


class Sender:
    """Sends requests in a thread of its own, and forms what it sends in another.

    Args:
        way_out: None drops everything, counted as exported to nowhere.
        spans_most: how many spans a request becomes at the most.
    """

    def __init__(
        self,
        way_out: WayOut[Requests] | None,
        spans_most: int,
        tally: Tally,
        limits: QueueLimits,
    ) -> None:
        self._way_out = way_out
        self._spans_most = spans_most
        self._tally = tally
        self._limits = limits
        self._batch, self._batch_most = limits.batch, limits.batch_most
        if limits.batch_spans is not None:
            self._batch = self._batch_most = max(1, limits.batch_spans // spans_most)
        # More than the queue holds would never come together.
        self._batch = min(self._batch, limits.requests)
        self._queue: deque[Requests] = deque()
        # What is formed ahead waits, too: before all that is in the queue.
        self._ahead: _Batch | None = None
        self._waiting = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._quiet_until = float("-inf")
        # When a batch was begun, or some of it were taken last.
        self._moved_at = time.monotonic()
        # From when on a batch goes that is not full.
        self._due_at = self._moved_at
        self._sending = 0
        self._abandoned = False
        # One thread: an encoder knows what it was given before.
        self._former = ThreadPoolExecutor(1, "otelbpf-former")
        self._delivery = None if way_out is None else self._delivery_by(way_out)
        self._thread = threading.Thread(target=self._run, name="otelbpf-sender", daemon=True)

    def _delivery_by(self, way_out: WayOut[Requests]) -> Delivery[Requests]:
        wording = Wording(
            way_out.whose, "spans", "spans", "the spans of a single request",
            meanwhile=f"they wait in a queue of {self._limits.requests} requests, and what does "
            f"not fit, or is not taken for {self._limits.retry_s:.0f} s, is counted as lost",
        )  # fmt: skip
        return Delivery(
            way_out.door, lambda requests: self._begin_to_form(requests).result(), wording,
            self._limits.retry_s, way_out.most,
        )  # fmt: skip

    def _begin_to_form(self, requests: Requests) -> Future[Formed]:
        return self._former.submit(self._form, requests)

    def _form(self, requests: Requests) -> Formed:
        assert self._way_out is not None
        return Formed(self._way_out.form(requests), lambda: self._spans_of(requests))

    def _spans_of(self, requests: Requests) -> list[int]:
        """How many spans each of them is."""
        if self._spans_most == 1:
            return [1] * len(requests)
        spans: list[int] = spans_each(requests.records).tolist()
        return spans

    def start(self) -> None:
        """Starts sending."""
        # Now, as there may be no room for another thread when the first batch is full.
        self._former.submit(int).result()
        self._thread.start()

    def room(self) -> int | None:
        """How many more fit, where it helps to wait for room; None: what is sent is not taken."""
        if self._sending and time.monotonic() - self._moved_at > _LATELY_S:
            return None
        return self._places()

    def _places(self) -> int:
        return max(0, self._limits.requests - self._waiting)

    def admit(self, count: int) -> int:
        """How many of `count` requests fit into the queue; the rest is counted as lost."""
        room = self._places()
        if count > room:
            self._tally.lose(Lost.QUEUE_FULL, count - room)
            self._tell_overflow()
        return min(count, room)

    def _tell_overflow(self) -> None:
        now = time.monotonic()
        if now < self._quiet_until:
            return
        self._quiet_until = now + QUIET_S
        _log.warning(
            "more requests come than are taken in the same time: the queue of %d is full, and what "
            "does not fit is counted as lost", self._limits.requests,
        )  # fmt: skip

    def put(self, requests: Requests) -> None:
        """Queues requests; those that do not fit are counted as lost. Never waits."""
        requests = requests[: self.admit(len(requests))]
        if not len(requests):
            return
        with self._changed:
            # While some wait already, the thread wakes by itself when they are due.
            wakes = not self._waiting or self._waiting + len(requests) >= self._batch
            self._queue.append(requests)
            self._waiting += len(requests)
            if wakes:
                self._changed.notify()

    def stop(self) -> None:
        """Sends what is queued, for as long as the limits allow, and ends the thread.

        What could not be sent by then is counted as lost. If it waits, it says so.
        """
        stop_at = time.monotonic() + self._limits.flush_s
        if self._delivery is not None:
            self._delivery.stop(self._limits.flush_s)
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(min(UNSAID_S, self._limits.flush_s))
        rest_s = stop_at - time.monotonic()
        if self._thread.is_alive() and rest_s > 0:
            waiting = self._waiting + self._sending
            _log.warning(
                "stopping: %s for %s, for %g s at most",
                "1 request waits" if waiting == 1 else f"{waiting} requests wait",
                self._way_out and self._way_out.whose, self._limits.flush_s,
            )  # fmt: skip
            self._thread.join(rest_s)
        if self._way_out is not None:
            # Ends a try that is under way; one over HTTP may not hear it.
            self._way_out.door.close()
        self._thread.join(_LAST_EXPORT_S)
        with self._changed:
            # What a thread that still hangs does from here on counts no more.
            self._abandoned = True
            left = self._waiting + self._sending
            self._tally.lose(Lost.EXPORT_FAILED, left)
        if left:
            _log.warning(
                "%s has not answered until now: %s given up, and counted as lost",
                self._way_out and self._way_out.whose,
                "1 request is" if left == 1 else f"{left} requests are",
            )
        # Nobody will be sent what it would form.
        self._former.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._look_ahead()
            for fate in self._fates(batch):
                with self._changed:
                    if self._abandoned:
                        return
                    self._sending -= fate.units
                    if fate.taken:
                        self._moved_at = time.monotonic()
                    self._tally.export(fate.taken)
                    for reason, count in fate.lost.items():
                        self._tally.lose(reason, count)

    def _fates(self, batch: _Batch) -> Iterable[Fate]:
        if self._delivery is None:
            return (Fate(len(batch.requests)),)
        return self._delivery.deliver(batch.requests, batch.formed)

    def _next_batch(self) -> _Batch | None:
        """The next requests to send; None when all is done.

        What comes after a while without any goes at once: to wait would save no message.
        """
        with self._changed:
            while not self._ahead and not self._stopping and self._waiting < self._batch:
                rest_s = self._due_at - time.monotonic() if self._waiting else None
                if rest_s is not None and rest_s <= 0:
                    break
                self._changed.wait(rest_s)
            if self._abandoned:
                return None
            self._moved_at = time.monotonic()
            self._due_at = self._moved_at + self._limits.delay_s
            batch, self._ahead = self._ahead or self._first(), None
            if batch is not None:
                self._sending = len(batch.requests)
                self._waiting -= self._sending
            return batch

    def _look_ahead(self) -> None:
        """Begins with the next batch if it is full already: behind the one that is to be sent."""
        with self._changed:
            if self._waiting >= self._batch and not self._abandoned:
                self._ahead = self._first()

    def _first(self) -> _Batch | None:
        """The queue's first requests, which are being formed from now on; None: it is empty."""
        parts: list[Requests] = []
        count, most = 0, self._at_once()
        while self._queue and count < most:
            part = self._queue.popleft()
            room = most - count
            if len(part) > room:
                self._queue.appendleft(part[room:])
                part = part[:room]
            parts.append(part)
            count += len(part)
        if not parts:
            return None
        requests = Requests.joined(parts)
        return _Batch(requests, self._begin_to_form(requests) if self._goes_whole(count) else None)

    def _at_once(self) -> int:
        """How many go together, if so many wait.

        Where many come the way to the collector and back takes most of the time, whatever the size.
        """
        return self._batch_most if self._goes_whole(self._batch_most) else self._batch

    def _goes_whole(self, count: int) -> bool:
        return self._delivery is not None and self._delivery.goes_whole(count)
