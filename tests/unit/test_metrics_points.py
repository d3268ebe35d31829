# SPDX-License-Identifier: Apache-2.0
"""Histograms as data points: what is counted where, and what came between two snapshots."""

from __future__ import annotations

import random

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from snapshots import EXEMPLAR, START_UNIX_NS, histogram, key, series, snapshot, sums

from otelbpf.ledger.request import Kind
from otelbpf.ledger.tally import Lost
from otelbpf.metrics.instruments import MetricStyle, metrics_of
from otelbpf.metrics.points import EXPLICIT_BOUNDS_S, HistogramStyle, histogram_point
from otelbpf.metrics.since import by_kind, since
from otelbpf.metrics.snapshot import BUCKETS, Connections, Exemplar

EXPLICIT, EXPONENTIAL = HistogramStyle


def test_explicit_bounds_are_powers_of_two() -> None:
    assert [2.0**power for power in range(-20, 7)] == list(EXPLICIT_BOUNDS_S)


def test_explicit_counts_are_exact() -> None:
    """Compared with counting each duration by itself, also at each bound and beside it."""
    chance = random.Random(1)
    durations_ns = [int(2 ** chance.uniform(0, 43)) for _ in range(2_000)]
    for bound_ns in (10**9 * 2**power for power in range(-9, 7)):
        durations_ns += [int(bound_ns) - 1, int(bound_ns), int(bound_ns) + 1]
    point = histogram_point(histogram(*durations_ns), EXPLICIT, {}, 1, 2)
    lower, counts = 0.0, []
    for upper in (*EXPLICIT_BOUNDS_S, float("inf")):
        counts.append(sum(lower < ns / 1e9 <= upper for ns in durations_ns))
        lower = upper
    assert list(point.bucket_counts) == counts
    assert point.count == len(durations_ns)
    assert point.sum == pytest.approx(sum(durations_ns) / 1e9)


def test_exponential_buckets_are_the_kernels() -> None:
    """Whose upper bounds belong to them."""
    for duration_ns in (120, 1_000, 999_999, 123_456_789, 5 * 10**8, 10**9, 10**9 + 1, 10**12):
        point = histogram_point(histogram(duration_ns), EXPONENTIAL, {}, 1, 2)
        assert (point.scale, point.zero_count, point.count) == (3, 0, 1)
        assert list(point.positive.bucket_counts) == [1]
        upper_ns = 2 ** ((point.positive.offset + 1) / 8) * 1e9
        lower_ns = upper_ns / 2 ** (1 / 8)
        assert lower_ns < duration_ns <= upper_ns


def test_exponential_buckets_from_the_first_to_the_last_that_has_any() -> None:
    point = histogram_point(histogram(100, 119, 1_000, 1_000, 4_000), EXPONENTIAL, {}, 1, 2)
    assert point.zero_count == 2
    counts = list(point.positive.bucket_counts)
    # Two octaves of eight buckets lie between them.
    assert counts == [2, *[0] * 15, 1]
    assert point.count == point.zero_count + sum(counts) == 5


def test_exponential_extremes() -> None:
    point = histogram_point(histogram(2**50), EXPONENTIAL, {}, 1, 2)
    first = histogram_point(histogram(120), EXPONENTIAL, {}, 1, 2)
    assert point.positive.offset - first.positive.offset == BUCKETS - 2
    nothing = histogram_point(histogram(), EXPONENTIAL, {}, 1, 2)
    assert (nothing.count, nothing.zero_count, nothing.positive.bucket_counts) == (0, 0, [])


@pytest.mark.parametrize("style", HistogramStyle)
def test_otlp_takes_them_and_is_told_of_no_least_and_no_greatest(style: HistogramStyle) -> None:
    told = encode_metrics(metrics_of(snapshot(), style=MetricStyle(style)))
    (metric,) = (
        metric
        for of_resource in told.resource_metrics
        for metric in of_resource.scope_metrics[0].metrics
        if metric.name == "http.server.request.duration"
    )
    data = metric.histogram if style is EXPLICIT else metric.exponential_histogram
    (point,) = data.data_points
    assert point.count == 2
    assert not point.HasField("min") and not point.HasField("max")
    assert data.aggregation_temporality == 2
    (exemplar,) = point.exemplars
    assert exemplar.trace_id == EXEMPLAR.trace_id.to_bytes(16, "big")
    assert exemplar.span_id == EXEMPLAR.span_id.to_bytes(8, "big")
    assert exemplar.as_double == 0.003
    assert exemplar.time_unix_nano == EXEMPLAR.unix_ns


def test_since_the_start_is_all() -> None:
    now = snapshot()
    assert since(now, None) is now


def test_since_is_what_is_new() -> None:
    newer = Exemplar(2, 3, 4_000_000, START_UNIX_NS + 15 * 10**9)
    early = snapshot(series(durations_ns=[3_000_000], exemplars=(EXEMPLAR,)), seconds=10)
    late = snapshot(
        series(durations_ns=[3_000_000, 9_000_000, 4_000_000], exemplars=(EXEMPLAR, newer)),
        series(key(method="POST"), [7_000_000]),
        seconds=20,
        sums=sums(seen=15),
    )
    new = since(late, early)
    assert (new.start_unix_ns, new.unix_ns) == (early.unix_ns, late.unix_ns)
    gets, posts = new.series
    assert gets.duration.count == 2
    assert gets.duration.sum_ns == 13_000_000
    assert (gets.request_bytes, gets.response_bytes) == (200, 2_000)
    assert (gets.retransmits, gets.out_of_order) == (1, 1)
    assert {name: stage.count for name, stage in gets.stages.items()} == {
        "nic_to_read": 2,
        "read_to_tc_out": 2,
    }
    assert (gets.acked.count, gets.acked.sum_ns) == (2, 14_000)
    assert gets.exemplars == (newer,)
    assert posts is late.series[1]
    assert (new.sums.seen, new.sums.exported, new.sums.sampled_out) == (5, 5, 0)
    assert new.sums.lost == {Lost.RING_FULL: 0}


def test_series_with_nothing_new_are_gone() -> None:
    early, late = snapshot(seconds=10), snapshot(seconds=20)
    new = since(late, early)
    assert new.series == ()
    (connections,) = new.connections
    assert set(connections.counts.values()) == {0}
    assert connections.handshake is not None and connections.handshake.count == 0


def test_connections_of_several_ports_add_up() -> None:
    ports = [
        Connections(Kind.SERVER, {"opened": 1, "reset": 2}, handshake=histogram(10)),
        Connections(Kind.CLIENT, {"opened": 5}),
        Connections(Kind.SERVER, {"opened": 3}, handshake=histogram(20), accept_queue=histogram(1)),
    ]
    servers, clients = by_kind(ports)
    assert (servers.kind, servers.counts) == (Kind.SERVER, {"opened": 4, "reset": 2})
    assert servers.handshake is not None and servers.handshake.sum_ns == 30
    assert servers.accept_queue is not None and servers.accept_queue.count == 1
    assert (clients.counts, clients.handshake) == ({"opened": 5}, None)
