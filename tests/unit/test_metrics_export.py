# SPDX-License-Identifier: Apache-2.0
"""Which way metrics go, how often, and what becomes of an export that fails."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from demo.receiver import Behaviour, Receiver
from hours import passing
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (
    OTLPMetricExporter as GrpcMetricExporter,
)
from opentelemetry.exporter.otlp.proto.http.metric_exporter import (
    OTLPMetricExporter as HttpMetricExporter,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricExporter,
    MetricExportResult,
    MetricsData,
)
from snapshots import SHOP, START_UNIX_NS, key, points, series, snapshot, values
from support.misbehaving import PROTOBUF, Rpc, Web, grpc_receiver, http_receiver, partial

from otelbpf.errors import UsageError
from otelbpf.export.metrics import MetricsExport, Periodic, Schedule, metrics_export
from otelbpf.export.parts import PointOf, metrics_with, points_of
from otelbpf.export.ways_out import ExportDoor, WayOut
from otelbpf.ledger.request import Kind
from otelbpf.metrics.instruments import MetricStyle, Temporality, metrics_of
from otelbpf.metrics.points import HistogramStyle
from otelbpf.metrics.snapshot import SeriesKey, Snapshot

DEADLINE_S = 30.0
OFTEN = Schedule(interval_s=0.001, timeout_s=5.0)
SELDOM = Schedule(interval_s=3_600.0, timeout_s=5.0)
DURATION = "http.server.request.duration"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("", "_METRICS"):
        for what in ("PROTOCOL", "ENDPOINT", "HEADERS", "COMPRESSION", "CERTIFICATE", "TIMEOUT"):
            monkeypatch.delenv(f"OTEL_EXPORTER_OTLP{name}_{what}", raising=False)


class Exporter(MetricExporter):
    """Keeps what it gets; each export ends as `results` says, or well once they are used up."""

    def __init__(self, *results: MetricExportResult | Exception) -> None:
        super().__init__()
        self._results = list(results)
        self._changed = threading.Condition()
        self.exports: list[MetricsData] = []
        self.timeouts_ms: set[float] = set()
        self.shutdowns = 0

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any
    ) -> MetricExportResult:
        with self._changed:
            self.exports.append(metrics_data)
            self.timeouts_ms.add(timeout_millis)
            self._changed.notify_all()
            result = self._results.pop(0) if self._results else MetricExportResult.SUCCESS
        if isinstance(result, Exception):
            raise result
        return result

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.exports) >= count, DEADLINE_S)

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        self.shutdowns += 1

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True


class Moments:
    """A snapshot each time it is asked, each with a request and a second more than the last."""

    def __init__(self) -> None:
        self.taken = 0

    def __call__(self) -> Snapshot:
        self.taken += 1
        return snapshot(series(durations_ns=[1_000] * self.taken), seconds=self.taken)


def periodic(
    exporter: MetricExporter, schedule: Schedule, temporality: Temporality = Temporality.CUMULATIVE
) -> Periodic:
    way_out = WayOut(
        lambda metrics: metrics,
        ExportDoor(exporter, lambda metrics: exporter.export(metrics, schedule.timeout_s * 1000)),
        "there",
    )
    style = MetricStyle(HistogramStyle.EXPLICIT, temporality)
    return Periodic(way_out, style, schedule, "elsewhere")


def counts(exporter: Exporter) -> list[tuple[int, int]]:
    """Of each export, how many requests it told of, and of how many seconds."""
    told = [points(data, DURATION)[0] for data in exporter.exports]
    return [
        (point.count, (point.time_unix_nano - point.start_time_unix_nano) // 10**9)
        for point in told
    ]


@pytest.mark.parametrize(
    ("environment", "kind", "destination"),
    [
        ({}, GrpcMetricExporter, "http://localhost:4317 (grpc)"),
        (
            {
                "OTEL_METRICS_EXPORTER": "otlp",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1",
            },
            HttpMetricExporter,
            "http://a:1 (http/protobuf)",
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://b:2/v1/metrics",
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            },
            HttpMetricExporter,
            "http://b:2/v1/metrics (http/protobuf)",
        ),
    ],
)
def test_exporters_are_the_official_ones(
    environment: dict[str, str], kind: type, destination: str
) -> None:
    export = metrics_export(environment)
    assert isinstance(export, Periodic)
    assert type(export._way_out.door._exporter) is kind  # type: ignore[attr-defined]
    assert export.destination == destination


def test_none() -> None:
    export = metrics_export({"OTEL_METRICS_EXPORTER": "none"})
    assert export.destination == "none"
    export.start(lambda: pytest.fail("nobody wants a snapshot"))
    export.stop()


@pytest.mark.parametrize(
    ("environment", "destination"),
    [
        ({}, "http://localhost:9464/metrics (Prometheus)"),
        (
            {"OTEL_EXPORTER_PROMETHEUS_HOST": "::", "OTEL_EXPORTER_PROMETHEUS_PORT": "99"},
            "http://[::]:99/metrics (Prometheus)",
        ),
    ],
)
def test_prometheus(environment: dict[str, str], destination: str) -> None:
    export = metrics_export({"OTEL_METRICS_EXPORTER": "prometheus", **environment})
    assert export.destination == destination
    export.stop()


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (
            {"OTEL_METRICS_EXPORTER": "otlp,console"},
            "OTEL_METRICS_EXPORTER=otlp,console names several exporters: otelbpf sends to one; let "
            "an OpenTelemetry collector send on to others",
        ),
        (
            {"OTEL_METRICS_EXPORTER": "statsd"},
            "OTEL_METRICS_EXPORTER=statsd is not installed: there are otlp, prometheus, none, "
            "console, otlp_json_file, otlp_proto_grpc, otlp_proto_http",
        ),
        (
            {"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "thrift"},
            "OTEL_EXPORTER_OTLP_PROTOCOL=thrift is not supported: it is one of grpc, http/protobuf",
        ),
        (
            {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "collector:4317"},
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=collector:4317 does not say whether to use TLS: "
            "write http://collector:4317, or https:// for TLS",
        ),
        (
            {"OTEL_METRIC_EXPORT_INTERVAL": "1s"},
            "OTEL_METRIC_EXPORT_INTERVAL=1s is no whole number from 1 to 999999999",
        ),
        (
            {"OTEL_METRIC_EXPORT_TIMEOUT": "0"},
            "OTEL_METRIC_EXPORT_TIMEOUT=0 is no whole number from 1 to 999999999",
        ),
        (
            {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "absolute"},
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=absolute is not supported: it is "
            "one of cumulative, delta, lowmemory",
        ),
        (
            {"OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "summary"},
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION=summary is not supported: it "
            "is one of explicit_bucket_histogram, base2_exponential_bucket_histogram",
        ),
        (
            {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "65536"},
            "OTEL_EXPORTER_PROMETHEUS_PORT=65536 is no whole number from 1 to 65535",
        ),
        (
            {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "http"},
            "OTEL_EXPORTER_PROMETHEUS_PORT=http is no whole number from 1 to 65535",
        ),
        (
            {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "0"},
            "OTEL_EXPORTER_PROMETHEUS_PORT=0 is no whole number from 1 to 65535",
        ),
    ],
)
def test_refusals(environment: dict[str, str], sentence: str) -> None:
    with pytest.raises(UsageError) as refusal:
        metrics_export(environment)
    assert str(refusal.value) == sentence


def test_settings() -> None:
    assert Schedule.from_environment({}) == Schedule(60.0, 30.0)
    export = metrics_export(
        {
            "OTEL_METRICS_EXPORTER": "console",
            "OTEL_METRIC_EXPORT_INTERVAL": "250",
            "OTEL_METRIC_EXPORT_TIMEOUT": "1500",
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "Delta",
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": (
                "base2_exponential_bucket_histogram"
            ),
        }
    )
    assert isinstance(export, Periodic)
    assert export._schedule == Schedule(0.25, 1.5)
    assert export._style == MetricStyle(HistogramStyle.EXPONENTIAL, Temporality.DELTA)


def test_at_intervals_and_at_the_end() -> None:
    """A long interval leaves the end only."""
    exporter, moments = Exporter(), Moments()
    export = periodic(exporter, OFTEN)
    export.start(moments)
    exporter.wait_for(3)
    export.stop()
    export.stop()
    assert counts(exporter) == [(n, n) for n in range(1, moments.taken + 1)]
    assert exporter.shutdowns == 1
    assert exporter.timeouts_ms == {5_000.0}
    exporter = Exporter()
    export = periodic(exporter, SELDOM)
    export.start(Moments())
    export.stop()
    assert counts(exporter) == [(1, 1)]


def test_one_that_was_never_started_can_be_stopped() -> None:
    exporter = Exporter()
    periodic(exporter, OFTEN).stop()
    assert exporter.exports == []


@pytest.mark.parametrize("failure", [MetricExportResult.FAILURE, RuntimeError("broken")])
def test_deltas_make_up_for_exports_that_failed(
    failure: MetricExportResult | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is told twice, nothing is left out; it is said once, and counted."""
    exporter = Exporter(MetricExportResult.SUCCESS, failure, failure)
    export = periodic(exporter, OFTEN, Temporality.DELTA)
    with caplog.at_level(logging.WARNING):
        export.start(Moments())
        exporter.wait_for(5)
        export.stop()
    assert counts(exporter)[:5] == [(1, 1), (1, 1), (2, 2), (3, 3), (1, 1)]
    failed = [values(data, "otelbpf.metrics.exports.failed") for data in exporter.exports]
    assert failed[:5] == [0, 0, 1, 2, 0]
    said = [record.getMessage() for record in caplog.records if not record.exc_info]
    raised = isinstance(failure, RuntimeError)
    why = "RuntimeError: broken" if raised else "Exporter does not say why"
    assert said == [
        f"there does not take metrics now ({why}); what it misses will be in what it takes next, "
        "or is counted",
        "there takes metrics again",
    ]


