# SPDX-License-Identifier: Apache-2.0
"""metrics -> Prometheus: an endpoint to be scraped, with the names that collectors give.

Source:
    OpenTelemetry specification, Prometheus and OpenMetrics compatibility, as the Collector's
    prometheus exporter does it: one dashboard goes with both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from time import monotonic
from typing import Any

from opentelemetry.sdk.metrics.export import (
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.samples import Exemplar

from otelbpf.errors import UsageError
from otelbpf.export.http_port import HttpPort, Page, takes

_UNITS = {"s": "seconds", "By": "bytes"}
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9]+")
_TOLD_AGAIN_S = 1.0
_IDENTIFYING = ("service.name", "service.namespace", "service.instance.id")

Labels = dict[str, str]


def family_name(metric: Metric) -> str:
    """What Prometheus calls a metric, without the `_total` of counters."""
    words = [word for word in _NOT_IN_NAMES.split(metric.name) if word]
    unit = _UNITS.get(metric.unit or "")
    return "_".join(words if unit is None or unit in words else [*words, unit])


def families(data: MetricsData) -> list[Family]:
    """Cumulative metrics, with explicit buckets, as Prometheus has them.

    A series' resource is its labels `job` and `instance`; where it has both, the other attributes
    of the resource are labels of `target_info`.
    """
    by_name: dict[str, Family] = {}
    for of_resource in data.resource_metrics:
        resource = of_resource.resource
        target = _target_labels(resource)
        if "job" in target and "instance" in target:
            info = by_name.setdefault(
                "target_info", Family("target_info", "Target metadata", "gauge")
            )
            info.add_sample("target_info", {**_labels(_descriptive(resource)), **target}, 1)
        for of_scope in of_resource.scope_metrics:
            common = {**target, **_scope_labels(of_scope.scope)}
            for metric in of_scope.metrics:
                name = family_name(metric)
                family = by_name.get(name)
                if family is None:
                    family = by_name[name] = Family(name, metric.description or "", _type(metric))
                _add(family, metric, common)
    return list(by_name.values())


def _type(metric: Metric) -> str:
    if isinstance(metric.data, Histogram):
        return "histogram"
    return "counter" if isinstance(metric.data, Sum) and metric.data.is_monotonic else "gauge"


def _add(family: Family, metric: Metric, common: Labels) -> None:
    for point in metric.data.data_points:
        labels = {**_labels((point.attributes or {}).items()), **common}
        if isinstance(point, HistogramDataPoint):
            _add_histogram(family, labels, point)
        elif isinstance(point, NumberDataPoint):
            suffix = "_total" if family.type == "counter" else ""
            family.add_sample(family.name + suffix, labels, point.value)


def _add_histogram(family: Family, labels: Labels, point: HistogramDataPoint) -> None:
    bounds = [*point.explicit_bounds, float("inf")]
    lower = float("-inf")
    for bound, count in zip(bounds, accumulate(point.bucket_counts), strict=True):
        family.add_sample(
            f"{family.name}_bucket",
            {**labels, "le": repr(bound) if math.isfinite(bound) else "+Inf"},
            count,
            exemplar=_exemplar(point, lower, bound),
        )
        lower = bound
    family.add_sample(f"{family.name}_count", labels, point.count)
    family.add_sample(f"{family.name}_sum", labels, point.sum)


def _exemplar(point: HistogramDataPoint, lower: float, upper: float) -> Exemplar | None:
    """The most recent one of a bucket, which can have one only."""
    within = [each for each in point.exemplars if lower < each.value <= upper]
    if not within:
        return None
    latest = max(within, key=lambda each: each.time_unix_nano)
    ids = {"trace_id": f"{latest.trace_id:032x}", "span_id": f"{latest.span_id:016x}"}
    return Exemplar(ids, latest.value, latest.time_unix_nano / 1e9)


def _labels(attributes: Iterable[tuple[str, object]]) -> Labels:
    return {
        _NOT_IN_NAMES.sub("_", name): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in attributes
    }


def _target_labels(resource: Resource) -> Labels:
    name, namespace, instance = map(resource.attributes.get, _IDENTIFYING)
    labels = {}
    if name is not None:
        labels["job"] = str(name) if namespace is None else f"{namespace}/{name}"
    if instance is not None:
        labels["instance"] = str(instance)
    return labels


def _descriptive(resource: Resource) -> Iterator[tuple[str, object]]:
    return ((k, v) for k, v in resource.attributes.items() if k not in _IDENTIFYING)


def _scope_labels(scope: InstrumentationScope) -> Labels:
    return {"otel_scope_name": scope.name, "otel_scope_version": scope.version or ""}


class _Made:
    """What prometheus_client's encoders ask."""

    def __init__(self, made: list[Family]) -> None:
        self._made = made

    def collect(self) -> list[Family]:
        return self._made


@dataclass(frozen=True)
class _Format:
    content_type: str
    encode: Callable[[Any], bytes]


_TEXT = _Format("text/plain; version=0.0.4; charset=utf-8", generate_latest)
_OPENMETRICS = _Format(openmetrics.CONTENT_TYPE_LATEST, openmetrics.generate_latest)


class PrometheusEndpoint:
    """Answers scrapes at /metrics: in OpenMetrics, with exemplars, if asked for it.

    Several scrapers at a time are told the same: what was made is told again for a second, or twice
    as long as it took to make it. So they cannot keep the agent from its own work.

    Args:
        host, port: where to listen.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._served: HttpPort | None = None
        #: And until when each is told, on the monotonic clock.
        self._pages: dict[_Format, tuple[Page, float]] = {}

    def start(self, collect: Callable[[], MetricsData]) -> None:
        """Listens.

        Args:
            collect: makes the metrics of the moment; called by one thread.
        Raises:
            UsageError: the address cannot be listened on.
        """

        def page(accept: str) -> Page:
            form = _OPENMETRICS if takes(accept, "application/openmetrics-text") else _TEXT
            known, until_s = self._pages.get(form, (None, 0.0))
            began_s = monotonic()
            if known is None or began_s >= until_s:
                text = form.encode(_Made(families(collect())))
                known = Page.of(text, form.content_type)
                now_s = monotonic()
                self._pages[form] = known, now_s + max(_TOLD_AGAIN_S, 2 * (now_s - began_s))
            return known

        try:
            self._served = HttpPort(self._host, self._port, {"/metrics": page}, "Prometheus")
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"cannot listen on {self._host}:{self._port} for Prometheus "
                f"({reason}): give another address by "
                "OTEL_EXPORTER_PROMETHEUS_HOST and OTEL_EXPORTER_PROMETHEUS_PORT"
            ) from error
        self._served.start()

    def stop(self) -> None:
        """Listens no more, and waits for a scrape under way."""
        if self._served is not None:
            self._served.stop()
            self._served = None
