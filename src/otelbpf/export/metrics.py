# SPDX-License-Identifier: Apache-2.0
"""metrics -> exporter: at intervals through an official OpenTelemetry exporter, or when scraped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from opentelemetry.sdk.metrics.export import MetricsData

from otelbpf.errors import UsageError
from otelbpf.export.delivery import UNSAID_S, Delivery, Formed, Wording
from otelbpf.export.exporters import (
    Signal,
    asked_for,
    destination,
    whole_number,
)
from otelbpf.export.parts import PointOf, metrics_with, points_of
from otelbpf.export.prometheus import PrometheusEndpoint
from otelbpf.export.ways_out import WayOut, metrics_way_out
from otelbpf.ledger.tally import Lost
from otelbpf.metrics.instruments import MetricStyle, Temporality, Untold, metrics_of
from otelbpf.metrics.points import HistogramStyle
from otelbpf.metrics.since import Receiver
from otelbpf.metrics.snapshot import Snapshot
from otelbpf.protocols.urls import authority_of

_log = logging.getLogger(__name__)

_INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"
_TIMEOUT = "OTEL_METRIC_EXPORT_TIMEOUT"
_HISTOGRAMS = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
_TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
_HOST = "OTEL_EXPORTER_PROMETHEUS_HOST"
_PORT = "OTEL_EXPORTER_PROMETHEUS_PORT"
# The longest that stopping waits for the last export: one that is taken takes no second.
_LAST_EXPORT_S = 5.0
# How long it waits where the collector has not taken metrics lately, and for an export that was
# told to give up.
_GIVING_UP_S = 1.0

TakeSnapshot = Callable[[], Snapshot]
_Choice = TypeVar("_Choice", bound=StrEnum)


class MetricsExport(Protocol):
    """A way for metrics out of the agent.

    Make it by metrics_export() while settings are checked; start() it once everything is
    attached; stop() it when no request is in flight any more, while snapshots can still be taken.

    Attributes:
        destination: where the metrics go, for people.
        low_port: is it to listen on a port below 1024, which takes a right?
    """

    destination: str
    low_port: bool = False

    def start(self, take_snapshot: TakeSnapshot) -> None:
        """Starts asking for snapshots, from one other thread at a time.

        Raises:
            UsageError: an address cannot be listened on.
        """

    def stop(self) -> None:
        """Exports once more, where it is for the agent to begin, and ends. May be called twice."""


def metrics_export(environment: Mapping[str, str]) -> MetricsExport:
    """What OTEL_METRICS_EXPORTER and the variables of the exporter that it names ask for.

    Raises:
        UsageError: one of them has a value that it cannot have.
    """
    name = asked_for(environment, Signal.METRICS)
    if name == "none":
        return _Nowhere()
    if name == "prometheus":
        return _Scraped(environment)
    schedule = Schedule.from_environment(environment)
    style = MetricStyle(
        histograms=_choice(environment, _HISTOGRAMS, HistogramStyle.EXPLICIT),
        temporality=_choice(environment, _TEMPORALITY, Temporality.CUMULATIVE),
    )
    arguments: dict[str, Any] = {}
    # Else OTLP's have theirs, of OTEL_EXPORTER_OTLP_TIMEOUT.
    if environment.get(_TIMEOUT, "").strip():
        arguments["timeout"] = schedule.timeout_s
    to = destination(environment, name, Signal.METRICS)
    return Periodic(metrics_way_out(name, to, schedule.timeout_s, arguments), style, schedule, to)


def _choice(environment: Mapping[str, str], name: str, default: _Choice) -> _Choice:
    text = environment.get(name, "").strip().lower()
    kind = type(default)
    if not text:
        return default
    if text not in list(kind):
        raise UsageError(f"{name}={text} is not supported: it is one of {', '.join(kind)}")
    return kind(text)


class _Nowhere:
    """OTEL_METRICS_EXPORTER=none."""

    destination = "none"
    low_port = False

    def start(self, take_snapshot: TakeSnapshot) -> None:
        """Does nothing."""

    def stop(self) -> None:
        """Does nothing."""


class _Scraped:
    """OTEL_METRICS_EXPORTER=prometheus; explicit buckets, since the start."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        host = environment.get(_HOST, "").strip() or "localhost"
        port = int(whole_number(environment, _PORT, 9464, most=65_535))
        self.low_port = port < 1024
        self._endpoint = PrometheusEndpoint(host, port)
        self.destination = f"http://{authority_of(host, port)}/metrics (Prometheus)"

    def start(self, take_snapshot: TakeSnapshot) -> None:
        """Listens for scrapes."""
        receiver = Receiver()

        def collect() -> MetricsData:
            nonlocal receiver
            now = take_snapshot()
            metrics, receiver = metrics_of(now, receiver), receiver.with_next(now)
            return metrics

        self._endpoint.start(collect)

    def stop(self) -> None:
        """Ends it; a scraper has what it asked for in time."""
        self._endpoint.stop()


