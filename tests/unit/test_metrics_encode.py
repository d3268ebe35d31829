# SPDX-License-Identifier: Apache-2.0
"""Metrics as bytes say what the official encoder says."""

from __future__ import annotations

import random

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.resources import Resource
from snapshots import EXEMPLAR, key, series, snapshot, sums

from otelbpf.ledger.request import Kind
from otelbpf.ledger.tally import Lost
from otelbpf.metrics.encode import encode
from otelbpf.metrics.instruments import MetricStyle, Temporality, Untold, metrics_of
from otelbpf.metrics.points import HistogramStyle
from otelbpf.metrics.since import Receiver
from otelbpf.metrics.snapshot import Exemplar, SeriesKey, Snapshot

#: Its exemplars' attributes have each of the types, and texts that are not of ASCII.
BANK = Resource(
    {"service.name": "Bänk", "of.bool": True, "of.int": 1, "of.double": 1.5, "of.list": ["a", "b"]},
    schema_url="https://opentelemetry.io/schemas/1.30.0",
)


def varied() -> Snapshot:
    """Of servers and clients, with all that a series may have, and counts of one to five bytes."""
    chance = random.Random(1)
    durations_ns = [int(2 ** chance.uniform(0, 43)) for _ in range(2_000)]
    other = Exemplar(1, (1 << 64) - 1, 7, EXEMPLAR.unix_ns)
    many = series(key(status=503), durations_ns, exemplars=(EXEMPLAR, other))
    many.duration.counts[100:] *= 1_000_003
    return snapshot(
        series(key(server_port=1)),
        many,
        series(key(Kind.CLIENT, resource=BANK, status=0, ended_by="server_reset"), [1, 119]),
        series(SeriesKey(Kind.SERVER, BANK, overflow=True), [2**62]),
    )


def told(style: MetricStyle) -> MetricsData:
    earlier = snapshot(series(key(server_port=1), [1_000]), seconds=5, sums=sums(9))
    untold = Untold(exports=3, points={Lost.REJECTED: 2})
    return metrics_of(varied(), Receiver().with_next(earlier), style, untold)


@pytest.mark.parametrize("temporality", Temporality)
@pytest.mark.parametrize("histograms", HistogramStyle)
def test_as_the_official_encoder(histograms: HistogramStyle, temporality: Temporality) -> None:
    data = told(MetricStyle(histograms, temporality))
    official = encode_metrics(data)
    assert ExportMetricsServiceRequest.FromString(encode(data)) == official
    assert str(official).count("exemplars {") == 2


def test_nothing() -> None:
    assert encode(MetricsData([])) == b""
