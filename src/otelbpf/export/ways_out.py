# SPDX-License-Identifier: Apache-2.0
"""The ways out for spans and metrics: the form that they are given, and the door that takes it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otelbpf.errors import UsageError
from otelbpf.export.answers import Answer, Door, Verdict
from otelbpf.export.exporters import Signal, is_otlp, load_exporter
from otelbpf.export.whole_lines import WholeLines, open_lines, standard_output
from otelbpf.ledger.batch import Requests
from otelbpf.metrics.encode import encode
from otelbpf.traces.description import Description
from otelbpf.traces.encode import Encoder
from otelbpf.traces.spans import readable_spans

_log = logging.getLogger(__name__)

_FILE = "otlp_json_file"
# A point with 28 buckets takes 0.8 KiB, and all of them are to be below doors.MOST_OCTETS.
_MOST_POINTS = 2_000
# The time to send was before: what is under way by then is given up.
_SHUT_DOWN_S = 2.0
# As objects of the SDK's so many requests are some 500 spans, which is what exporters are used to;
# and a line in a file stays below the MiB that collectors read of one.
_MOST_REQUESTS = 64

Told = TypeVar("Told")


@dataclass(frozen=True)
class WayOut(Generic[Told]):
    """A way out.

    Attributes:
        form: makes what the door takes.
        whose: who takes it, for people.
        most: so many requests or data points go at once; None: all.
    """

    form: Callable[[Told], Any]
    door: Door[Any]
    whose: str = "the collector"
    most: int | None = None


class ExportDoor(Generic[Told]):
    """By an exporter's own export(), which says no more than whether it went well."""

    def __init__(
        self,
        exporter: SpanExporter | MetricExporter,
        export: Callable[[Told], SpanExportResult | MetricExportResult],
    ) -> None:
        self._exporter = exporter
        self._export = export

    def send(self, told: Told, within_s: float) -> Answer:
        """Exports it; its own time-out is its."""
        result = self._export(told)
        if result in (SpanExportResult.SUCCESS, MetricExportResult.SUCCESS):
            return Answer(Verdict.TAKEN)
        return Answer(Verdict.LATER, f"{type(self._exporter).__name__} does not say why")

    def close(self) -> None:
        """Shuts the exporter down, which is its own work: it may fail, or hang."""
        closing = threading.Thread(target=self._shut_down, name="otelbpf-closing", daemon=True)
        closing.start()
        closing.join(_SHUT_DOWN_S)
        if closing.is_alive():
            _log.warning("%s does not shut down: it is left alone", type(self._exporter).__name__)

    def _shut_down(self) -> None:
        try:
            self._exporter.shutdown()
        except Exception:
            _log.exception("%s failed while it shut down", type(self._exporter).__name__)


def spans_way_out(
    name: str, description: Description, output: str | None = None
) -> WayOut[Requests] | None:
    """The way out for spans by the exporter that is called `name`; None for "none".

    Args:
        description: what the spans say.
        output: the file that otlp_json_file appends to; None: standard output.
    Raises:
        UsageError: no such exporter, or it refuses its configuration.
    """
    if output is not None and name != _FILE:
        raise UsageError(f"--output goes with OTEL_TRACES_EXPORTER={_FILE} only")
    if name == "none":
        return None

    def spans_of(requests: Requests) -> list[ReadableSpan]:
        return readable_spans(description, requests)

    if name == _FILE:
        from opentelemetry.exporter.otlp.json.common.trace_encoder import encode_spans as as_json

        return _to_lines(
            lambda requests: _json_line(as_json(spans_of(requests))), output, _MOST_REQUESTS
        )
    exporter = load_exporter(name, Signal.TRACES, ("otlp", "none"), {})
    if name == "console":
        return _to_lines(
            lambda requests: "".join(map(exporter.formatter, spans_of(requests))),
            most=_MOST_REQUESTS,
        )
    if is_otlp(name) and (door := _known_door(exporter, Signal.TRACES)) is not None:
        return WayOut(Encoder(description).encode, door)
    return by_export(
        exporter, description, "the collector" if is_otlp(name) else f"exporter {name}"
    )


def by_export(exporter: SpanExporter, description: Description, whose: str) -> WayOut[Requests]:
    """The way out of any exporter of spans."""
    return WayOut(
        lambda requests: readable_spans(description, requests),
        ExportDoor(exporter, exporter.export),
        whose,
        _MOST_REQUESTS,
    )


def metrics_way_out(
    name: str, whose: str, timeout_s: float, arguments: Mapping[str, Any]
) -> WayOut[MetricsData]:
    """The way out for metrics by the exporter that is called `name`.

    Args:
        whose: who takes them, for people.
        timeout_s: of exporters that are none of OTLP's.
        arguments: of one that is.
    Raises:
        UsageError: no such exporter, or it refuses its configuration.
    """
    if name == _FILE:
        from opentelemetry.exporter.otlp.json.common.metrics_encoder import (
            encode_metrics as as_json,
        )

        return _to_lines(lambda metrics: _json_line(as_json(metrics)))
    others = ("otlp", "prometheus", "none")
    if not is_otlp(name):
        exporter = load_exporter(name, Signal.METRICS, others, {})
        if name == "console":
            return _to_lines(exporter.formatter)
        return WayOut(_as_it_is, _metrics_door(exporter, timeout_s), whose)
    exporter = load_exporter(
        name, Signal.METRICS, others, {"max_export_batch_size": _MOST_POINTS, **arguments}
    )
    door = _known_door(exporter, Signal.METRICS)
    if door is None:
        return WayOut(_as_it_is, _metrics_door(exporter, timeout_s), whose)
    return WayOut(encode, door, whose, _MOST_POINTS)


def _known_door(exporter: Any, signal: Signal) -> Door[bytes] | None:
    # Only here: it brings protobuf, for which an agent that has no such exporter need not wait.
    from otelbpf.export.doors import door_of

    door = door_of(exporter, signal)
    if door is None:
        _log.warning(
            "the exporter of %s is of a version that otelbpf does not know: what a collector "
            "redirects or rejects is counted as exported; install one that pyproject.toml names",
            signal,
        )
    return door


def _metrics_door(exporter: MetricExporter, timeout_s: float) -> ExportDoor[MetricsData]:
    return ExportDoor(exporter, lambda metrics: exporter.export(metrics, timeout_s * 1000))


def _to_lines(
    text_of: Callable[[Told], str], output: str | None = None, most: int | None = None
) -> WayOut[Told]:
    lines: WholeLines = standard_output() if output is None else open_lines(output)
    return WayOut(lambda told: text_of(told).encode(), lines, output or "standard output", most)


def _json_line(export: Any) -> str:
    return json.dumps(export.to_dict(), separators=(",", ":")) + "\n"


def _as_it_is(told: Told) -> Told:
    return told
