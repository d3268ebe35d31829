# SPDX-License-Identifier: Apache-2.0
"""snapshot -> metrics: OpenTelemetry's, of all requests, and of the agent itself.

Source:
    OpenTelemetry semantic conventions for HTTP metrics. What is ours starts with `otelbpf.`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum, auto
from typing import Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as SdkHistogram
from opentelemetry.sdk.resources import Resource

from otelbpf.ledger.request import Kind
from otelbpf.ledger.tally import Gap, Lost
from otelbpf.metrics.points import Attributes, HistogramStyle, Point, histogram_point
from otelbpf.metrics.since import Receiver, by_kind, since
from otelbpf.metrics.snapshot import Exemplar, Histogram, SeriesKey, Snapshot
from otelbpf.traces.description import SCOPE, error_type


class Temporality(StrEnum):
    """Since when numbers count, by the values of
    OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE.

    CUMULATIVE: since the agent was started; DELTA: since the last export; LOWMEMORY: histograms
    since the last export, counters since the start. What can fall counts since the start always.
    """

    CUMULATIVE = "cumulative"
    DELTA = "delta"
    LOWMEMORY = "lowmemory"


class _Type(Enum):
    HISTOGRAM = auto()
    COUNTER = auto()
    UP_DOWN = auto()


@dataclass(frozen=True)
class Instrument:
    """What is measured, and in which of UCUM's units."""

    type: _Type
    name: str
    unit: str
    description: str


def _histogram(name: str, description: str) -> Instrument:
    return Instrument(_Type.HISTOGRAM, name, "s", description)


def _counter(name: str, unit: str, description: str) -> Instrument:
    return Instrument(_Type.COUNTER, name, unit, description)


# What the conventions ask for, and all requests have in common: not told with each stage.
_OF_ALL = {"url.scheme": "http", "network.protocol.name": "http"}
_DURATION = {
    Kind.SERVER: _histogram("http.server.request.duration", "Duration of HTTP server requests."),
    Kind.CLIENT: _histogram("http.client.request.duration", "Duration of HTTP client requests."),
}
_STAGE = _histogram(
    "otelbpf.stage.duration", "Time between two neighbouring stamps of a request's way."
)
_ACK = _histogram(
    "otelbpf.tcp.ack.duration", "From a response's end until the client's TCP acknowledged it."
)
_REQUEST_SIZE = _counter("otelbpf.http.request.size", "By", "Requests on the wire, heads included.")
_RESPONSE_SIZE = _counter(
    "otelbpf.http.response.size", "By", "Responses on the wire, heads included."
)
_RETRANSMITS = _counter(
    "otelbpf.tcp.retransmits", "{segment}", "Segments, of both directions, that repeated bytes."
)
_OUT_OF_ORDER = _counter(
    "otelbpf.tcp.out_of_order", "{segment}", "Segments that came before bytes that precede them."
)
_CONNECTIONS = {
    "opened": "Connections that were opened.",
    "adopted": "Connections first seen by a request: older than the agent, or redirected.",
    "closed": "Connections that both sides have closed.",
    "reset": "Connections that ended with a reset.",
    "reset_by_peer": "Those of them that the other side has reset.",
    "refused": "Connections that were asked for and refused by a reset.",
    "unanswered": "Connections that were asked for and had no answer in time.",
    "evicted": "Connections forgotten to make room for others.",
    "crowded": "Connections whose segments came out of order and found no room.",
    "not_http": "Connections that are not HTTP/1, or not any more: also after a 101 or a CONNECT.",
    "tls": "Those of them that are of TLS.",
    "http2": "Those of them that are HTTP/2.",
    "unseen": "Connections some of whose bytes passed no measured interface.",
    "own": "Connections over which the agent itself exports, left alone.",
}
_HANDSHAKE = _histogram(
    "otelbpf.connection.handshake.duration", "From the SYN to the acknowledgement that ends it."
)
_ACCEPT_QUEUE = _histogram(
    "otelbpf.connection.accept_queue.duration", "From the handshake's end to the accept()."
)
_SEEN = _counter("otelbpf.requests.seen", "{request}", "Requests that the kernel saw.")
_EXPORTED = _counter("otelbpf.requests.exported", "{request}", "Requests that became spans.")
_SAMPLED_OUT = _counter(
    "otelbpf.requests.sampled_out", "{request}", "Requests left out by the sampler."
)
_IGNORED = _counter(
    "otelbpf.requests.ignored", "{request}", "Of these, those of routes that are not to be told."
)
_LOST = _counter("otelbpf.requests.lost", "{request}", "Requests that will not become spans.")
_IN_FLIGHT = Instrument(
    _Type.UP_DOWN,
    "otelbpf.requests.in_flight",
    "{request}",
    "Requests neither finished nor lost yet, or on their way to the collector.",
)
_SEGMENTS = {
    "stray": "Segments with payload of connections that no socket of this host has.",
    "unasked": "Segments of a server where no request was seen that it could answer.",
    "uncertain": "Segments that may begin a request, where nobody can tell; nothing is told of it.",
}
_JOINS = _counter("otelbpf.joins", "{join}", "What was joined to a request, and what could not be.")
_MISSED = _counter(
    "otelbpf.hooks.missed", "{call}", "Calls of a hook during which its program did not run."
)
_UNMEASURED = Instrument(
    _Type.UP_DOWN,
    "otelbpf.interfaces.unmeasured",
    "{interface}",
    "Interfaces that were asked for and are not measured.",
)
_UNMEASURED_TIME = _counter(
    "otelbpf.interfaces.unmeasured.time", "s", "How long interfaces were not measured."
)
_ENDED = _counter(
    "otelbpf.series.ended.requests",
    "{request}",
    "Requests that were told under series that have ended, and are in no series any more.",
)
_EXPORTS_FAILED = _counter(
    "otelbpf.metrics.exports.failed", "{export}", "Exports of metrics that were not taken."
)
_POINTS_LOST = _counter(
    "otelbpf.metrics.points.lost", "{point}", "Data points missing from exports that were taken."
)
_POINTS_LOST_BY = (Lost.REJECTED, Lost.REFUSED, Lost.TOO_LARGE, Lost.EXPORT_FAILED)


