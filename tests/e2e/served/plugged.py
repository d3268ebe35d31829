# SPDX-License-Identifier: Apache-2.0
"""What the applications with the plugin have in common. Each answers `/work/ID` with ID."""

from __future__ import annotations

import random
import socket
import sys

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otelbpf_plugin import OtelbpfInstrumentor

PORT = int(sys.argv[1])
LONGEST_S = 0.02


def instrument() -> None:
    """As an application does it by hand. Where its spans go is in OTEL_*."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(insecure=True)))
    trace.set_tracer_provider(provider)
    OtelbpfInstrumentor().instrument()


def handle(number: str) -> float:
    """Says in the server's span which request it is.

    Returns:
        How long to work on it, in seconds.
    """
    trace.get_current_span().set_attribute("test.number", number)
    return random.uniform(0, LONGEST_S)


def listener() -> socket.socket:
    """For IPv4 and IPv6."""
    return socket.create_server(
        ("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128
    )


def serve(application: object) -> None:
    """Serves an ASGI application, behind a proxy that it believes."""
    import uvicorn

    config = uvicorn.Config(application, log_level="warning", forwarded_allow_ips="*")
    uvicorn.Server(config).run([listener()])
