# SPDX-License-Identifier: Apache-2.0
"""All requests in sums by series, whatever becomes of them.

The kernel adds requests to the series that they are of (bpf/ledger/series.h). What has no place
there yet, or did not end as it should, comes here as a record, and is added up here by the same
rule; a new series then gets its place, and so does a new order of stamps, of which the kernel
is told where its stages are. A snapshot is the sum of both.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from itertools import chain, islice

import numpy as np

from otelbpf.host.resource import Resources
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.mapped_parts import PartlyMappedArray
from otelbpf.kernel.records import SERIES, Stamp
from otelbpf.ledger.batch import Batch, Requests, numbers_of, sorted_stamps, times_of
from otelbpf.metrics.series_places import SeriesPlaces
from otelbpf.metrics.snapshot import Exemplar, Histogram, Series, buckets_of
from otelbpf.metrics.stage_places import StagePlaces
from otelbpf.policy.routes import Routes
from otelbpf.policy.sampler import Slow

_EXEMPLARS_EACH = 4
# With one of another type numpy would add floats.
_ONE = np.uint64(1)
_COUNTS = ("request_bytes", "response_bytes", "retransmits", "out_of_order")


class SeriesTable:
    """The kernel's sums and ours.

    Args:
        programs: whose limits have room for at least three series.
        slow: from when on requests are kept since they were slow.
    """

    def __init__(
        self, programs: Programs, routes: Routes, resources: Resources, slow: Slow
    ) -> None:
        #: No series ends while a snapshot is taken: its sums could be in it twice, or not at all.
        self._moving = threading.Lock()
        self._places = SeriesPlaces(programs, routes, resources, slow)
        self._stages = StagePlaces(programs)
        most = programs.limits.series
        # As far as there are series.
        self._rows = programs.series_rows
        self._mapped = PartlyMappedArray(programs.map_fd("series"), SERIES, self._rows.count)
        self._kernels = self._mapped.values
        # In a mapping of its own, of which only pages that are touched take memory: for an array as
        # large as this numpy asks for huge pages, which are cleared as a whole.
        self._ours = np.frombuffer(mmap.mmap(-1, most * SERIES.itemsize), SERIES)
        # All that each has, as numbers modulo 2**64.
        self._kernels_numbers, self._our_numbers = _numbers(self._kernels), _numbers(self._ours)
        #: Each one's bytes of requests when it was last looked who has new ones: no request has
        #: none.
        self._seen_bytes = np.zeros(most, np.uint64)
        self._exemplars: dict[int, list[Exemplar]] = {}

    def add(self, records: np.ndarray) -> np.ndarray:
        """Adds requests that the kernel has not added.

        Args:
            records: (n,) REQUEST_RECORD without RequestFlag.IN_SERIES.
        Returns:
            (n,) bool: which of them were slow.
        """
        if not len(records):
            return np.zeros(0, bool)
        places, slow_ns = self._places.of(records)
        ours = self._ours
        for name in ("request_bytes", "response_bytes", "out_of_order"):
            np.add.at(ours[name], places, records[name])
        for name in ("request_retransmits", "response_retransmits"):
            np.add.at(ours["retransmits"], places, records[name])

        stamps = sorted_stamps(records)
        times, numbers = times_of(stamps), numbers_of(stamps)
        rows, at = np.nonzero(stamps[:, :-1])
        stages = self._stages.of(numbers[rows, at], numbers[rows, at + 1])
        self._stages.tell_orders(stamps)
        lengths = times[rows, at + 1] - times[rows, at]
        np.add.at(ours["stages"]["sum_ns"], (places[rows], stages), lengths.astype(np.uint64))
        np.add.at(ours["stages"]["counts"], (places[rows], stages, buckets_of(lengths)), _ONE)

        first = np.argmax(stamps != 0, axis=1)
        durations = times[:, -1] - times[np.arange(len(times)), first]
        np.add.at(ours["duration"]["sum_ns"], places, durations.astype(np.uint64))
        np.add.at(ours["duration"]["counts"], (places, buckets_of(durations)), _ONE)

        acked = records["stamp_ktime_ns"][:, Stamp.ACKED].astype(np.int64) - times[:, -1]
        later = np.flatnonzero(acked > 0)
        np.add.at(ours["acked"]["sum_ns"], places[later], acked[later].astype(np.uint64))
        np.add.at(ours["acked"]["counts"], (places[later], buckets_of(acked[later])), _ONE)
        is_slow: np.ndarray = durations.astype(np.uint64) >= slow_ns
        return is_slow

    def refresh(self, now_s: float) -> None:
        """Once a second: series that have long had no requests end, if others have no place.

        What they had goes to the overflow, so that nothing is missing from a snapshot. While one is
        taken none ends: that is for the next time.

        Args:
            now_s: on the monotonic clock.
        """
        if not self._moving.acquire(blocking=False):
            return
        try:
            given = self._reach_living()
            kernels = self._rows.sums(self._kernels["request_bytes"], given)
            total = kernels + self._ours["request_bytes"][:given]
            had_requests = total != self._seen_bytes[:given]
            self._seen_bytes[:given] = total
            for place, overflow in self._places.end_silent(had_requests, now_s):
                self._move(place, overflow)
        finally:
            self._moving.release()

    def become(self, routes: Routes, slow: Slow, now_s: float) -> None:
        """These hold from now on; what was added up stays.

        Args:
            now_s: on the monotonic clock.
        """
        with self._moving:
            self._places.become(routes, slow, now_s)

    def _reach_living(self) -> int:
        """Maps the places that series have or had, which are the first ones; how many these are."""
        given = self._places.given
        self._mapped.reach_range(0, self._rows.end(given))
        return given

    def _kernels_of(self, place: int) -> np.ndarray:
        """(…) uint64: all that the kernel has added to a series by now, on whichever processor."""
        sums: np.ndarray = self._kernels_numbers[self._rows.rows_of(place)].sum(axis=0)
        return sums

    def _move(self, place: int, overflow: int) -> None:
        """Moves the sums of a place to another one; nothing is added to it meanwhile.

        Only the kernel writes to its own sums: ours are as much below zero from here on.
        """
        kernels = self._kernels_of(place)
        moved = kernels + self._our_numbers[place]
        self._our_numbers[overflow] += moved
        self._our_numbers[place] = -kernels
        # They are no new requests.
        self._seen_bytes[overflow] += moved.view(SERIES)["request_bytes"][0]
        self._seen_bytes[place] = 0
        self._exemplars.pop(place, None)

    def exemplify(self, requests: Requests) -> None:
        """Remembers, for each series, the last ones of these requests, which become spans."""
        rows_of: dict[int, list[int]] = {}
        # The newest first.
        for row, place in reversed(list(enumerate(self._places.known(requests.records)))):
            if place is not None and len(rows := rows_of.setdefault(place, [])) < _EXEMPLARS_EACH:
                rows.append(row)
        # Of all at once: where many series have a request each, that is most of the work.
        newest = _exemplars(requests[np.array([*chain(*rows_of.values())], int)])
        for place, rows in rows_of.items():
            exemplars = [*islice(newest, len(rows)), *self._exemplars.get(place, ())]
            self._exemplars[place] = exemplars[:_EXEMPLARS_EACH]

    def snapshot(self) -> tuple[Series, ...]:
        """All series that have requests; from any thread.

        Requests that are added meanwhile, here as by the kernel, may be in some of a series' sums
        and not yet in others: nobody waits for a snapshot.
        """
        with self._moving:
            return tuple(self._series())

    def _series(self) -> Iterator[Series]:
        # Others may come meanwhile.
        living = [*self._places.living()]
        self._reach_living()
        for place, key, since_unix_ns in living:
            both = self._kernels_of(place) + self._our_numbers[place]
            sums = both.view(SERIES)[0]
            duration = _histogram(sums["duration"])
            if not duration.count:
                continue
            yield Series(
                key,
                **{name: int(sums[name]) for name in _COUNTS},
                duration=duration,
                stages=self._stages_of(sums["stages"]),
                acked=_histogram(sums["acked"]),
                exemplars=tuple(self._exemplars.get(place, ())),
                since_unix_ns=since_unix_ns,
            )

    def _stages_of(self, sums: np.ndarray) -> dict[str, Histogram]:
        """Those that have any."""
        names = self._stages.names
        # Copies: else they would hold all that the series has.
        counts, sums_ns = sums["counts"][: len(names)].copy(), sums["sum_ns"].tolist()
        return {
            names[stage]: Histogram(sums_ns[stage], counts[stage])
            for stage in np.flatnonzero(counts.any(axis=1)).tolist()
        }

    def close(self) -> None:
        """Unmaps what was mapped."""
        del self._kernels, self._kernels_numbers
        self._mapped.close()
        self._stages.close()
        self._places.close()


def _exemplars(requests: Requests) -> Iterator[Exemplar]:
    batch, contexts = Batch(requests), requests.contexts
    ends = batch.end_ktime_ns
    columns = (
        contexts.trace_id_high,
        contexts.trace_id_low,
        contexts.span_id,
        ends - batch.start_ktime_ns,
        batch.unix_ns(ends),
    )
    for high, low, span_id, duration_ns, unix_ns in zip(
        *(c.tolist() for c in columns), strict=True
    ):
        yield Exemplar(high << 64 | low, span_id, duration_ns, unix_ns)


def _numbers(series: np.ndarray) -> np.ndarray:
    """(n, …) uint64: all that n series have, in the same memory."""
    return series.view(np.uint64).reshape(len(series), -1)


def _histogram(sums: np.void) -> Histogram:
    # A copy, likewise.
    return Histogram(int(sums["sum_ns"]), sums["counts"].copy())
