# SPDX-License-Identifier: Apache-2.0
"""The endpoint that Prometheus scrapes: names, labels, exemplars, and when it cannot listen."""

from __future__ import annotations

import re
import socket
import threading
import urllib.request
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.resources import Resource
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from scraped import families
from snapshots import EXEMPLAR, key, series, snapshot
from support.ports import unused_port

from otelbpf.errors import UsageError
from otelbpf.export import prometheus as metrics_prometheus
from otelbpf.export.prometheus import PrometheusEndpoint
from otelbpf.export.prometheus_text import texts
from otelbpf.ledger.request import Kind
from otelbpf.metrics.instruments import metrics_of
from otelbpf.metrics.snapshot import Exemplar, SeriesKey, Snapshot
from otelbpf.version import __version__

_LABEL = re.compile(r'\w+="(?:[^"\\]|\\.)*"')
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def of(now: Snapshot) -> dict[str, Family]:
    return {family.name: family for family in families(metrics_of(now))}


def value(family: Family, name: str, **labels: str) -> float:
    """That of the only sample with this name and, among others, these labels."""
    (found,) = (
        sample.value
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
    return found


def get(port: int, accept: str) -> tuple[str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.headers["Content-Type"], response.read().decode()


@pytest.fixture
def endpoint() -> Iterator[tuple[PrometheusEndpoint, int]]:
    port = unused_port()
    made = PrometheusEndpoint("127.0.0.1", port)
    yield made, port
    made.stop()


def test_names_and_types() -> None:
    assert {name: family.type for name, family in of(snapshot()).items()} == {
        "target_info": "gauge",
        "http_server_request_duration_seconds": "histogram",
        "otelbpf_stage_duration_seconds": "histogram",
        "otelbpf_tcp_ack_duration_seconds": "histogram",
        "otelbpf_http_request_size_bytes": "counter",
        "otelbpf_http_response_size_bytes": "counter",
        "otelbpf_tcp_retransmits": "counter",
        "otelbpf_tcp_out_of_order": "counter",
        "otelbpf_connections_opened": "counter",
        "otelbpf_connections_closed": "counter",
        "otelbpf_connections_reset": "counter",
        "otelbpf_connections_refused": "counter",
        "otelbpf_connections_unanswered": "counter",
        "otelbpf_connections_own": "counter",
        "otelbpf_connections_unseen": "counter",
        "otelbpf_connection_handshake_duration_seconds": "histogram",
        "otelbpf_connection_accept_queue_duration_seconds": "histogram",
        "otelbpf_requests_seen": "counter",
        "otelbpf_requests_exported": "counter",
        "otelbpf_requests_sampled_out": "counter",
        "otelbpf_requests_ignored": "counter",
        "otelbpf_requests_lost": "counter",
        "otelbpf_requests_in_flight": "gauge",
        "otelbpf_segments_stray": "counter",
        "otelbpf_segments_unasked": "counter",
        "otelbpf_segments_uncertain": "counter",
        "otelbpf_joins": "counter",
        "otelbpf_hooks_missed": "counter",
        "otelbpf_interfaces_unmeasured": "gauge",
        "otelbpf_interfaces_unmeasured_time_seconds": "counter",
        "otelbpf_series_ended_requests": "counter",
        "otelbpf_metrics_exports_failed": "counter",
        "otelbpf_metrics_points_lost": "counter",
    }


def test_labels() -> None:
    (sample, *_) = of(snapshot())["otelbpf_http_request_size_bytes"].samples
    assert sample.name == "otelbpf_http_request_size_bytes_total"
    assert sample.labels == {
        "job": "shop",
        "instance": "shop-1",
        "otel_scope_name": "otelbpf",
        "otel_scope_version": __version__,
        "http_request_method": "GET",
        "http_route": "/items/{id}",
        "server_port": "8080",
        "http_response_status_code": "200",
        "otelbpf_kind": "server",
    }
    overflow = snapshot(series(SeriesKey(Kind.SERVER, key().resource, overflow=True)))
    (sample, *_) = of(overflow)["otelbpf_http_request_size_bytes"].samples
    assert sample.labels["otel_metric_overflow"] == "true"


def test_histograms_add_up_from_bucket_to_bucket() -> None:
    durations_ns = [1_000, 3_000_000, 3_500_000, 20_000_000, 100_000_000_000]
    family = of(snapshot(series(durations_ns=durations_ns)))["http_server_request_duration_seconds"]
    name = family.name
    for bound, count in (
        ("1.9073486328125e-06", 1),
        ("0.001953125", 1),
        ("0.00390625", 3),
        ("0.03125", 4),
        ("64.0", 4),
        ("+Inf", 5),
    ):
        assert value(family, f"{name}_bucket", le=bound) == count, bound
    assert value(family, f"{name}_count") == 5
    assert value(family, f"{name}_sum") == pytest.approx(sum(durations_ns) / 1e9)


def test_services_share_a_family() -> None:
    """One that has no instance has no target_info: nothing would say which series it is of."""
    bank = Resource({"service.name": "bank", "service.namespace": "money"})
    named = of(snapshot(series(), series(key(resource=bank), [1, 2, 3])))
    durations = named["http_server_request_duration_seconds"]
    assert value(durations, f"{durations.name}_count", job="shop") == 2
    assert value(durations, f"{durations.name}_count", job="money/bank") == 3
    jobs = {sample.labels["job"]: sample.labels for sample in named["target_info"].samples}
    assert jobs.keys() == {"shop", "otelbpf"}
    assert jobs["shop"] == {"job": "shop", "instance": "shop-1", "host_name": "till"}


def test_each_bucket_has_its_latest_exemplar() -> None:
    later = Exemplar(5, 6, EXEMPLAR.duration_ns - 1, EXEMPLAR.unix_ns + 1)
    longer = Exemplar(7, 8, 5_000_000, EXEMPLAR.unix_ns - 1)
    exemplars = (later, EXEMPLAR, longer)
    family = of(snapshot(series(exemplars=exemplars)))["http_server_request_duration_seconds"]
    found = {s.labels["le"]: s.exemplar for s in family.samples if s.exemplar is not None}
    assert {le: exemplar.labels for le, exemplar in found.items()} == {
        "0.00390625": {"trace_id": f"{5:032x}", "span_id": f"{6:016x}"},
        "0.0078125": {"trace_id": f"{7:032x}", "span_id": f"{8:016x}"},
    }
    assert found["0.00390625"].value == pytest.approx(0.003, rel=1e-5)
    assert float(found["0.00390625"].timestamp) == pytest.approx(later.unix_ns / 1e9)


class Made:
    """What prometheus_client's own writers ask for families."""

    def __init__(self, made: list[Family]) -> None:
        self._made = made

    def collect(self) -> list[Family]:
        return self._made


def same(text: str) -> set[str]:
    """Its lines, with labels in one order and numbers as floats."""
    lines = set()
    for line in text.splitlines():
        if not line.startswith("#"):
            numbers = [float(each) for each in re.findall(r"(?<=[ ])[\d.e+-]+", line)]
            line = f"{line.partition('{')[0]} {sorted(_LABEL.findall(line))} {numbers}"
        assert line not in lines
        lines.add(line)
    return lines


@pytest.mark.parametrize("openmetrics", [False, True])
def test_as_its_own_client_writes_it(openmetrics: bool) -> None:
    """Both formats, with texts that have something to escape."""
    odd = Resource({"service.name": 'a "b"\\', "service.instance.id": "1", "x.y": "two\nlines"})
    named = series(key(resource=odd, route='/"'))
    data = metrics_of(snapshot(series(exemplars=(EXEMPLAR,)), named))
    generate = generate_openmetrics if openmetrics else generate_latest
    text = "".join(texts(data, openmetrics=openmetrics))
    assert same(text) == same(generate(Made(families(data))).decode())  # type: ignore[arg-type]
    assert ("trace_id" in text) is openmetrics


def test_a_family_is_in_one_place() -> None:
    """Also where several services have it: scrapers refuse a second one."""
    bank = Resource({"service.name": "bank"})
    data = metrics_of(snapshot(series(), series(key(resource=bank))))
    text = "".join(texts(data, openmetrics=False))
    named = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(named) == len(set(named))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in s; it stands still unless a test moves it."""
    now = [1_000.0]
    monkeypatch.setattr(metrics_prometheus, "monotonic", lambda: now[0])
    return now


def test_a_scrape(endpoint: tuple[PrometheusEndpoint, int], clock: list[float]) -> None:
    """Text for whoever does not ask; each answers for its own moment, if a second has passed."""
    made, port = endpoint
    moments = iter([snapshot(), snapshot(series(durations_ns=[1] * 5))])
    made.start(lambda: metrics_of(next(moments)))
    for after_s, count in ((0.0, 2), (0.99, 2), (0.01, 5), (0.99, 5)):
        clock[0] += after_s
        kind, text = get(port, "text/plain")
        assert kind.startswith("text/plain; version=0.0.4")
        assert "trace_id" not in text
        (line,) = (
            line
            for line in text.splitlines()
            if line.startswith("http_server_request_duration_seconds_count{")
        )
        assert line.endswith(f"}} {count}")


def test_openmetrics_has_exemplars(endpoint: tuple[PrometheusEndpoint, int]) -> None:
    made, port = endpoint
    made.start(lambda: metrics_of(snapshot()))
    kind, text = get(port, OPENMETRICS)
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    exemplars = [
        sample.exemplar
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.exemplar
    ]
    assert [each.labels for each in exemplars] == [
        {"trace_id": f"{EXEMPLAR.trace_id:032x}", "span_id": f"{EXEMPLAR.span_id:016x}"}
    ]


def test_what_takes_long_is_told_again_for_longer(
    endpoint: tuple[PrometheusEndpoint, int], clock: list[float]
) -> None:
    """Of each format apart: it is a text of its own."""
    made, port = endpoint
    made_at_s = []

    def collect() -> MetricsData:
        clock[0] += 8.0
        made_at_s.append(clock[0] - 1_000)
        return metrics_of(snapshot())

    made.start(collect)
    for after_s, accept in ((0, ""), (0, OPENMETRICS), (0, ""), (7.9, ""), (0.1, ""), (0, "")):
        clock[0] += after_s
        get(port, accept)
    assert made_at_s == [8.0, 16.0, 32.0]


def test_a_crowd_of_scrapers_is_told_the_same(endpoint: tuple[PrometheusEndpoint, int]) -> None:
    """All asked while the first one's answer was made, and it is made for all of them."""
    made, port = endpoint
    collected = []
    all_asked = threading.Event()

    def collect() -> MetricsData:
        collected.append(threading.current_thread())
        assert all_asked.wait(10)
        return metrics_of(snapshot())

    made.start(collect)
    asking = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(50)]
    for each in asking:
        each.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    all_asked.set()
    answers = set()
    for each in asking:
        with each, each.makefile("rb") as file:
            answers.add(file.read())
    (answer,) = answers
    assert b"\nhttp_server_request_duration_seconds_count{" in answer
    assert len(collected) == 1


def test_no_snapshot_is_taken_after_the_end() -> None:
    port = unused_port()
    made = PrometheusEndpoint("127.0.0.1", port)
    made.start(lambda: metrics_of(snapshot()))
    made.stop()
    made.stop()
    with pytest.raises(OSError, match="refused"):
        get(port, OPENMETRICS)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError) as refusal:
            PrometheusEndpoint("127.0.0.1", port).start(lambda: metrics_of(snapshot()))
    assert str(refusal.value) == (
        f"cannot listen on 127.0.0.1:{port} for Prometheus (Address already in use): give another "
        "address by OTEL_EXPORTER_PROMETHEUS_HOST and OTEL_EXPORTER_PROMETHEUS_PORT"
    )


def test_a_host_that_is_none() -> None:
    with pytest.raises(UsageError, match=r"^cannot listen on no\.such\.host\.invalid:1 "):
        PrometheusEndpoint("no.such.host.invalid", 1).start(lambda: metrics_of(snapshot()))
