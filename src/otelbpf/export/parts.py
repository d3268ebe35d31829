# SPDX-License-Identifier: Apache-2.0
"""metrics -> points one by one, and back: what is too much for one message goes in several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from opentelemetry.sdk.metrics.export import (
    Metric,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)


class PointOf(NamedTuple):
    """One data point, and what it is a point of."""

    of_resource: ResourceMetrics
    of_scope: ScopeMetrics
    metric: Metric
    point: Any


def points_of(metrics: MetricsData) -> list[PointOf]:
    """All data points, in their order."""
    return [
        PointOf(of_resource, of_scope, metric, point)
        for of_resource in metrics.resource_metrics
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
        for point in metric.data.data_points
    ]


def metrics_with(points: Sequence[PointOf]) -> MetricsData:
    """The metrics that have these points, which are some that points_of() told, in its order."""
    return MetricsData([
        replace(of_resource, scope_metrics=[
            replace(of_scope, metrics=[
                replace(metric, data=replace(
                    metric.data, data_points=[each.point for each in of_metric]
                ))
                for metric, of_metric in _by(of_one_scope, 2)
            ])
            for of_scope, of_one_scope in _by(of_one_resource, 1)
        ])
        for of_resource, of_one_resource in _by(points, 0)
    ])  # fmt: skip


def _by(points: Sequence[PointOf], column: int) -> list[tuple[Any, list[PointOf]]]:
    """Neighbours of the same resource, scope or metric: the very same, as equal ones may differ."""
    held = itemgetter(column)
    groups = (list(group) for _, group in groupby(points, lambda each: id(held(each))))
    return [(held(group[0]), group) for group in groups]