def test_a_series_that_ends_while_exports_fail_is_told_in_the_overflow() -> None:
    """Whoever takes an export for the first time was never told of it under its own name."""
    of_overflow = SeriesKey(Kind.SERVER, SHOP, overflow=True)
    moments = iter(
        [
            snapshot(series(durations_ns=[1_000] * 5), seconds=1),
            snapshot(series(of_overflow, [1_000] * 5), seconds=2),
            snapshot(series(of_overflow, [1_000] * 6), seconds=3),
        ]
    )
    exporter = Exporter(MetricExportResult.FAILURE)
    exports = periodic(exporter, OFTEN)
    last = snapshot(series(of_overflow, [1_000] * 6), seconds=4)
    exports.start(lambda: next(moments, last))
    exporter.wait_for(4)
    exports.stop()
    assert [count for count, _ in counts(exporter)[:4]] == [5, 5, 6, 6]
    ended = [values(data, "otelbpf.series.ended.requests", "otelbpf.kind")
             for data in exporter.exports]  # fmt: skip
    assert all(each == {"server": 0} for each in ended)


def test_a_series_that_ends_between_exports_is_not_told_again() -> None:
    of_overflow = SeriesKey(Kind.SERVER, SHOP, overflow=True)
    moments = iter([snapshot(series(durations_ns=[1_000] * 5), seconds=1)])
    exporter = Exporter()
    exports = periodic(exporter, OFTEN)
    last = snapshot(series(of_overflow, [1_000] * 6), seconds=2)
    exports.start(lambda: next(moments, last))
    exporter.wait_for(3)
    exports.stop()
    assert [count for count, _ in counts(exporter)[:3]] == [5, 1, 1]
    ended = [values(data, "otelbpf.series.ended.requests", "otelbpf.kind")
             for data in exporter.exports[:3]]  # fmt: skip
    assert ended == [{"server": 0}, {"server": 5}, {"server": 5}]


