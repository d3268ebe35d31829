# SPDX-License-Identifier: Apache-2.0
"""The kernel's histograms as OpenTelemetry's data points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

import numpy as np
from opentelemetry.sdk.metrics import Exemplar as SdkExemplar
from opentelemetry.sdk.metrics.export import (
    Buckets,
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
)

from otelbpf.metrics.snapshot import FIRST_INDEX, SCALE, UPPER_S, Exemplar, Histogram

_NS_PER_S = 1e9
# Powers of two, which are bounds of the kernel's buckets, too: 0.95 µs to 64 s.
_EXPLICIT_S = 2.0 ** np.arange(-20, 7)
#: (27,) s: the upper bounds of explicit buckets, but for the last one's, which has none.
EXPLICIT_BOUNDS_S: tuple[float, ...] = tuple(_EXPLICIT_S.tolist())
# The kernel's first bucket of each of them, and of the last one.
_FIRST = np.concatenate([[0], np.searchsorted(UPPER_S, _EXPLICIT_S) + 1])

Attributes = Mapping[str, str | int | bool]
Point = HistogramDataPoint | ExponentialHistogramDataPoint


class HistogramStyle(StrEnum):
    """How histograms are told, by the values of
    OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION."""

    EXPLICIT = "explicit_bucket_histogram"
    EXPONENTIAL = "base2_exponential_bucket_histogram"


def histogram_point(
    histogram: Histogram,
    style: HistogramStyle,
    attributes: Attributes,
    start_unix_ns: int,
    unix_ns: int,
    exemplars: Iterable[Exemplar] = (),
) -> Point:
    """A histogram's data point, in seconds. The least and the greatest duration are not known.

    All counts are exact: exponential buckets are the kernel's own, explicit ones several of them.
    """
    # The SDK's classes ask for these two; its exporters leave out what is None.
    unknown: dict[str, float] = {"min": None, "max": None}  # type: ignore[dict-item]
    told = [_exemplar(exemplar) for exemplar in exemplars]
    total, sum_s = histogram.count, histogram.sum_ns / _NS_PER_S
    if style is HistogramStyle.EXPLICIT:
        return HistogramDataPoint(
            attributes=dict(attributes),
            start_time_unix_nano=start_unix_ns,
            time_unix_nano=unix_ns,
            count=total,
            sum=sum_s,
            bucket_counts=np.add.reduceat(histogram.counts, _FIRST).tolist(),
            explicit_bounds=EXPLICIT_BOUNDS_S,
            exemplars=told,
            **unknown,
        )
    first, last = _extent(histogram.counts)
    return ExponentialHistogramDataPoint(
        attributes=dict(attributes),
        start_time_unix_nano=start_unix_ns,
        time_unix_nano=unix_ns,
        count=total,
        sum=sum_s,
        scale=SCALE,
        # What is in the first bucket is too short to be told apart.
        zero_count=int(histogram.counts[0]),
        positive=Buckets(FIRST_INDEX + first - 1, histogram.counts[first:last].tolist()),
        negative=Buckets(0, []),
        flags=0,
        exemplars=told,
        **unknown,
    )


def _extent(counts: np.ndarray) -> tuple[int, int]:
    """From which bucket on to before which there is anything, the first one left aside."""
    filled = np.flatnonzero(counts[1:])
    return (int(filled[0]) + 1, int(filled[-1]) + 2) if len(filled) else (1, 1)


def _exemplar(exemplar: Exemplar) -> SdkExemplar:
    return SdkExemplar(
        filtered_attributes={},
        value=exemplar.duration_ns / _NS_PER_S,
        time_unix_nano=exemplar.unix_ns,
        span_id=exemplar.span_id,
        trace_id=exemplar.trace_id,
    )
