# SPDX-License-Identifier: Apache-2.0
"""metrics -> bytes of OTLP: what the official encoder makes of them, without its objects.

What is the same in many data points, an attribute or bounds, is made once.

Source:
    opentelemetry-proto's metrics.proto, for the numbers of fields.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from opentelemetry.sdk.metrics.export import (
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)

from otelbpf.traces import wire
from otelbpf.traces.description import Value

# Each a tag, which says field and type, and 64 bits: start and time, then count and sum.
_HISTOGRAM = struct.Struct("<BQBQBQBd")
_NUMBER = struct.Struct("<BQBQ")
_AS_INT, _AS_DOUBLE = struct.Struct("<Bq"), struct.Struct("<Bd")
_EXEMPLAR = struct.Struct("<BQBd")
_ZEROS = struct.Struct("<BQ")


def encode(data: MetricsData) -> bytes:
    """An ExportMetricsServiceRequest."""
    return _blocks(1, map(_resource_metrics, data.resource_metrics))


def _resource_metrics(of: ResourceMetrics) -> bytes:
    resource = wire.block(1, _attributes(1, of.resource.attributes))
    return resource + _blocks(2, map(_scope_metrics, of.scope_metrics)) + _text(3, of.schema_url)


def _scope_metrics(of: ScopeMetrics) -> bytes:
    scope = _text(1, of.scope.name) + _text(2, of.scope.version)
    return wire.block(1, scope) + _blocks(2, map(_metric, of.metrics)) + _text(3, of.schema_url)


def _metric(metric: Metric) -> bytes:
    data: Any = metric.data
    field, of_all = 7, b""
    point: Callable[..., bytes] = _number
    if isinstance(data, Histogram):
        field, point = 9, _histogram
    elif isinstance(data, ExponentialHistogram):
        field, point = 10, _exponential
    elif isinstance(data, Sum) and data.is_monotonic:
        of_all = wire.integer(3, 1)
    of_all += wire.integer(2, data.aggregation_temporality)
    words = _text(1, metric.name) + _text(2, metric.description) + _text(3, metric.unit)
    return words + wire.block(field, _blocks(1, map(point, data.data_points)) + of_all)


def _number(point: NumberDataPoint) -> bytes:
    as_it_is = _AS_INT if isinstance(point.value, int) else _AS_DOUBLE
    return (
        _attributes(7, point.attributes)
        + _NUMBER.pack(0x11, point.start_time_unix_nano, 0x19, point.time_unix_nano)
        + as_it_is.pack(0x31 if as_it_is is _AS_INT else 0x21, point.value)
    )


def _histogram(point: HistogramDataPoint) -> bytes:
    counts = point.bucket_counts
    return (
        _attributes(9, point.attributes)
        + _HISTOGRAM.pack(
            0x11, point.start_time_unix_nano, 0x19, point.time_unix_nano,
            0x21, point.count, 0x29, point.sum,
        )
        + wire.block(6, struct.pack(f"<{len(counts)}Q", *counts))
        + _bounds(tuple(point.explicit_bounds))
        + _blocks(8, map(_exemplar, point.exemplars))
    )  # fmt: skip


def _exponential(point: ExponentialHistogramDataPoint) -> bytes:
    return (
        _attributes(1, point.attributes)
        + _HISTOGRAM.pack(
            0x11, point.start_time_unix_nano, 0x19, point.time_unix_nano,
            0x21, point.count, 0x29, point.sum,
        )
        + wire.integer(6, _zigzag(point.scale))
        + _ZEROS.pack(0x39, point.zero_count)
        + _buckets(8, point.positive.offset, point.positive.bucket_counts)
        + _blocks(11, map(_exemplar, point.exemplars))
    )  # fmt: skip


def _buckets(field: int, offset: int, counts: Sequence[int]) -> bytes:
    if not counts:
        return b""
    octets = wire.padded_varints(np.array([counts], np.uint64), [wire.width_of(max(counts))])
    return wire.block(field, wire.integer(1, _zigzag(offset)) + wire.block(2, octets.T.tobytes()))


def _exemplar(exemplar: Any) -> bytes:
    ids = exemplar.span_id.to_bytes(8, "big"), exemplar.trace_id.to_bytes(16, "big")
    times = _EXEMPLAR.pack(0x11, exemplar.time_unix_nano, 0x19, exemplar.value)
    return times + wire.block(4, ids[0]) + wire.block(5, ids[1])


@functools.lru_cache(64)
def _bounds(bounds: tuple[float, ...]) -> bytes:
    return wire.block(7, struct.pack(f"<{len(bounds)}d", *bounds))


def _attributes(field: int, pairs: Mapping[str, Any] | None) -> bytes:
    return b"".join([_attribute(field, key, value) for key, value in (pairs or {}).items()])


# Typed: True is 1, else.
@functools.lru_cache(16_384, typed=True)
def _attribute(field: int, key: str, value: Value) -> bytes:
    return wire.attributes(field, {key: value})


def _text(field: int, text: str | None) -> bytes:
    return wire.text(field, text) if text else b""


def _blocks(field: int, contents: Iterable[bytes]) -> bytes:
    return b"".join([wire.block(field, content) for content in contents])


def _zigzag(number: int) -> int:
    return number << 1 if number >= 0 else -number * 2 - 1
