# SPDX-License-Identifier: Apache-2.0
"""Collectors that the demo's receiver is not: at a port given, and curious about headers."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from demo import otlp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

HOST = "127.0.0.1"


@dataclass
class Received:
    """What a collector got: spans, and the headers of each export."""

    port: int = 0
    spans: list[otlp.Span] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def take(self, export: ExportTraceServiceRequest, headers: dict[str, str]) -> None:
        self.headers.append(headers)
        self.spans.extend(otlp.spans([export]))


@contextlib.contextmanager
def grpc_collector(port: int = 0) -> Iterator[Received]:
    """A gRPC collector at `port`, from now to the end of the block."""
    received = Received()

    def export(
        message: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        received.take(message, dict(context.invocation_metadata()))
        return ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=ExportTraceServiceRequest.FromString,
        response_serializer=ExportTraceServiceResponse.SerializeToString,
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
    )
    received.port = server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    try:
        yield received
    finally:
        server.stop(grace=None).wait()


@contextlib.contextmanager
def http_collector() -> Iterator[Received]:
    """A collector for http/protobuf, uncompressed."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            received.take(ExportTraceServiceRequest.FromString(body), headers)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        server.daemon_threads = True
        received.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield received
        finally:
            server.shutdown()


@contextlib.contextmanager
def silent_collector() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server((HOST, 0)) as listener:
        yield listener.getsockname()[1]


def spans_of_json_lines(text: str) -> list[otlp.Span]:
    """The spans in OTLP's JSON, one export a line.

    Source:
        https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding: ids are hex, 64-bit
        integers are strings.
    """
    spans = []
    for line in text.splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                spans += [
                    otlp.Span(
                        trace_id=span["traceId"],
                        span_id=span["spanId"],
                        parent_span_id=span.get("parentSpanId", ""),
                        name=span["name"],
                        kind=otlp.Kind(span["kind"]),
                        start_unix_ns=int(span["startTimeUnixNano"]),
                        end_unix_ns=int(span["endTimeUnixNano"]),
                        attributes=_attributes(span.get("attributes", [])),
                        scope=scope["scope"]["name"],
                        resource=_attributes(resource["resource"]["attributes"]),
                    )
                    for span in scope["spans"]
                ]
    return spans


def _attributes(pairs: list[dict[str, Any]]) -> dict[str, otlp.Value]:
    return {pair["key"]: _value(pair["value"]) for pair in pairs}


def _value(value: dict[str, Any]) -> otlp.Value:
    ((kind, held),) = value.items()
    if kind == "intValue":
        return int(held)
    if kind == "arrayValue":
        return [_value(each) for each in held.get("values", [])]
    return held
