# SPDX-License-Identifier: Apache-2.0
"""span -> exporter: a bounded queue in front of an official OpenTelemetry exporter.

The queue holds requests, not spans: they are small, and become spans only when
their turn to be sent has come. What does not fit, or is refused for too long,
is counted as lost; nothing ever waits for the collector but the sending thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otelbpf.accounting import Ledger, Lost
from otelbpf.errors import UsageError

_log = logging.getLogger(__name__)

_BY_PROTOCOL = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
_BACK_OFF_FIRST_S = 1.0
#: How long stopping may wait for a collector without a word.
UNSAID_S = 0.5
# How long an export under way is waited for once the exporter was shut down.
_LAST_EXPORT_S = 2.0
_BACK_OFF_LONGEST_S = 8.0

# What stands for a request while it waits.
Item = TypeVar("Item")


class Signal(StrEnum):
    """What is exported, as it is called in the names of variables and of entry points."""

    TRACES = "traces"
    METRICS = "metrics"


def whole_number(environment: Mapping[str, str], name: str, default: float) -> float:
    """The number that the variable `name` has; `default` where it is not set.

    Raises:
        UsageError: it is no whole number, or none from 1 to 999999999.
    """
    text = environment.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise UsageError(f"{name}={text} is no whole number from 1 to 999999999")
    return int(text)


@dataclass(frozen=True)
class QueueLimits:
    """How much waits, and for how long.

    Attributes:
        requests: in the queue (OTEL_BSP_MAX_QUEUE_SIZE).
        batch_spans: sent at once (OTEL_BSP_MAX_EXPORT_BATCH_SIZE).
        delay_s: the longest that a request waits for others (OTEL_BSP_SCHEDULE_DELAY).
        flush_s: the longest that stopping waits for the collector (OTEL_BSP_EXPORT_TIMEOUT).
        retry_s: for how long a batch that is refused is offered again.
    """

    requests: int = 16_384
    batch_spans: int = 512
    delay_s: float = 1.0
    flush_s: float = 10.0
    retry_s: float = 60.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> QueueLimits:
        """The defaults, changed by the OTEL_BSP_* variables.

        Raises:
            UsageError: one of them is no whole number, or none from 1 to 999999999.
        """

        def number(name: str, default: float) -> float:
            return whole_number(environment, name, default)

        return cls(
            requests=int(number("OTEL_BSP_MAX_QUEUE_SIZE", cls.requests)),
            batch_spans=int(number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", cls.batch_spans)),
            delay_s=number("OTEL_BSP_SCHEDULE_DELAY", cls.delay_s * 1000) / 1000,
            flush_s=number("OTEL_BSP_EXPORT_TIMEOUT", cls.flush_s * 1000) / 1000,
        )


def _variables(signal: Signal, what: str) -> tuple[str, str]:
    """The variable for one signal, and the one for all, which it goes before."""
    return f"OTEL_EXPORTER_OTLP_{signal.upper()}_{what}", f"OTEL_EXPORTER_OTLP_{what}"


def exporter_name(environment: Mapping[str, str], signal: Signal = Signal.TRACES) -> str:
    """Which exporter OTEL_TRACES_EXPORTER and OTEL_EXPORTER_OTLP_PROTOCOL ask for.

    Args:
        signal: for METRICS it is OTEL_METRICS_EXPORTER.
    Raises:
        UsageError: more than one, or a protocol that OTLP does not have.
    """
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    name = environment.get(variable, "").strip() or "otlp"
    if "," in name:
        raise UsageError(
            f"{variable}={name} names several exporters: otelbpf sends to one; let an "
            "OpenTelemetry collector send on to others"
        )
    if name != "otlp":
        return name
    given = (environment.get(name, "").strip() for name in _variables(signal, "PROTOCOL"))
    protocol = next(filter(None, given), "grpc")
    if protocol not in _BY_PROTOCOL:
        raise UsageError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not supported: "
            f"it is one of {', '.join(_BY_PROTOCOL)}"
        )
    return _BY_PROTOCOL[protocol]


def is_otlp(name: str) -> bool:
    """Is this exporter one that sends OTLP over a network?"""
    return name in _BY_PROTOCOL.values()


def require_endpoint(
    environment: Mapping[str, str], name: str, signal: Signal = Signal.TRACES
) -> None:
    """Raises UsageError for an endpoint that the exporter would take for something else."""
    if not is_otlp(name):
        return
    for variable in _variables(signal, "ENDPOINT"):
        endpoint = environment.get(variable, "").strip()
        insecure = environment.get("OTEL_EXPORTER_OTLP_INSECURE", "").strip().lower() == "true"
        if not endpoint or endpoint.startswith(("http://", "https://")):
            continue
        if "://" not in endpoint and insecure and name == _BY_PROTOCOL["grpc"]:
            continue
        raise UsageError(
            f"{variable}={endpoint} does not say whether to use TLS: write "
            f"http://{endpoint.rpartition('://')[2]}, or https:// for TLS"
        )


def destination(
    environment: Mapping[str, str], name: str, signal: Signal = Signal.TRACES
) -> str:
    """Where the spans or the metrics go, for people."""
    if not is_otlp(name):
        return name
    protocol = next(key for key, value in _BY_PROTOCOL.items() if value == name)
    default = "http://localhost:4317" if protocol == "grpc" else "http://localhost:4318"
    given = map(environment.get, _variables(signal, "ENDPOINT"))
    return f"{next(filter(None, given), default)} ({protocol})"


def make_exporter(name: str, output: str | None = None) -> SpanExporter | None:
    """Makes the span exporter that an entry point calls `name`; None for "none".

    Args:
        output: the file that otlp_json_file appends to; None: standard output.
    Raises:
        UsageError: no such exporter, or it refuses its configuration.
    """
    if output is not None and name != "otlp_json_file":
        raise UsageError("--output goes with OTEL_TRACES_EXPORTER=otlp_json_file only")
    if name == "none":
        return None
    arguments = {} if output is None else {"path": output}
    exporter: SpanExporter = load_exporter(name, Signal.TRACES, ("otlp", "none"), arguments)
    return exporter


def load_exporter(
    name: str, signal: Signal, others: Sequence[str], arguments: Mapping[str, Any]
) -> Any:
    """Makes the exporter that an entry point calls `name`.

    Args:
        others: what else the signal's variable may say, for the error.
        arguments: of the exporter.
    Raises:
        UsageError: no such exporter, or it refuses its configuration.
    """
    found = {point.name: point for point in entry_points(group=f"opentelemetry_{signal}_exporter")}
    if name not in found:
        raise UsageError(
            f"OTEL_{signal.upper()}_EXPORTER={name} is not installed: there are "
            + ", ".join(dict.fromkeys((*others, *sorted(found))))
        )
    try:
        return found[name].load()(**arguments)
    except Exception as error:
        raise UsageError(
            f"exporter {name} cannot start ({error}): check the OTEL_EXPORTER_OTLP_* variables"
            + (" and --output" if "path" in arguments else "")
        ) from error


class Sender(Generic[Item]):
    """Sends requests in a thread of its own.

    Args:
        exporter: an official one; None drops everything, counted as exported to nowhere.
        to_spans: makes a request's spans.
        spans_each: how many spans a request becomes, about.
    """

    def __init__(
        self,
        exporter: SpanExporter | None,
        to_spans: Callable[[Item], list[ReadableSpan]],
        spans_each: int,
        ledger: Ledger,
        limits: QueueLimits,
    ) -> None:
        self._exporter = exporter
        self._to_spans = to_spans
        self._ledger = ledger
        self._limits = limits
        self._batch = max(1, limits.batch_spans // spans_each)
        self._queue: deque[Item] = deque()
        self._changed = threading.Condition()
        self._stop_at: float | None = None
        self._failing = False
        self._sending = 0
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="otelbpf-sender", daemon=True)

    def start(self) -> None:
        """Starts sending."""
        self._thread.start()

    def admit(self, count: int) -> int:
        """How many of `count` requests fit into the queue; the rest is counted as lost."""
        room = max(0, self._limits.requests - len(self._queue))
        if count > room:
            self._ledger.lose(Lost.QUEUE_FULL, count - room)
        return min(count, room)

    def put(self, requests: Sequence[Item]) -> None:
        """Queues requests; those that do not fit are counted as lost. Never waits."""
        requests = requests[: self.admit(len(requests))]
        with self._changed:
            self._queue.extend(requests)
            if len(self._queue) >= self._batch:
                self._changed.notify()

    def stop(self) -> None:
        """Sends what is queued, for as long as the limits allow, and ends the thread.

        What could not be sent by then is counted as lost. If it waits, it says so.
        """
        with self._changed:
            self._stop_at = time.monotonic() + self._limits.flush_s
            self._changed.notify()
        self._thread.join(min(UNSAID_S, self._limits.flush_s))
        rest_s = self._stop_at - time.monotonic()
        if self._thread.is_alive() and rest_s > 0:
            _log.warning(
                "stopping: %d requests wait for the collector, for %g s at most",
                len(self._queue) + self._sending, self._limits.flush_s,
            )  # fmt: skip
            self._thread.join(rest_s)
        if self._exporter is not None:
            # Wakes an export that waits to try again; one under way may not hear it.
            self._exporter.shutdown()
        self._thread.join(_LAST_EXPORT_S)
        with self._changed:
            # What a thread that still hangs does from here on counts no more.
            self._abandoned = True
            self._ledger.lose(Lost.EXPORT_FAILED, len(self._queue) + self._sending)

    def _run(self) -> None:
        while True:
            batch = self._next_batch()
            if batch is None:
                return
            if not batch:
                continue
            sent = self._send(batch)
            with self._changed:
                if self._abandoned:
                    return
                self._sending = 0
                if sent:
                    self._ledger.export(len(batch))
                else:
                    self._ledger.lose(Lost.EXPORT_FAILED, len(batch))

    def _next_batch(self) -> list[Item] | None:
        """The next requests to send; empty after a wait in vain, None when all is done."""
        with self._changed:
            if len(self._queue) < self._batch and self._stop_at is None:
                self._changed.wait(self._limits.delay_s)
            if not self._queue and self._stop_at is not None:
                return None
            self._sending = min(self._batch, len(self._queue))
            return [self._queue.popleft() for _ in range(self._sending)]

    def _send(self, batch: list[Item]) -> bool:
        if self._exporter is None:
            return True
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            return False
        try:
            spans = [span for request in batch for span in self._to_spans(request)]
        except Exception:
            _log.exception("%d requests cannot become spans", len(batch))
            return False
        give_up_at = time.monotonic() + self._limits.retry_s
        back_off = _BACK_OFF_FIRST_S
        while True:
            try:
                result = self._exporter.export(spans)
            except Exception:
                _log.exception("the exporter failed")
                result = SpanExportResult.FAILURE
            if result is SpanExportResult.SUCCESS:
                if self._failing:
                    _log.warning("the collector takes spans again")
                self._failing = False
                return True
            if not self._failing:
                self._failing = True
                _log.warning(
                    "the collector does not take spans; they wait in a queue of %d requests, and "
                    "what does not fit is counted as lost",
                    self._limits.requests,
                )
            if not self._may_retry(give_up_at, back_off):
                return False
            back_off = min(back_off * 2, _BACK_OFF_LONGEST_S)

    def _may_retry(self, give_up_at: float, back_off: float) -> bool:
        """Waits before the next try; False when there shall be none."""
        with self._changed:
            if self._stop_at is None:
                self._changed.wait_for(lambda: self._stop_at is not None, back_off)
            else:
                time.sleep(min(0.2, max(0.0, self._stop_at - time.monotonic())))
            deadline = give_up_at if self._stop_at is None else self._stop_at
            return time.monotonic() < deadline

