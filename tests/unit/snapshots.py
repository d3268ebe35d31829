# SPDX-License-Identifier: Apache-2.0
"""Snapshots as the kernel's counts could have made them, and metrics by their names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from opentelemetry.sdk.metrics.export import Metric, MetricsData
from opentelemetry.sdk.resources import Resource

from otelbpf.ledger.request import Kind
from otelbpf.ledger.tally import Coverage, Gap, Lost, Sums
from otelbpf.metrics.snapshot import (
    BUCKETS,
    Connections,
    Exemplar,
    Histogram,
    Series,
    SeriesKey,
    Snapshot,
    buckets_of,
)

START_UNIX_NS = 1_700_000_000_000_000_000
SHOP = Resource({"service.name": "shop", "service.instance.id": "shop-1", "host.name": "till"})
AGENT = Resource({"service.name": "otelbpf", "service.instance.id": "agent-1"})
EXEMPLAR = Exemplar(0xABC << 64 | 7, 0xDEF, 3_000_000, START_UNIX_NS + 10**9)


def histogram(*durations_ns: int) -> Histogram:
    """Of these durations, counted as the kernel counts them."""
    counts = np.bincount(buckets_of(np.array(durations_ns, np.int64)), minlength=BUCKETS)
    return Histogram(sum(durations_ns), counts.astype(np.uint64))


def key(kind: Kind = Kind.SERVER, **changes: Any) -> SeriesKey:
    """Of a GET that was answered with 200, with some fields changed."""
    of_kind: dict[str, Any] = {"server_port": 8080}
    if kind is Kind.CLIENT:
        of_kind = {"server_port": 9000, "server_address": "models"}
    fields = {"resource": SHOP, "method": "GET", "route": "/items/{id}", "status": 200, **of_kind}
    return SeriesKey(kind, **{**fields, **changes})


def series(
    of: SeriesKey | None = None,
    durations_ns: Iterable[int] = (3_000_000, 5_000_000),
    *,
    exemplars: tuple[Exemplar, ...] = (),
) -> Series:
    """Requests of which a thousandth was in the first stage, and all else in the other."""
    durations_ns = tuple(durations_ns)
    n = len(durations_ns)
    first = [duration // 1000 for duration in durations_ns]
    rest = [duration - part for duration, part in zip(durations_ns, first, strict=True)]
    return Series(
        of or key(),
        request_bytes=100 * n,
        response_bytes=1_000 * n,
        retransmits=n // 2,
        out_of_order=n // 3,
        duration=histogram(*durations_ns),
        stages={"nic_to_read": histogram(*first), "read_to_tc_out": histogram(*rest)},
        acked=histogram(*(7_000 for _ in durations_ns)),
        exemplars=exemplars,
    )


def sums(seen: int = 10) -> Sums:
    """Three were sampled out, two lost; one is in flight."""
    return Sums(
        seen=seen,
        exported=seen - 6,
        sampled_out=3,
        lost={Lost.RING_FULL: 2},
        connections={"opened": 4, "own": 1, "unseen": 2},
        missed={"tracepoint tcp_probe": 5},
        joins={"marks_joined": 6, "marks_unknown": 1},
        segments={"stray": 3, "unasked": 2, "uncertain": 1},
        interfaces={
            "eth0": Coverage(),
            "eth1": Coverage(Gap.GONE, {Gap.GONE: 2.5, Gap.BEHIND: 0.5}),
        },
    )


def snapshot(*all_series: Series, seconds: int = 10, **changes: Any) -> Snapshot:
    """One taken some seconds after the start, of a server with connections."""
    server = Connections(
        Kind.SERVER,
        {"opened": 4, "closed": 3, "reset": 1, "refused": 2, "unanswered": 1},
        handshake=histogram(20_000, 30_000, 40_000),
        accept_queue=histogram(5_000),
    )
    fields: dict[str, Any] = {
        "resource": AGENT,
        "series": all_series or (series(exemplars=(EXEMPLAR,)),),
        "connections": (server,),
        "sums": sums(),
    }
    return Snapshot(START_UNIX_NS, START_UNIX_NS + seconds * 10**9, **{**fields, **changes})


def by_name(data: MetricsData, resource: Resource | None = None) -> dict[str, Metric]:
    """The metrics of one resource, or of all; each name must be there once."""
    metrics = [
        metric
        for of_resource in data.resource_metrics
        if resource in (None, of_resource.resource)
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
    ]
    named = {metric.name: metric for metric in metrics}
    assert len(named) == len(metrics)
    return named


def points(data: MetricsData, name: str) -> list[Any]:
    """The data points of the metric of that name."""
    return list(by_name(data)[name].data.data_points)


def values(data: MetricsData, name: str, attribute: str | None = None) -> Any:
    """The only point's value; or all, by one attribute."""
    if attribute is None:
        (point,) = points(data, name)
        return point.value
    return {point.attributes[attribute]: point.value for point in points(data, name)}
