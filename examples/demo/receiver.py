# SPDX-License-Identifier: Apache-2.0
"""An OTLP receiver that keeps what it gets in memory.

It takes traces and metrics over gRPC and over HTTP (binary protobuf), each on a free port of
127.0.0.1. It is no collector: it is what lets the demo and the tests ask exactly what arrived,
and what the sender does when the receiver is slow or refuses.
"""

import gzip
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from demo import otlp

HOST = "127.0.0.1"
# A sender that says it has more than this to send in one export is refused, as collectors do.
MAX_EXPORT_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Behaviour:
    """How the receiver treats exports.

    Attributes:
        delay_s: wait this long before answering.
        refuse: keep nothing, and answer with an error.
        retryable: whether that error asks the sender to try again (gRPC UNAVAILABLE, HTTP 503)
            or not (INVALID_ARGUMENT, 400).
    """

    delay_s: float = 0.0
    refuse: bool = False
    retryable: bool = True


class Refused(Exception):
    """This export is not kept; the sender hears of it."""

    def __init__(self, retryable: bool) -> None:
        super().__init__("refused, as the receiver was told to")
        self.retryable = retryable


class Receiver:
    """Receives OTLP from ``with`` to the end of its block.

    All methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._behaviour = Behaviour()
        self._closing = threading.Event()
        self._traces: list[ExportTraceServiceRequest] = []
        self._metrics: list[ExportMetricsServiceRequest] = []
        self._spans: list[otlp.Span] = []
        self._arrived = 0
        self._refused = 0
        self._grpc, self.grpc_port = _grpc_server(self)
        self._http = _HttpServer(self)
        self.http_port: int = self._http.server_address[1]
        # The poll is how long closing takes, requests do not wait for it.
        self._http_thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def grpc_endpoint(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT with the protocol grpc."""
        return f"http://{HOST}:{self.grpc_port}"

    @property
    def http_endpoint(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT with the protocol http/protobuf."""
        return f"http://{HOST}:{self.http_port}"

    def __enter__(self) -> "Receiver":
        self._grpc.start()
        self._http_thread.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._grpc.stop(grace=None).wait()

    def spans(self) -> list[otlp.Span]:
        """Every span that was kept, in order of arrival."""
        with self._changed:
            return list(self._spans)

    def exports(self) -> list[ExportTraceServiceRequest]:
        """Every trace export that was kept, as it came."""
        with self._changed:
            return list(self._traces)

    def metrics(self) -> list[ExportMetricsServiceRequest]:
        """Every metric export that was kept, as it came."""
        with self._changed:
            return list(self._metrics)

    @property
    def arrived(self) -> int:
        """How many exports came: kept, refused, or still delayed."""
        with self._changed:
            return self._arrived

    @property
    def refused(self) -> int:
        """How many exports were refused."""
        with self._changed:
            return self._refused

    def behave(self, behaviour: Behaviour) -> None:
        """Treat exports that come from now on like this; ``Behaviour()`` is back to normal."""
        with self._changed:
            self._behaviour = behaviour

    def wait_until(self, condition: Callable[["Receiver"], bool], timeout_s: float) -> bool:
        """Wait until ``condition(receiver)`` holds; it is asked anew after each export.

        Returns:
            Whether it held before the time was up.
        """
        with self._changed:
            return self._changed.wait_for(lambda: condition(self), timeout_s)

    def wait_for(
        self, count: int, timeout_s: float, which: Callable[[otlp.Span], bool] = lambda _span: True
    ) -> bool:
        """Wait until there are ``count`` spans of that kind (by default, of any).

        Returns:
            Whether there were before the time was up.
        """
        looked_at = found = 0

        def enough(receiver: Receiver) -> bool:
            nonlocal looked_at, found
            found += sum(map(which, itertools.islice(receiver._spans, looked_at, None)))
            looked_at = len(receiver._spans)
            return found >= count

        return self.wait_until(enough, timeout_s)

    def _take(self, message: Message) -> None:
        """Keep an export, or raise Refused."""
        with self._changed:
            behaviour = self._behaviour
            self._arrived += 1
            self._changed.notify_all()
        # The event only ends a delay early when the receiver closes.
        self._closing.wait(behaviour.delay_s)
        with self._changed:
            if behaviour.refuse:
                self._refused += 1
            elif isinstance(message, ExportTraceServiceRequest):
                self._traces.append(message)
                self._spans.extend(otlp.spans([message]))
            elif isinstance(message, ExportMetricsServiceRequest):
                self._metrics.append(message)
            self._changed.notify_all()
        if behaviour.refuse:
            raise Refused(behaviour.retryable)


@dataclass(frozen=True)
class _Signal:
    grpc_service: str
    http_path: str
    request: type[Message]
    response: type[Message]


_SIGNALS = (
    _Signal(
        "opentelemetry.proto.collector.trace.v1.TraceService",
        "/v1/traces",
        ExportTraceServiceRequest,
        ExportTraceServiceResponse,
    ),
    _Signal(
        "opentelemetry.proto.collector.metrics.v1.MetricsService",
        "/v1/metrics",
        ExportMetricsServiceRequest,
        ExportMetricsServiceResponse,
    ),
)


def _grpc_server(receiver: Receiver) -> tuple[grpc.Server, int]:
    server = grpc.server(
        ThreadPoolExecutor(max_workers=4, thread_name_prefix="otlp-grpc"),
        # With SO_REUSEPORT, gRPC's default, two receivers could share a port and its spans.
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_EXPORT_BYTES)],
    )

    def handler(signal: _Signal) -> grpc.GenericRpcHandler:
        def export(message: Message, context: grpc.ServicerContext) -> Message:
            try:
                receiver._take(message)
            except Refused as refusal:
                status = (
                    grpc.StatusCode.UNAVAILABLE
                    if refusal.retryable
                    else grpc.StatusCode.INVALID_ARGUMENT
                )
                context.abort(status, str(refusal))
            return signal.response()

        method = grpc.unary_unary_rpc_method_handler(
            export,
            request_deserializer=signal.request.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        return grpc.method_handlers_generic_handler(signal.grpc_service, {"Export": method})

    server.add_generic_rpc_handlers(tuple(handler(signal) for signal in _SIGNALS))
    return server, server.add_insecure_port(f"{HOST}:0")


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        super().__init__((HOST, 0), _HttpHandler)


class _HttpHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _HttpServer

    def do_POST(self) -> None:
        signal = next((signal for signal in _SIGNALS if signal.http_path == self.path), None)
        if signal is None:
            return self._answer(404, b"")
        if self.headers.get("Content-Type") != "application/x-protobuf":
            return self._answer(415, b"")
        try:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            self.server.receiver._take(signal.request.FromString(body))
        except (TypeError, ValueError, OSError, DecodeError):
            return self._answer(400, b"")
        except Refused as refusal:
            return self._answer(503 if refusal.retryable else 400, b"")
        self._answer(200, signal.response().SerializeToString())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(body)))
        if status >= 400:
            # The body may be unread: what follows on this connection would not be a request.
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing: the console belongs to whoever started the receiver."""