@dataclass(frozen=True)
class MetricStyle:
    """How metrics are told."""

    histograms: HistogramStyle = HistogramStyle.EXPLICIT
    temporality: Temporality = Temporality.CUMULATIVE

    def since_last(self, instrument: Instrument) -> bool:
        """Does it count since the last export only?"""
        if instrument.type is _Type.HISTOGRAM:
            return self.temporality is not Temporality.CUMULATIVE
        return instrument.type is _Type.COUNTER and self.temporality is Temporality.DELTA


@dataclass(frozen=True)
class Untold:
    """What of the metrics has not arrived: since the start, or, with DELTA, since the last export.

    Attributes:
        exports: of which nothing was taken.
        points: missing from exports that were taken.
    """

    exports: int = 0
    points: Mapping[Lost, int] = field(default_factory=dict)

    def and_an_export(self) -> Untold:
        """One export more."""
        return replace(self, exports=self.exports + 1)

    def and_points(self, lost: Mapping[Lost, int]) -> Untold:
        """So many points more."""
        reasons = {*self.points, *lost}
        return replace(self, points={
            reason: self.points.get(reason, 0) + lost.get(reason, 0) for reason in reasons
        })  # fmt: skip


_NEW_RECEIVER = Receiver()


def metrics_of(
    now: Snapshot,
    receiver: Receiver = _NEW_RECEIVER,
    style: MetricStyle = MetricStyle(),
    untold: Untold = Untold(),
) -> MetricsData:
    """All metrics of a moment.

    Args:
        receiver: who is told.
        untold: what of earlier exports has not arrived.
    """
    moments = {False: receiver.cumulative(now)}
    if style.temporality is not Temporality.CUMULATIVE:
        moments[True] = since(now, receiver.last)
    told = _Told(style)
    for is_recent, snapshot in moments.items():
        told.turn_to(snapshot, is_recent)
        _tell_series(told, snapshot)
        _tell_connections(told, snapshot)
        _tell_agent(told, snapshot)
        told.count(snapshot.resource, _EXPORTS_FAILED, untold.exports)
        for reason in _POINTS_LOST_BY:
            count = untold.points.get(reason, 0)
            told.count(snapshot.resource, _POINTS_LOST, count, {"otelbpf.reason": reason.value})
    return told.data()


