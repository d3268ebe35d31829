# SPDX-License-Identifier: Apache-2.0
"""What came between two snapshots."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from otelbpf.accounting import Coverage, Sums
from otelbpf.request import Kind
from otelbpf.snapshot import Connections, Histogram, Series, Snapshot, no_durations

_Key = TypeVar("_Key", bound=Hashable)


def since(now: Snapshot, earlier: Snapshot | None) -> Snapshot:
    """What came after `earlier`, as a snapshot that starts there; series with nothing new are gone.

    Args:
        earlier: of the same agent; None: everything is new.
    """
    if earlier is None:
        return now
    series_before = {series.key: series for series in earlier.series}
    before = {connections.kind: connections for connections in by_kind(earlier.connections)}
    series = (_series_since(s, series_before.get(s.key)) for s in now.series)
    return replace(
        now,
        start_unix_ns=earlier.unix_ns,
        series=tuple(filter(None, series)),
        connections=tuple(
            _connections_since(of_now, before.get(of_now.kind, Connections(of_now.kind)))
            for of_now in by_kind(now.connections)
        ),
        sums=_sums_since(now.sums, earlier.sums),
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
    if first is None or second is None:
        return first or second
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
        lost=_counts_since(now.lost, earlier.lost),
        connections=_counts_since(now.connections, earlier.connections),
        missed=_counts_since(now.missed, earlier.missed),
        joins=_counts_since(now.joins, earlier.joins),
        interfaces={
            name: _coverage_since(coverage, earlier.interfaces.get(name, Coverage()))
            for name, coverage in now.interfaces.items()
        },
    )


def _coverage_since(now: Coverage, earlier: Coverage) -> Coverage:
    before = earlier.unmeasured_s
    return Coverage(
        now.gap, {gap: s - before.get(gap, 0.0) for gap, s in now.unmeasured_s.items()}
    )


def _counts_since(now: Mapping[_Key, int], earlier: Mapping[_Key, int]) -> dict[_Key, int]:
    return {name: count - earlier.get(name, 0) for name, count in now.items()}


def _histogram_since(now: Histogram, earlier: Histogram | None) -> Histogram:
    before = earlier or no_durations()
    return Histogram(now.sum_ns - before.sum_ns, now.counts - before.counts)
