# SPDX-License-Identifier: Apache-2.0
"""A thread for each connection; each request has a span of its own, whose ids are the answer."""

from __future__ import annotations

import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

TRACER = TracerProvider().get_tracer("application")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with TRACER.start_as_current_span(self.path, kind=SpanKind.SERVER) as span:
            context = span.get_span_context()
            with TRACER.start_as_current_span("part of it"):
                pass
            body = f"{context.trace_id:032x} {context.span_id:016x}".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6  # and IPv4, mapped
    daemon_threads = True


Server(("::", int(sys.argv[1])), Handler).serve_forever()