class _Told:
    """Collects data points, of each instrument those of the moments that its temporality asks for.

    A resource's hash is a JSON dump in the SDK, so each is asked for it once a series, not once a
    point.
    """

    def __init__(self, style: MetricStyle) -> None:
        self._style = style
        self._points: dict[Resource, dict[Instrument, list[Point | NumberDataPoint]]] = {}
        self._is_recent = False

    def turn_to(self, snapshot: Snapshot, is_recent: bool) -> None:
        """What is told from here on is of this snapshot."""
        self._snapshot = snapshot
        self._is_recent = is_recent
        self.count_from(0)

    def count_from(self, unix_ns: int) -> None:
        """What is told from here on is of after this; 0: of after the snapshot's start."""
        first, last = self._snapshot.start_unix_ns, self._snapshot.unix_ns
        self._start_unix_ns, self._unix_ns = max(first, min(unix_ns, last)), last

    def histogram(
        self,
        resource: Resource,
        instrument: Instrument,
        histogram: Histogram,
        attributes: Attributes,
        exemplars: Iterable[Exemplar] = (),
    ) -> None:
        """Durations."""
        if self._style.since_last(instrument) is self._is_recent:
            point = histogram_point(
                histogram,
                self._style.histograms,
                attributes,
                self._start_unix_ns,
                self._unix_ns,
                exemplars,
            )
            self._add(resource, instrument, point)

    def count(
        self,
        resource: Resource,
        instrument: Instrument,
        value: float,
        attributes: Attributes | None = None,
    ) -> None:
        """A number."""
        if self._style.since_last(instrument) is self._is_recent:
            point = NumberDataPoint(
                dict(attributes or {}), self._start_unix_ns, self._unix_ns, value
            )
            self._add(resource, instrument, point)

    def _add(
        self, resource: Resource, instrument: Instrument, point: Point | NumberDataPoint
    ) -> None:
        self._points.setdefault(resource, {}).setdefault(instrument, []).append(point)

    def data(self) -> MetricsData:
        """All that was told."""
        all_metrics = []
        for resource, by_instrument in self._points.items():
            metrics = [self._metric(*each) for each in by_instrument.items()]
            scope = ScopeMetrics(SCOPE, metrics, "")
            all_metrics.append(ResourceMetrics(resource, [scope], resource.schema_url))
        return MetricsData(all_metrics)

    def _metric(self, instrument: Instrument, points: list[Any]) -> Metric:
        temporality = (
            AggregationTemporality.DELTA
            if self._style.since_last(instrument)
            else AggregationTemporality.CUMULATIVE
        )
        data: SdkHistogram | ExponentialHistogram | Sum
        if instrument.type is not _Type.HISTOGRAM:
            data = Sum(points, temporality, is_monotonic=instrument.type is _Type.COUNTER)
        elif self._style.histograms is HistogramStyle.EXPLICIT:
            data = SdkHistogram(points, temporality)
        else:
            data = ExponentialHistogram(points, temporality)
        return Metric(instrument.name, instrument.description, instrument.unit, data)


def _attributes_of(key: SeriesKey) -> dict[str, str | int | bool]:
    """What the requests of a series have in common."""
    if key.overflow:
        return {"otel.metric.overflow": True}
    attributes: dict[str, str | int | bool] = {
        "http.request.method": key.method,
        "server.port": key.server_port,
    }
    if key.route:
        attributes["http.route" if key.kind is Kind.SERVER else "url.template"] = key.route
    if key.server_address:
        attributes["server.address"] = key.server_address
    if key.status:
        attributes["http.response.status_code"] = key.status
    error = error_type(key.status, key.ended_by, key.kind)
    if error:
        attributes["error.type"] = error
    return attributes


