# SPDX-License-Identifier: Apache-2.0
"""The endpoint before those who know: promtool, a real Prometheus, and a real collector's one.

The metrics are those of a snapshot made by hand, so that each of them is there.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from collector_stack import built
from collectors import HOST
from demo.processes import running
from prometheus import OPENMETRICS, PLAIN_TEXT, lint, prometheus, scrape
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.ports import unused_port
from support.waiting import DEADLINE_S, wait_until

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from snapshots import EXEMPLAR, SHOP, key, series, snapshot

from otelbpf.export.metrics import MetricsExport, metrics_export
from otelbpf.ledger.request import Kind
from otelbpf.metrics.snapshot import SeriesKey, Snapshot

pytestmark = pytest.mark.heavy

_COLLECTOR = """
receivers:
  otlp:
    protocols:
      grpc:
        endpoint: {host}:{otlp}
exporters:
  prometheus:
    endpoint: {host}:{scraped}
    enable_open_metrics: true
service:
  pipelines:
    metrics:
      receivers: [otlp]
      exporters: [prometheus]
  telemetry:
    metrics:
      level: none
"""


def everything() -> Snapshot:
    """All metrics, and all attributes, of a moment that is now: collectors forget what is old."""
    now = time.time_ns()
    recent = dataclasses.replace(EXEMPLAR, unix_ns=now)
    made = snapshot(
        series(exemplars=(recent,)),
        series(key(status=500)),
        series(key(Kind.CLIENT)),
        series(key(status=0, ended_by="client_reset", route='/an "odd" \\one')),
        series(SeriesKey(Kind.SERVER, SHOP, overflow=True)),
    )
    return dataclasses.replace(made, start_unix_ns=now - 10**10, unix_ns=now)


@pytest.fixture
def endpoint() -> Iterator[tuple[int, Snapshot]]:
    """The port, and what is answered there."""
    port, now = unused_port(), everything()
    export = metrics_export(
        {
            "OTEL_METRICS_EXPORTER": "prometheus",
            "OTEL_EXPORTER_PROMETHEUS_HOST": HOST,
            "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
        }
    )
    export.start(lambda: now)
    yield port, now
    export.stop()


def test_promtool_has_nothing_to_say(endpoint: tuple[int, Snapshot]) -> None:
    port, _ = endpoint
    assert lint(scrape(port, PLAIN_TEXT)) == ""


def test_prometheus_scrapes_it(endpoint: tuple[int, Snapshot], tmp_path: Path) -> None:
    """The services are its jobs, and exemplars come along."""
    port, now = endpoint
    with prometheus(tmp_path, {"otelbpf-endpoint": port}) as asked:
        asked.wait_for('sum(http_server_request_duration_seconds_count{job="shop"})', 8)
        asked.wait_for('otelbpf_requests_seen_total{job="otelbpf",instance="agent-1"}', 10)
        asked.wait_for('count(up{job="otelbpf-endpoint"} == 1)', 1)
        median = asked.value(
            "histogram_quantile(0.5, http_server_request_duration_seconds_bucket"
            '{http_route="/items/{id}",http_response_status_code="200"})'
        )
        assert 0.002 < median < 0.0085
        (of_series,) = asked.ask(
            "query_exemplars",
            query="http_server_request_duration_seconds_bucket",
            start=str(now.unix_ns / 1e9 - 60),
            end=str(now.unix_ns / 1e9 + 60),
        )
    (exemplar,) = of_series["exemplars"]
    assert exemplar["labels"]["trace_id"] == f"{EXEMPLAR.trace_id:032x}"
    assert of_series["seriesLabels"]["http_route"] == "/items/{id}"


def samples(text: str) -> tuple[dict[str, str], dict[object, float]]:
    """Each family's type, and each sample's value by its name and labels.

    An empty label is none, as Prometheus has it.
    """
    parsed = list(text_string_to_metric_families(text))
    types = {family.name: family.type for family in parsed}
    values = {
        (
            sample.name,
            frozenset((k, v) for k, v in sample.labels.items() if v),
            str(sample.exemplar and sorted(sample.exemplar.labels.items())),
        ): sample.value
        for family in parsed
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    return types, values


def test_a_collector_gives_the_same_names(
    endpoint: tuple[int, Snapshot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it exports for Prometheus of our OTLP is what our endpoint answers, sample by sample."""
    port, now = endpoint
    otlp, scraped = unused_port(), unused_port()
    config = tmp_path / "collector.yaml"
    config.write_text(_COLLECTOR.format(host=HOST, otlp=otlp, scraped=scraped))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{HOST}:{otlp}")

    def theirs() -> str:
        return scrape(scraped, OPENMETRICS)

    with running("otelcol", [built("build"), "--config", config], tmp_path) as collector:
        collector.wait_until(
            lambda process: "Everything is ready" in process.stderr.read_text(), DEADLINE_S
        )
        export: MetricsExport = metrics_export({})
        export.start(lambda: now)
        export.stop()
        wait_until(lambda: "otelbpf_joins" in theirs(), "the collector has our metrics")
        their_types, their_values = samples(theirs())
    our_types, our_values = samples(scrape(port, OPENMETRICS))
    assert our_types == their_types
    assert our_values.keys() == their_values.keys()
    assert our_values == pytest.approx(their_values)
