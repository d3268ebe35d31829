# SPDX-License-Identifier: Apache-2.0
"""Metrics as Prometheus reads them: the text, parsed by its own client."""

from __future__ import annotations

from opentelemetry.sdk.metrics.export import MetricsData
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics_parser

from otelbpf.export.prometheus_text import texts


def families(data: MetricsData) -> list[Family]:
    """From OpenMetrics, whose parser is the stricter one."""
    text = "".join(texts(data, openmetrics=True))
    return list(openmetrics_parser.text_string_to_metric_families(text))
