# SPDX-License-Identifier: Apache-2.0
"""What came between two snapshots."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from otelbpf.ledger.request import Kind
from otelbpf.ledger.tally import Coverage, Sums
from otelbpf.metrics.snapshot import (
    Connections,
    Histogram,
    Series,
    SeriesKey,
    Snapshot,
    no_durations,
)

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class Receiver:
    """Who is told of metrics, and what it was told.

    A series may end, and its sums go to the overflow. Cumulative sums of an overflow that had all
    of them would tell again what was told under the series' own name. So they have what was not
    told there; all other requests of series that have ended are told as a number beside the series.

    Attributes:
        last: what it was told last; None: nothing yet.
        ended: of each kind, what it was told of series that have ended by then.
    """

    last: Snapshot | None = None
    ended: Mapping[Kind, Series] = field(default_factory=dict)

    def with_next(self, now: Snapshot) -> Receiver:
        """After it was told of `now`, too."""
        return Receiver(now, self._ended_by(now))

    def cumulative(self, now: Snapshot) -> Snapshot:
        """What to tell it of sums since the start."""
        ended = self._ended_by(now)
        series = (
            _series_since(s, ended.get(s.key.kind)) if s.key.overflow else s for s in now.series
        )
        counts = {kind: ended[kind].duration.count if kind in ended else 0 for kind in _kinds(now)}
        return replace(now, series=tuple(filter(None, series)), ended=counts)

    def _ended_by(self, now: Snapshot) -> dict[Kind, Series]:
        return _by_kind((*self.ended.values(), *_ended_between(self.last, now)))


def since(now: Snapshot, earlier: Snapshot | None) -> Snapshot:
    """What came after `earlier`, as a snapshot that starts there; series with nothing new are gone.

    Args:
        earlier: of the same agent; None: everything is new.
    """
    if earlier is None:
        return now
    series_before = {_identity(series): series for series in earlier.series}
    ended = _by_kind(_ended_between(earlier, now))

    def before(of_now: Series) -> Series | None:
        same = series_before.get(_identity(of_now))
        more = ended.get(of_now.key.kind) if of_now.key.overflow else None
        return _added(same, more) if same and more else same or more

    connections = {connections.kind: connections for connections in by_kind(earlier.connections)}
    series = (_series_since(of_now, before(of_now)) for of_now in now.series)
    return replace(
        now,
        start_unix_ns=earlier.unix_ns,
        series=tuple(filter(None, series)),
        connections=tuple(
            _connections_since(of_now, connections.get(of_now.kind, Connections(of_now.kind)))
            for of_now in by_kind(now.connections)
        ),
        sums=_sums_since(now.sums, earlier.sums),
    )


def _identity(series: Series) -> tuple[SeriesKey, int]:
    """A series that has ended and one of the same key that began later are two."""
    return series.key, series.since_unix_ns


def _kinds(snapshot: Snapshot) -> set[Kind]:
    return {series.key.kind for series in snapshot.series}


def _ended_between(earlier: Snapshot | None, now: Snapshot) -> list[Series]:
    if earlier is None:
        return []
    living = {_identity(series) for series in now.series}
    return [series for series in earlier.series if _identity(series) not in living]


def _by_kind(series: Iterable[Series]) -> dict[Kind, Series]:
    sums: dict[Kind, Series] = {}
    for one in series:
        known = sums.get(one.key.kind)
        sums[one.key.kind] = _added(known, one) if known else one
    return sums


def _added(first: Series, second: Series) -> Series:
    """Both together, as the first one."""
    return replace(
        first,
        request_bytes=first.request_bytes + second.request_bytes,
        response_bytes=first.response_bytes + second.response_bytes,
        retransmits=first.retransmits + second.retransmits,
        out_of_order=first.out_of_order + second.out_of_order,
        duration=_sum(first.duration, second.duration),
        stages={
            name: _sum(first.stages.get(name), second.stages.get(name))
            for name in first.stages | second.stages
        },
        acked=_sum(first.acked, second.acked),
    )


def _series_since(now: Series, earlier: Series | None) -> Series | None:
    if earlier is None:
        return now
    old = set(earlier.exemplars)
    new = replace(
        now,
        request_bytes=now.request_bytes - earlier.request_bytes,
        response_bytes=now.response_bytes - earlier.response_bytes,
        retransmits=now.retransmits - earlier.retransmits,
        out_of_order=now.out_of_order - earlier.out_of_order,
        duration=_histogram_since(now.duration, earlier.duration),
        stages={
            name: stage
            for name, of_now in now.stages.items()
            if (stage := _histogram_since(of_now, earlier.stages.get(name))).count
        },
        acked=_histogram_since(now.acked, earlier.acked),
        exemplars=tuple(exemplar for exemplar in now.exemplars if exemplar not in old),
    )
    # The bytes may be read a moment before the request that they are of is counted.
    counted = (new.request_bytes, new.response_bytes, new.retransmits, new.out_of_order)
    return new if new.duration.count or new.stages or any(counted) else None


def by_kind(connections: Iterable[Connections]) -> tuple[Connections, ...]:
    """Those of all ports together, of servers' ones and of upstreams'."""
    sums: dict[Kind, Connections] = {}
    for one in connections:
        known = sums.get(one.kind, Connections(one.kind))
        sums[one.kind] = Connections(
            one.kind,
            {
                name: known.counts.get(name, 0) + one.counts.get(name, 0)
                for name in known.counts | one.counts
            },
            _together(known.handshake, one.handshake),
            _together(known.accept_queue, one.accept_queue),
        )
    return tuple(sums.values())


def _together(first: Histogram | None, second: Histogram | None) -> Histogram | None:
    return None if first is None and second is None else _sum(first, second)


def _sum(first: Histogram | None, second: Histogram | None) -> Histogram:
    first, second = first or no_durations(), second or no_durations()
    return Histogram(first.sum_ns + second.sum_ns, first.counts + second.counts)


def _connections_since(now: Connections, earlier: Connections) -> Connections:
    def histogram(of_now: Histogram | None, before: Histogram | None) -> Histogram | None:
        return of_now and _histogram_since(of_now, before)

    return Connections(
        now.kind,
        _counts_since(now.counts, earlier.counts),
        histogram(now.handshake, earlier.handshake),
        histogram(now.accept_queue, earlier.accept_queue),
    )


def _sums_since(now: Sums, earlier: Sums) -> Sums:
    return Sums(
        seen=now.seen - earlier.seen,
        exported=now.exported - earlier.exported,
        sampled_out=now.sampled_out - earlier.sampled_out,
        ignored=now.ignored - earlier.ignored,
        lost=_counts_since(now.lost, earlier.lost),
        connections=_counts_since(now.connections, earlier.connections),
        missed=_counts_since(now.missed, earlier.missed),
        joins=_counts_since(now.joins, earlier.joins),
        segments=_counts_since(now.segments, earlier.segments),
        interfaces={
            name: _coverage_since(coverage, earlier.interfaces.get(name, Coverage()))
            for name, coverage in now.interfaces.items()
        },
    )


def _coverage_since(now: Coverage, earlier: Coverage) -> Coverage:
    before = earlier.unmeasured_s
    return Coverage(now.gap, {gap: s - before.get(gap, 0.0) for gap, s in now.unmeasured_s.items()})


def _counts_since(now: Mapping[_Key, int], earlier: Mapping[_Key, int]) -> dict[_Key, int]:
    return {name: count - earlier.get(name, 0) for name, count in now.items()}


def _histogram_since(now: Histogram, earlier: Histogram | None) -> Histogram:
    before = earlier or no_durations()
    return Histogram(now.sum_ns - before.sum_ns, now.counts - before.counts)
