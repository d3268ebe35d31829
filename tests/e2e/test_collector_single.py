# SPDX-License-Identifier: Apache-2.0
"""otelbpf, the Collector and Jaeger on one machine: what Jaeger tells is what happened."""

from __future__ import annotations

from pathlib import Path

import pytest
from collector_stack import OTLP_GRPC_PORT, Collector, collector, jaeger
from demo import ledgers, otlp
from demo.check import Sums, problems
from demo.traces import traces
from gateway_traffic import (
    SERVICE,
    gateway_with_models,
    is_no_stage,
    measured_options,
    owed_spans,
    send,
)
from stack import agent, measured
from support.namespaces import Network
from support.waiting import wait_until

pytestmark = pytest.mark.heavy

ENDPOINT = f"http://127.0.0.1:{OTLP_GRPC_PORT}"
TO_COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_METRICS_EXPORTER": "otlp"}
COUNT = 92


def test_jaeger_has_the_gateways_requests_whole(net: Network, tmp_path: Path) -> None:
    """Each request's trace: parents, stages, order, sums, to the nanosecond."""
    side = net.server
    with (
        jaeger(side, tmp_path) as storage,
        collector(
            side,
            tmp_path,
            "single-machine",
            settings=["connectors.span_metrics.metrics_flush_interval=1s"],
        ) as running,
        gateway_with_models(net, tmp_path, ENDPOINT) as names,
        agent(
            tmp_path, *measured_options(net), environment=TO_COLLECTOR, under=side.enter()
        ) as otelbpf,
    ):
        otelbpf.wait_ready()
        load = send(net, tmp_path, COUNT)
        owed = owed_spans(load)
        spans = storage.wait_for(
            SERVICE,
            lambda found: sum(map(is_no_stage, found)) >= owed,
            f"{owed} spans but for stages came",
        )
        ended = otelbpf.stop()
        assert_all_is_told(running, spans)
        assert ended.sums is not None, ended.stderr
        # Its metrics' last export is when it ends.
        assert total(running, "otelbpf_requests_seen_total") == ended.sums["seen"]
    assert ended.code == 0, ended.stderr
    decoded = ledgers.decode(spans)
    sums = Sums(*(ended.sums[name] for name in ("seen", "exported", "sampled_out", "lost")))
    # What the demo asks of a run: outcomes, parents, tiles, sums.
    assert problems(load, decoded, traces(spans, decoded.requests, names), sums) == []
    for request in measured(span for span in spans if span.scope == ledgers.SCOPE):
        request.assert_tiled()
    # A storage that cut all times to microseconds would still show stages that meet.
    assert any(span.end_unix_ns % 1000 for span in spans)


def total(running: Collector, name: str) -> float:
    return sum(value for _, value in running.metrics().get(name, []))


def assert_all_is_told(running: Collector, spans: list[otlp.Span]) -> None:
    """Prometheus counts the same spans, by name, kind and service."""
    name = "traces_span_metrics_calls_total"

    def counted() -> float:
        return sum(value for _, value in running.metrics().get(name, []))

    wait_until(lambda: counted() >= len(spans), "all spans are counted", state=counted)
    assert counted() == len(spans)
    stage = sum(
        value for labels, value in running.metrics()[name] if 'span_name="nic_to_tc"' in labels
    )
    assert stage == sum(span.name == "nic_to_tc" for span in spans)