def test_cumulative_metrics_count_failures_since_the_start() -> None:
    exporter = Exporter(MetricExportResult.FAILURE)
    export = periodic(exporter, OFTEN)
    export.start(Moments())
    exporter.wait_for(4)
    export.stop()
    failed = [values(data, "otelbpf.metrics.exports.failed") for data in exporter.exports]
    assert failed[:4] == [0, 1, 1, 1]
    assert counts(exporter)[:4] == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_metrics_that_are_lost_at_the_end_are_not_lost_in_silence(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otelbpf.export.metrics._LAST_EXPORT_S", 0.1)
    export = periodic(Exporter(*[MetricExportResult.FAILURE] * 9), SELDOM)
    with caplog.at_level(logging.WARNING):
        export.start(Moments())
        export.stop()
    assert caplog.messages[-1] == "there has not taken the last metrics"


def test_a_snapshot_that_cannot_be_taken_is_a_failed_export() -> None:
    exporter, moments = Exporter(), Moments()
    broken = iter([True])

    def take() -> Snapshot:
        if next(broken, False):
            raise OSError("no such map")
        return moments()

    export = periodic(exporter, OFTEN)
    export.start(take)
    exporter.wait_for(1)
    export.stop()
    assert values(exporter.exports[0], "otelbpf.metrics.exports.failed") == 1


def test_no_snapshot_is_taken_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter that hangs is left behind, and what it does then does no harm."""
    monkeypatch.setattr("otelbpf.export.metrics._GIVING_UP_S", 0.01)
    entered, leave = threading.Event(), threading.Event()

    class Hanging(Exporter):
        def export(self, *arguments: Any, **others: Any) -> MetricExportResult:
            entered.set()
            leave.wait(DEADLINE_S)
            return super().export(*arguments, **others)

    exporter, moments = Hanging(), Moments()
    export = periodic(exporter, Schedule(interval_s=0.001, timeout_s=0.01))
    export.start(moments)
    assert entered.wait(DEADLINE_S)
    export.stop()
    taken = moments.taken
    leave.set()
    export._thread.join(DEADLINE_S)
    assert not export._thread.is_alive()
    assert (moments.taken, len(exporter.exports)) == (taken, 1)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("style", HistogramStyle)
def test_otlp(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, protocol: str, style: HistogramStyle
) -> None:
    """What a collector gets, by the official exporters, as the variables say."""
    grpc = protocol == "grpc"
    endpoint = receiver.grpc_endpoint if grpc else receiver.http_endpoint
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": style.value,
    }
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    export = metrics_export(environment)
    export.start(Moments())
    export.stop()
    (message,) = receiver.metrics()
    shop, agent = message.resource_metrics
    assert [a.value.string_value for a in agent.resource.attributes if a.key == "service.name"] == [
        "otelbpf"
    ]
    (scope,) = shop.scope_metrics
    assert scope.scope.name == "otelbpf"
    (metric,) = (metric for metric in scope.metrics if metric.name == DURATION)
    data = metric.histogram if style is HistogramStyle.EXPLICIT else metric.exponential_histogram
    assert data.data_points[0].count == 1
    assert data.data_points[0].start_time_unix_nano == START_UNIX_NS


def test_many_series_go_in_several_messages(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each below what collectors take over gRPC."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.grpc_endpoint)
    export = metrics_export({"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_endpoint})
    routes = [f"/a/rather/long/route/as/they/may/be/{number}" for number in range(1_000)]
    export.start(lambda: snapshot(*(series(key(route=route)) for route in routes)))
    export.stop()
    messages = receiver.metrics()
    assert len(messages) > 1
    assert max(message.ByteSize() for message in messages) < 4 << 20
    told = [
        attribute.value.string_value
        for message in messages
        for of_resource in message.resource_metrics
        for scope in of_resource.scope_metrics
        for metric in scope.metrics
        if metric.name == DURATION
        for point in metric.histogram.data_points
        for attribute in point.attributes
        if attribute.key == "http.route"
    ]
    assert sorted(told) == sorted(routes)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_refuses_is_complained_of_once(
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    protocol: str,
) -> None:
    """With its words; and once more when it takes metrics again."""
    endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    receiver.behave(Behaviour(refuse=True, retryable=False))
    export = metrics_export(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_METRIC_EXPORT_INTERVAL": "1",
        }
    )
    tries = threading.Semaphore(0)
    moments = Moments()

    def take() -> Snapshot:
        tries.release()
        return moments()

    with caplog.at_level(logging.WARNING):
        export.start(take)
        for _ in range(5):
            assert tries.acquire(timeout=DEADLINE_S)
        receiver.behave(Behaviour())
        assert receiver.wait_until(lambda each: bool(each.metrics()), DEADLINE_S)
        export.stop()
    why = (
        "gRPC INVALID_ARGUMENT: refused, as the receiver was told to" if protocol == "grpc"
        else "HTTP 400 Bad Request"
    )  # fmt: skip
    assert caplog.messages == [
        f"{endpoint} ({protocol}) refuses metrics ({why}); what it misses will be in what it takes "
        "next, or is counted",
        f"{endpoint} ({protocol}) takes metrics again",
    ]


def otlp_export(
    monkeypatch: pytest.MonkeyPatch, protocol: str, port: int, **variables: str
) -> MetricsExport:
    """Exports only when it is stopped, or else as the variables say."""
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        **variables,
    }
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    return metrics_export(environment)


def points_in(message: ExportMetricsServiceRequest) -> int:
    return sum(
        len(getattr(metric, metric.WhichOneof("data")).data_points)
        for of_resource in message.resource_metrics
        for scope in of_resource.scope_metrics
        for metric in scope.metrics
    )


def counter(message: ExportMetricsServiceRequest, name: str) -> dict[str, int]:
    """Its points by their reason."""
    return {
        point.attributes[0].value.string_value: point.as_int
        for of_resource in message.resource_metrics
        for scope in of_resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.sum.data_points
    }


def durations(message: ExportMetricsServiceRequest) -> int:
    """Of how many requests."""
    return sum(
        point.count
        for of_resource in message.resource_metrics
        for scope in of_resource.scope_metrics
        for metric in scope.metrics
        if metric.name == DURATION
        for point in metric.histogram.data_points
    )


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_rejected_points_are_counted(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    protocol: str,
    temporality: str,
) -> None:
    """Since the start, or since the last export; and told once."""
    body = partial(7, "too old", "metrics")
    with (grpc_receiver if protocol == "grpc" else http_receiver)() as receiver:
        receiver.answers = [Rpc(body=body) if protocol == "grpc" else Web(200, PROTOBUF, body)] * 2
        export = otlp_export(
            monkeypatch, protocol, receiver.port, OTEL_METRIC_EXPORT_INTERVAL="1",
            OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=temporality,
        )  # fmt: skip
        export.start(Moments())
        while len(receiver.kept) < 4:
            time.sleep(0.001)
        export.stop()
    told = [
        counter(message, "otelbpf.metrics.points.lost")["rejected"]
        for message in receiver.metrics()
    ]
    assert told[:4] == ([0, 7, 14, 14] if temporality == "cumulative" else [0, 7, 7, 0])
    assert caplog.messages == [
        f"{export.destination} has rejected 7 of {points_in(receiver.metrics()[0])} data "
        "points, which "
        "are lost (too old)",
        f"{export.destination} takes metrics again",
    ]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_metrics_that_are_too_large_go_in_parts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    with (grpc_receiver if protocol == "grpc" else http_receiver)() as receiver:
        receiver.answers = [
            Rpc(grpc.StatusCode.RESOURCE_EXHAUSTED, "grpc: received message larger than max")
            if protocol == "grpc" else Web(413)
        ] * 3  # fmt: skip
        export = otlp_export(monkeypatch, protocol, receiver.port)
        export.start(Moments())
        export.stop()
        whole = points_of(metrics_of(Moments()()))
    assert receiver.tries == 3 + 4
    assert sum(map(points_in, receiver.metrics())) == len(whole)
    assert caplog.messages == []


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_what_is_taken_in_part_is_not_told_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    """Of deltas: the rest is lost, and counted. Told again it would count twice."""
    rpc = protocol == "grpc"
    too_large = Rpc(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large") if rpc else Web(413)
    refused = Rpc(grpc.StatusCode.UNAUTHENTICATED, "no") if rpc else Web(401)
    with (grpc_receiver if rpc else http_receiver)() as receiver:
        receiver.answers = [too_large, None, refused]
        export = otlp_export(
            monkeypatch, protocol, receiver.port, OTEL_METRIC_EXPORT_INTERVAL="1",
            OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE="delta",
        )  # fmt: skip
        export.start(Moments())
        while len(receiver.kept) < 3:
            time.sleep(0.001)
        export.stop()
    # The second comes in two halves at once.
    first, *second = receiver.metrics()[:3]
    # The requests' durations were in the half that is lost: the second tells of one, not two.
    assert [durations(first), sum(map(durations, second))] == [0, 1]
    whole = metrics_of(Moments()(), style=MetricStyle(temporality=Temporality.DELTA))
    lost = len(points_of(whole)) - points_in(first)
    told = [counter(message, "otelbpf.metrics.points.lost") for message in second]
    assert [each for each in told if each] == [
        {"rejected": 0, "refused": lost, "too_large": 0, "export_failed": 0}
    ]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_passing_failure_is_tried_again_before_the_next_is_due(
    monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    hours = passing(monkeypatch)
    rpc = protocol == "grpc"
    with (grpc_receiver if rpc else http_receiver)() as receiver:
        receiver.answers = [Rpc(grpc.StatusCode.UNAVAILABLE) if rpc else Web(503)] * 4
        export = otlp_export(monkeypatch, protocol, receiver.port)
        assert isinstance(export, Periodic)
        export._take_snapshot = Moments()
        export._export()
        export._export()
    # 1 + 2 + 4 + 8 s are less than the 30 that an export may take.
    assert hours.waits == [1, 2, 4, 8]
    assert (len(receiver.kept), receiver.tries) == (2, 6)
    assert receiver.metrics()[1].resource_metrics


@pytest.mark.parametrize("size", [1, 2, 7, 1_000])
def test_points_are_put_together_again(size: int) -> None:
    """In whatever pieces: nothing is left out, nothing is there twice, all is where it was."""
    whole = metrics_of(snapshot(*(series(key(route=f"/{n}")) for n in range(9))))
    every = points_of(whole)
    pieces = [metrics_with(every[n : n + size]) for n in range(0, len(every), size)]
    assert [each for piece in pieces for each in map(told, points_of(piece))] == list(
        map(told, every)
    )
    assert metrics_with(every) == whole


def told(each: PointOf) -> tuple[Any, ...]:
    of_resource, of_scope, metric, point = each
    return of_resource.resource, of_scope.scope, metric.name, metric.unit, point


def test_console(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON, as the SDK writes it; nothing in it that JSON does not know."""
    output = io.StringIO()
    export = periodic(ConsoleMetricExporter(out=output), SELDOM)
    export.start(snapshot)
    export.stop()
    shop, agent = json.loads(output.getvalue())["resource_metrics"]
    assert shop["resource"]["attributes"]["service.name"] == "shop"
    assert agent["resource"]["attributes"]["service.name"] == "otelbpf"


def test_a_stop_that_waits_for_the_last_export_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def take() -> Snapshot:
        end = time.monotonic() + DEADLINE_S
        while not caplog.messages and time.monotonic() < end:
            time.sleep(0.001)
        return snapshot()

    export = periodic(Exporter(), SELDOM)
    export.start(take)
    export.stop()
    assert caplog.messages == ["stopping: the last metrics wait for there, for 5 s at most"]
