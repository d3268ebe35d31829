# SPDX-License-Identifier: Apache-2.0
"""metrics -> the texts that Prometheus reads, piece by piece: the whole may have 100 MB.

Names and labels are those that collectors give, so one dashboard goes with both.

Source:
    OpenTelemetry specification, Prometheus and OpenMetrics compatibility, as the Collector's
    prometheus exporter does it; Prometheus's text format 0.0.4, and OpenMetrics 1.0.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from opentelemetry.sdk.metrics import Exemplar
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

_UNITS = {"s": "seconds", "By": "bytes"}
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9]+")
_ESCAPED = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_IDENTIFYING = ("service.name", "service.namespace", "service.instance.id")
_TARGET = "target_info"

Labels = dict[str, str]


@dataclass(frozen=True)
class _Family:
    """All metrics of one name.

    Attributes:
        of: each, and the labels that all of its points have.
    """

    name: str
    type: str
    description: str
    of: list[tuple[Metric, str]] = field(default_factory=list)


def texts(data: MetricsData, *, openmetrics: bool) -> Iterator[str]:
    """Cumulative metrics, with explicit buckets, as Prometheus has them.

    A series' resource is its labels `job` and `instance`; where it has both, the other attributes
    of the resource are labels of `target_info`.

    Args:
        openmetrics: in its format, with exemplars; else in the plain one.
    """
    families: dict[str, _Family] = {}
    targets: list[str] = []
    for of_resource in data.resource_metrics:
        target = _target_labels(of_resource.resource)
        if "job" in target and "instance" in target:
            labels = _written({**_labels(_descriptive(of_resource.resource)), **target})
            targets.append(f"{_TARGET}{{{labels}}} 1\n")
        for of_scope in of_resource.scope_metrics:
            common = _written({**target, **_scope_labels(of_scope.scope)})
            for metric in of_scope.metrics:
                name = _family_name(metric)
                family = families.get(name)
                if family is None:
                    family = _Family(name, _type(metric), metric.description or "")
                    families[name] = family
                family.of.append((metric, common))
    if targets:
        yield _head(_TARGET, "gauge", "Target metadata")
        yield from targets
    for family in families.values():
        yield from _of_family(family, openmetrics=openmetrics)
    if openmetrics:
        yield "# EOF\n"


def _of_family(family: _Family, *, openmetrics: bool) -> Iterator[str]:
    total = f"{family.name}_total" if family.type == "counter" else family.name
    yield _head(family.name if openmetrics else total, family.type, family.description)
    for metric, common in family.of:
        for point in metric.data.data_points:
            # Our own attributes: no two of them become one label.
            words = [_label(name, value) for name, value in (point.attributes or {}).items()]
            labels = ",".join([*words, common])
            if isinstance(point, HistogramDataPoint):
                exemplars = _exemplars(point) if openmetrics and point.exemplars else {}
                yield _histogram(family.name, labels, point, exemplars)
            elif isinstance(point, NumberDataPoint):
                yield f"{total}{{{labels}}} {point.value}\n"


def _head(name: str, kind: str, description: str) -> str:
    # Descriptions are ours, and have nothing to escape.
    return f"# HELP {name} {description}\n# TYPE {name} {kind}\n"


def _histogram(name: str, labels: str, point: HistogramDataPoint, exemplars: dict[int, str]) -> str:
    start = f'{name}_bucket{{{labels},le="'
    bounds, counts = _bounds(tuple(point.explicit_bounds)), accumulate(point.bucket_counts)
    lines = [f"{start}{bound}{count}\n" for bound, count in zip(bounds, counts, strict=True)]
    for bucket, exemplar in exemplars.items():
        lines[bucket] = f"{lines[bucket][:-1]}{exemplar}\n"
    lines.append(f"{name}_count{{{labels}}} {point.count}\n{name}_sum{{{labels}}} {point.sum}\n")
    return "".join(lines)


@functools.lru_cache(64)
def _bounds(bounds: tuple[float, ...]) -> tuple[str, ...]:
    """What follows upon `le="`, up to the count."""
    return tuple(f'{bound}"}} ' for bound in (*map(repr, bounds), "+Inf"))


def _exemplars(point: HistogramDataPoint) -> dict[int, str]:
    """The most recent one of each bucket, which can have one only."""
    latest: dict[int, Exemplar] = {}
    for each in sorted(point.exemplars, key=lambda each: each.time_unix_nano):
        latest[bisect_left(point.explicit_bounds, each.value)] = each
    return {
        bucket: f' # {{trace_id="{each.trace_id:032x}",span_id="{each.span_id:016x}"}} '
        f"{each.value} {each.time_unix_nano / 1e9}"
        for bucket, each in latest.items()
    }


def _family_name(metric: Metric) -> str:
    """What Prometheus calls a metric, without the `_total` of counters."""
    words = [word for word in _NOT_IN_NAMES.split(metric.name) if word]
    unit = _UNITS.get(metric.unit or "")
    return "_".join(words if unit is None or unit in words else [*words, unit])


def _type(metric: Metric) -> str:
    if isinstance(metric.data, Histogram):
        return "histogram"
    return "counter" if isinstance(metric.data, Sum) and metric.data.is_monotonic else "gauge"


# Typed: True is 1, else.
@functools.lru_cache(16_384, typed=True)
def _label(name: str, value: object) -> str:
    return _written(_labels([(name, value)]))


def _labels(attributes: Iterable[tuple[str, object]]) -> Labels:
    return {
        _NOT_IN_NAMES.sub("_", name): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in attributes
    }


def _written(labels: Labels) -> str:
    return ",".join(f'{name}="{value.translate(_ESCAPED)}"' for name, value in labels.items())


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