@dataclass(frozen=True)
class Schedule:
    """When metrics are exported.

    Attributes:
        interval_s: from one export to the next (OTEL_METRIC_EXPORT_INTERVAL).
        timeout_s: the longest that one may take (OTEL_METRIC_EXPORT_TIMEOUT).
    """

    interval_s: float = 60.0
    timeout_s: float = 30.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Schedule:
        """The defaults, changed by the OTEL_METRIC_EXPORT_* variables, which are in ms.

        Raises:
            UsageError: one of them is no whole number, or none from 1 to 999999999.
        """
        return cls(
            whole_number(environment, _INTERVAL, cls.interval_s * 1000) / 1000,
            whole_number(environment, _TIMEOUT, cls.timeout_s * 1000) / 1000,
        )


class Periodic:
    """Exports at intervals, in a thread of its own, and at the end.

    An export of which nothing was taken loses nothing: the next one tells of all since the start
    or, of what is told since the last export, since the last one that was taken. Of one that was
    taken in part the rest is lost, and counted: it would be told twice else.
    """

    def __init__(
        self, way_out: WayOut[MetricsData], style: MetricStyle, schedule: Schedule, destination: str
    ) -> None:
        self.destination = destination
        self.low_port = False
        self._way_out = way_out
        self._style = style
        self._schedule = schedule
        self._take_snapshot: TakeSnapshot | None = None
        self._receiver = Receiver()
        self._untold = Untold()
        self._stopping = threading.Event()
        self._taking = threading.Lock()
        self._is_failing = False
        misses = "what it misses will be in what it takes next, or is counted"
        wording = Wording(
            way_out.whose, "metrics", "data points", "a single data point", misses, refused=misses
        )
        # Until the next export is due.
        retry_s = min(schedule.interval_s, schedule.timeout_s)
        self._delivery = Delivery(way_out.door, self._formed, wording, retry_s, way_out.most)
        self._thread = threading.Thread(target=self._run, name="otelbpf-metrics", daemon=True)

    def start(self, take_snapshot: TakeSnapshot) -> None:
        """Starts exporting; the first time after one interval."""
        self._take_snapshot = take_snapshot
        self._thread.start()

    def stop(self) -> None:
        """Exports for the last time, and waits for that, but not for long."""
        if self._take_snapshot is None or self._stopping.is_set():
            return
        patience_s = _GIVING_UP_S if self._is_failing else _LAST_EXPORT_S
        patience_s = min(patience_s, self._schedule.timeout_s)
        self._delivery.stop(patience_s)
        self._stopping.set()
        self._thread.join(min(UNSAID_S, patience_s))
        if self._thread.is_alive() and patience_s > UNSAID_S:
            _log.warning(
                "stopping: the last metrics wait for %s, for %g s at most",
                self._way_out.whose, patience_s,
            )  # fmt: skip
            self._thread.join(patience_s - UNSAID_S)
        # Ends a try that is under way; one over HTTP may not hear it.
        self._way_out.door.close()
        self._thread.join(_GIVING_UP_S)
        # A thread that still hangs shall take no snapshot of what is about to be closed.
        with self._taking:
            self._take_snapshot = None
        if self._is_failing or self._thread.is_alive():
            _log.warning("%s has not taken the last metrics", self._way_out.whose)

    def _run(self) -> None:
        while not self._stopping.wait(self._schedule.interval_s):
            self._export()
        self._export()

    def _export(self) -> None:
        try:
            with self._taking:
                if self._take_snapshot is None:
                    return
                snapshot = self._take_snapshot()
            metrics = metrics_of(snapshot, self._receiver, self._style, self._untold)
            lost = self._lost_of(points_of(metrics))
        except Exception:
            if not self._is_failing:
                _log.exception("metrics cannot be exported")
            lost = None
        self._is_failing = lost is None
        if lost is None:
            self._untold = self._untold.and_an_export()
            return
        self._receiver = self._receiver.with_next(snapshot)
        if self._style.temporality is Temporality.DELTA:
            self._untold = Untold()
        self._untold = self._untold.and_points(lost)

    def _lost_of(self, points: list[PointOf]) -> dict[Lost, int] | None:
        """Tells of these points; which were lost. None: all of them, and none has arrived."""
        arrived, lost = 0, dict[Lost, int]()
        for fate in self._delivery.deliver(points):
            arrived += fate.taken + fate.lost.get(Lost.REJECTED, 0)
            for reason, count in fate.lost.items():
                lost[reason] = lost.get(reason, 0) + count
        return lost if arrived or not points else None

    def _formed(self, points: Sequence[PointOf]) -> Formed:
        return Formed(self._way_out.form(metrics_with(points)), lambda: [1] * len(points))