def _tell_series(told: _Told, snapshot: Snapshot) -> None:
    for series in snapshot.series:
        resource, kind = series.key.resource, series.key.kind
        told.count_from(series.since_unix_ns)
        attributes = _attributes_of(series.key)
        duration_attributes = attributes if series.key.overflow else {**attributes, **_OF_ALL}
        told.histogram(
            resource, _DURATION[kind], series.duration, duration_attributes, series.exemplars
        )
        attributes["otelbpf.kind"] = kind.value
        for name, stage in series.stages.items():
            told.histogram(resource, _STAGE, stage, {**attributes, "otelbpf.stage": name})
        if kind is Kind.SERVER and series.acked.count:
            told.histogram(resource, _ACK, series.acked, attributes)
        told.count(resource, _REQUEST_SIZE, series.request_bytes, attributes)
        told.count(resource, _RESPONSE_SIZE, series.response_bytes, attributes)
        told.count(resource, _RETRANSMITS, series.retransmits, attributes)
        told.count(resource, _OUT_OF_ORDER, series.out_of_order, attributes)
    told.count_from(0)
    for kind, count in snapshot.ended.items():
        told.count(snapshot.resource, _ENDED, count, {"otelbpf.kind": kind.value})


def _tell_connections(told: _Told, snapshot: Snapshot) -> None:
    """They belong to the agent's resource: which service will accept one nobody knows yet."""
    merged = by_kind(snapshot.connections)
    for connections in merged:
        attributes = {"otelbpf.kind": connections.kind.value}
        for name, count in connections.counts.items():
            told.count(snapshot.resource, _connections(name), count, attributes)
        if connections.handshake is not None:
            told.histogram(snapshot.resource, _HANDSHAKE, connections.handshake, attributes)
        if connections.accept_queue is not None:
            told.histogram(snapshot.resource, _ACCEPT_QUEUE, connections.accept_queue, attributes)
    # What is counted for no kind.
    told_above = {name for connections in merged for name in connections.counts}
    for name, count in snapshot.sums.connections.items():
        if name not in told_above:
            told.count(snapshot.resource, _connections(name), count)


def _connections(what: str) -> Instrument:
    return _counter(f"otelbpf.connections.{what}", "{connection}", _CONNECTIONS.get(what, ""))


def _tell_agent(told: _Told, snapshot: Snapshot) -> None:
    resource, sums = snapshot.resource, snapshot.sums
    told.count(resource, _SEEN, sums.seen)
    told.count(resource, _EXPORTED, sums.exported)
    told.count(resource, _SAMPLED_OUT, sums.sampled_out)
    told.count(resource, _IGNORED, sums.ignored)
    told.count(resource, _IN_FLIGHT, sums.in_flight)
    # All reasons, so that the first loss is seen as a rise.
    for reason in Lost:
        told.count(resource, _LOST, sums.lost.get(reason, 0), {"otelbpf.reason": reason.value})
    for name, count in sums.segments.items():
        told.count(
            resource, _counter(f"otelbpf.segments.{name}", "{segment}", _SEGMENTS[name]), count
        )
    for name, count in sums.joins.items():
        told.count(resource, _JOINS, count, {"otelbpf.join": name})
    for hook, count in sums.missed.items():
        told.count(resource, _MISSED, count, {"otelbpf.hook": hook})
    for name, coverage in sums.interfaces.items():
        # All reasons, likewise.
        for gap in Gap:
            attributes = {"network.interface.name": name, "otelbpf.reason": gap.value}
            told.count(resource, _UNMEASURED, int(coverage.gap is gap), attributes)
            seconds = coverage.unmeasured_s.get(gap, 0.0)
            told.count(resource, _UNMEASURED_TIME, seconds, attributes)
