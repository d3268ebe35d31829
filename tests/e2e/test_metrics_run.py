# SPDX-License-Identifier: Apache-2.0
"""The metrics of a real agent: of all requests, whatever becomes of them, and where they go."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from client import Client
from collectors import HOST
from demo.otlp import attributes
from demo.receiver import Receiver
from prometheus import PLAIN_TEXT, lint, scrape
from prometheus_client.parser import text_string_to_metric_families
from servers import Server
from stack import COUNT, agent, measured, to
from support.namespaces import Network
from support.ports import unused_port
from support.waiting import DEADLINE_S, wait_until

DURATION = "http.server.request.duration"


def options(net: Network, port: int) -> tuple[str | int, ...]:
    return (
        "--netns",
        net.server.netns,
        "--interface",
        net.server.interface,
        "--port",
        port,
        "--service-name",
        "shop",
    )


def told(receiver: Receiver, name: str) -> list[tuple[dict[str, Any], Any]]:
    """(attributes, point) of the last export of a metric, of all resources."""
    found = {}
    for message in receiver.metrics():
        for of_resource in message.resource_metrics:
            service = attributes(of_resource.resource.attributes)["service.name"]
            for scope in of_resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == name:
                        data = getattr(metric, metric.WhichOneof("data"))
                        found[service] = [
                            (attributes(point.attributes), point) for point in data.data_points
                        ]
    return [point for of_service in found.values() for point in of_service]


def test_all_requests_are_told_whatever_is_sampled(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """Exactly; their stages add up, and exemplars lead to spans that were exported."""
    with agent(
        tmp_path,
        *options(net, server.port),
        "--sample",
        "1/4",
        "--route",
        "/items/{name}",
        environment={**to(receiver), "OTEL_METRICS_EXPORTER": "otlp"},
    ) as running:
        running.wait_ready()
        with Client.of(net, server.port) as client:
            asked = [client.ask(f"/items/n{number}") for number in range(COUNT)]
            asked += [client.ask(f"/{number}", method="POST") for number in range(3)]
        ended = running.stop()
    ended.assert_adds_up()
    assert ended.sums is not None
    seen = COUNT + 3
    assert 0 < ended.sums["exported"] < seen
    assert f"spans and metrics go to {receiver.grpc_endpoint} (grpc)" in ended.stderr

    common = {
        "url.scheme": "http",
        "network.protocol.name": "http",
        "server.port": server.port,
        "http.response.status_code": 200,
    }
    of_gets = {**common, "http.request.method": "GET", "http.route": "/items/{name}"}
    of_posts = {**common, "http.request.method": "POST", "http.route": "/{id}"}
    durations = {point[0]["http.request.method"]: point for point in told(receiver, DURATION)}
    assert {method: point[0] for method, point in durations.items()} == {
        "GET": of_gets,
        "POST": of_posts,
    }
    assert {method: point.count for method, (_, point) in durations.items()} == {
        "GET": COUNT,
        "POST": 3,
    }
    for method, (_, total) in durations.items():
        stages = [
            point
            for of, point in told(receiver, "otelbpf.stage.duration")
            if of["http.request.method"] == method
        ]
        assert sum(stage.sum for stage in stages) == pytest.approx(total.sum, rel=1e-9)
        sizes = {
            what: sum(
                point.as_int
                for of, point in told(receiver, f"otelbpf.http.{what}.size")
                if of["http.request.method"] == method
            )
            for what in ("request", "response")
        }
        assert sizes == {
            "request": sum(each.request_bytes for each in asked if each.method == method),
            "response": sum(each.response_bytes for each in asked if each.method == method),
        }

    spans = {(s.span.trace_id, s.span.span_id): s for s in measured(receiver.spans())}
    assert len(spans) == ended.sums["exported"]
    exemplars = [exemplar for _, point in durations.values() for exemplar in point.exemplars]
    assert exemplars
    for exemplar in exemplars:
        span = spans[exemplar.trace_id.hex(), exemplar.span_id.hex()].span
        length_s = (span.end_unix_ns - span.start_unix_ns) / 1e9
        assert exemplar.as_double == pytest.approx(length_s, abs=1e-9)

    for name in ("seen", "exported", "sampled_out"):
        ((_, point),) = told(receiver, f"otelbpf.requests.{name}")
        assert point.as_int == ended.sums[name], name


def scraped_at(port: int) -> dict[str, str]:
    """The variables for metrics alone, at this port."""
    return {
        "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_HOST": HOST, "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
    }  # fmt: skip


@pytest.mark.heavy  # for promtool, which comes with Prometheus
def test_prometheus_has_what_the_agent_prints(net: Network, server: Server, tmp_path: Path) -> None:
    port = unused_port()
    with agent(
        tmp_path,
        *options(net, server.port),
        environment=scraped_at(port),
    ) as running:
        running.wait_ready()
        with Client.of(net, server.port) as client:
            for number in range(COUNT):
                client.ask(f"/{number}")
        text = scrape(port, PLAIN_TEXT)
        (seen,) = (
            line for line in text.splitlines() if line.startswith("otelbpf_requests_seen_total{")
        )
        ended = running.stop()
    ended.assert_clean(seen=COUNT)
    assert seen.endswith(f" {COUNT}")
    assert lint(text) == ""
    assert f"spans go to none, metrics to http://{HOST}:{port}/metrics" in ended.stderr


def test_routes_that_nobody_asks_for_make_room(
    net: Network, server: Server, tmp_path: Path
) -> None:
    """For one that comes later and stays; each request is told once, at any time.

    The agent is in the namespace itself: for another one it would keep more rights.
    """
    port, asked = unused_port(), 0

    def counts() -> dict[str, int]:
        """By route; and of those that are told under no series any more."""
        named: dict[str, int] = {}
        text = net.server.call(lambda: scrape(port, PLAIN_TEXT))
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "http_server_request_duration_seconds_count":
                    named[sample.labels.get("http_route", "overflow")] = int(sample.value)
                if sample.name == "otelbpf_series_ended_requests_total":
                    named["ended"] = int(sample.value)
        return named

    with agent(
        tmp_path,
        *("--interface", net.server.interface, "--port", server.port, "--series", 8),
        environment=scraped_at(port),
        under=net.server.enter(),
    ) as running:
        running.wait_ready()
        with Client.of(net, server.port) as client:
            for route in ("/a", "/b", "/c", "/d", "/e", "/f", "/g", "/g"):
                client.ask(route)
                asked += 1
            wait_until(lambda: counts().get("overflow") == 2, "all were told")
            assert counts() == {
                **dict.fromkeys(("/a", "/b", "/c", "/d", "/e", "/f"), 1), "overflow": 2, "ended": 0
            }  # fmt: skip

            def has_a_place() -> bool:
                nonlocal asked
                client.ask("/checkout")
                asked += 1
                return "/checkout" in counts()

            wait_until(has_a_place, "it has a place", deadline_s=2 * DEADLINE_S)
            wait_until(lambda: sum(counts().values()) == asked, "all were told")
            # Each of those that ended had been told of its one request.
            ended = counts()["ended"]
            assert ended >= 1
            assert len(counts()) == 6 - ended + len(("/checkout", "overflow", "ended"))
        stopped = running.stop()
    stopped.assert_clean(seen=asked)


def test_console(net: Network, server: Server, tmp_path: Path) -> None:
    """JSON on standard output."""
    with agent(
        tmp_path,
        *options(net, server.port),
        environment={"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "console"},
    ) as running:
        running.wait_ready()
        ended = running.stop()
    ended.assert_clean(seen=0)
    (of_agent,) = json.loads(ended.stdout)["resource_metrics"]
    assert of_agent["resource"]["attributes"]["service.name"] == "otelbpf"


def test_a_port_that_is_taken(net: Network, server: Server, tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        with agent(
            tmp_path,
            *options(net, server.port),
            environment=scraped_at(port),
        ) as running:
            running.wait().assert_refused(f"{HOST}:{port}", "OTEL_EXPORTER_PROMETHEUS_PORT")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_METRICS_EXPORTER", "otlp,prometheus"),
        ("OTEL_METRICS_EXPORTER", "statsd"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "often"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "collector:4317"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "absolute"),
        ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "summary"),
    ],
)
def test_settings_that_are_refused(net: Network, tmp_path: Path, variable: str, value: str) -> None:
    environment = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "otlp", variable: value}
    with agent(tmp_path, *options(net, 8080), environment=environment) as running:
        running.wait().assert_refused(f"{variable}={value}")
