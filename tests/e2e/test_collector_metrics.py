# SPDX-License-Identifier: Apache-2.0
"""OTLP metrics in, Prometheus out: in every configuration that otelbpf sends to."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from collector_stack import COLLECTOR, LOOPBACK, OTLP_HTTP_PORT, collector, get
from demo.processes import running
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.metrics.v1 import metrics_pb2
from support.namespaces import Network, Side
from support.waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.heavy


def metrics() -> ExportMetricsServiceRequest:
    """A counter, a histogram with bounds and one with exponential buckets, of one service."""
    now, began = time.time_ns(), time.time_ns() - 1_000_000_000
    times = {"start_time_unix_nano": began, "time_unix_nano": now}
    cumulative = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    for name, text in (("service.name", "otelbpf"), ("service.instance.id", "one")):
        resource.resource.attributes.add(key=name).value.string_value = text
    scope = resource.scope_metrics.add()
    scope.scope.name = "otelbpf"

    counter = scope.metrics.add(name="otelbpf.requests.seen", unit="{request}")
    counter.sum.aggregation_temporality = cumulative
    counter.sum.is_monotonic = True
    counter.sum.data_points.add(as_int=23, **times)

    bounded = scope.metrics.add(name="otelbpf.stage.duration", unit="s")
    bounded.histogram.aggregation_temporality = cumulative
    bounded.histogram.data_points.add(
        count=23, sum=0.5, explicit_bounds=[0.001, 0.1], bucket_counts=[20, 2, 1], **times
    )

    exponential = scope.metrics.add(name="otelbpf.wait.duration", unit="s")
    exponential.exponential_histogram.aggregation_temporality = cumulative
    point = exponential.exponential_histogram.data_points.add(
        count=23, sum=46.0, scale=0, zero_count=1, **times
    )
    point.positive.offset = 0
    point.positive.bucket_counts.extend([20, 2])
    return request


def post(side: Side, request: ExportMetricsServiceRequest) -> int:
    connection = http.client.HTTPConnection(LOOPBACK, OTLP_HTTP_PORT, timeout=DEADLINE_S)
    connection.sock = side.connect(LOOPBACK, OTLP_HTTP_PORT)
    connection.request(
        "POST",
        "/v1/metrics",
        request.SerializeToString(),
        {"Content-Type": "application/x-protobuf"},
    )
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("configuration", ["single-machine", "agent"])
def test_prometheus_can_fetch_them(net: Network, tmp_path: Path, configuration: str) -> None:
    environment = {"OTELBPF_QUEUE": str(tmp_path / "queue")}
    with collector(net.server, tmp_path, configuration, environment=environment) as asked:
        assert post(net.server, metrics()) == 200
        wait_until(lambda: "target_info" in asked.metrics(), "the metrics are there")
        found = {
            (name, *(part for part in labels.split(",") if part.startswith("le="))): value
            for name, values in asked.metrics().items()
            for labels, value in values
        }
    assert found["otelbpf_requests_seen_total",] == 23
    buckets = {
        le: found["otelbpf_stage_duration_seconds_bucket", f'le="{le}"']
        for le in ("0.001", "0.1", "+Inf")
    }
    assert buckets == {"0.001": 20, "0.1": 22, "+Inf": 23}
    assert found["otelbpf_stage_duration_seconds_sum",] == 0.5
    # A native histogram: its buckets are told in Prometheus's protobuf format only.
    assert found["otelbpf_wait_duration_seconds_count",] == 23
    assert found["otelbpf_wait_duration_seconds_sum",] == 46.0


def test_prometheus_has_them_by_our_configuration(net: Network, tmp_path: Path) -> None:
    """With compose's options: exponential buckets stay what they are, and who measured is told."""
    services = yaml.safe_load((COLLECTOR / "compose.yaml").read_text())["services"]
    (features,) = (o for o in services["prometheus"]["command"] if o.startswith("--enable-"))
    ours = (COLLECTOR / "prometheus.yaml").read_text()
    assert "collector:8889" in ours and "15s" in ours
    config = tmp_path / "prometheus.yaml"
    config.write_text(ours.replace("collector:8889", f"{LOOPBACK}:8889").replace("15s", "1s"))
    command = [
        *net.server.enter(),
        "prometheus",
        f"--config.file={config}",
        features,
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={LOOPBACK}:9090",
    ]

    def told() -> list[dict[str, Any]]:
        query = "/api/v1/query?query=otelbpf_wait_duration_seconds"
        with contextlib.suppress(OSError):
            status, body = get(net.server, 9090, query)
            if status == 200:
                return json.loads(body)["data"]["result"]
        return []

    with (
        collector(net.server, tmp_path, "single-machine"),
        running("prometheus", command, tmp_path) as process,
    ):
        assert post(net.server, metrics()) == 200
        wait_until(told, "Prometheus has them", state=process.said)
        (series,) = told()
    assert (series["metric"]["job"], series["metric"]["instance"]) == ("otelbpf", "one")
    buckets = [(low, high, count) for _, low, high, count in series["histogram"][1]["buckets"]]
    # Behind the one for what is as good as 0.
    assert buckets[1:] == [("1", "2", "20"), ("2", "4", "2")]
