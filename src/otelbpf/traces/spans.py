# SPDX-License-Identifier: Apache-2.0
"""request -> span: OpenTelemetry's HTTP server or client span, and the stages below it.

Source:
    OpenTelemetry semantic conventions for HTTP spans. What is ours starts with
    `otelbpf.`.
"""

from __future__ import annotations

import random
from enum import StrEnum

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from otelbpf.host.clock import ClockReading
from otelbpf.kernel.records import RequestFlag
from otelbpf.ledger.request import Kind, Request
from otelbpf.version import __version__

SCOPE = InstrumentationScope("otelbpf", __version__)
#: That the conventions know.
METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY")
)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET = Status(StatusCode.UNSET)
_SPAN_KINDS = {Kind.SERVER: SpanKind.SERVER, Kind.CLIENT: SpanKind.CLIENT}
#: What a server answers with 4xx was the client's error.
LEAST_ERROR = {Kind.SERVER: 500, Kind.CLIENT: 400}

Attributes = dict[str, str | int | bool | tuple[str, ...]]


class StageStyle(StrEnum):
    """How the stages of a request are told."""

    SPANS = "spans"
    ATTRIBUTES = "attributes"


def attributes_of(request: Request, clock: ClockReading, style: StageStyle) -> Attributes:
    """The attributes of the request's own span."""
    known = request.method in METHODS
    attributes: Attributes = {
        "http.request.method": request.method if known else "_OTHER",
        "url.scheme": request.scheme,
        "network.protocol.name": "http",
        "network.protocol.version": request.http_version,
        "network.peer.address": request.peer_address,
        "network.peer.port": request.peer_port,
        "network.local.address": request.local_address,
        "network.local.port": request.local_port,
        "server.address": request.server.address,
        "server.port": request.server.port,
        "http.request.size": request.request_bytes,
        "http.response.size": request.response_bytes,
        "otelbpf.ledger.complete": request.complete,
        "otelbpf.ledger.absent": request.absent,
        "otelbpf.clock.uncertainty_ns": clock.uncertainty_ns,
        "otelbpf.connection.request": request.ordinal,
    }
    attributes |= _of_server(request) if request.kind is Kind.SERVER else _of_client(request)
    # Of a body that was cut short only its announced size is known, so none is given.
    if request.flags & RequestFlag.REQUEST_RECEIVED:
        attributes["http.request.body.size"] = request.request_body_bytes
    if request.flags & RequestFlag.REQUEST_ANSWERED:
        attributes["http.response.body.size"] = request.response_body_bytes
    if not known:
        attributes["http.request.method_original"] = request.method
    if request.path_cut:
        attributes["otelbpf.url.path.cut"] = True
    if request.user_agent:
        attributes["user_agent.original"] = request.user_agent
    if request.status:
        attributes["http.response.status_code"] = request.status
    if request.tid:
        attributes["thread.id"] = request.tid
    error = error_type(request.status, request.ended_by, request.kind)
    if error:
        attributes["error.type"] = error
    if request.flags & RequestFlag.IDLE_TIMEOUT:
        attributes["otelbpf.ended_by"] = "idle_timeout"
    if request.request_retransmits or request.response_retransmits:
        attributes["otelbpf.tcp.retransmits"] = (
            request.request_retransmits + request.response_retransmits
        )
    if request.acked_ns:
        attributes["otelbpf.tcp.ack.duration_ns"] = request.acked_ns
    if request.out_of_order:
        attributes["otelbpf.tcp.out_of_order"] = request.out_of_order
    if request.elsewhere_trace_id:
        attributes["otelbpf.thread_context.trace_id"] = f"{request.elsewhere_trace_id:032x}"
    if style is StageStyle.ATTRIBUTES:
        for stage in request.stages:
            attributes[f"otelbpf.stage.{stage.name}"] = stage.end_ktime_ns - stage.start_ktime_ns
    return attributes


def _of_server(request: Request) -> Attributes:
    """What a server span says of the client and of the URL."""
    attributes: Attributes = {
        "url.path": request.path,
        "client.address": request.peer_address,
        "client.port": request.peer_port,
    }
    if request.query:
        attributes["url.query"] = request.query
    if request.route:
        attributes["http.route"] = request.route
    return attributes


def _of_client(request: Request) -> Attributes:
    """What a client span says of the URL."""
    query = f"?{request.query}" if request.query else ""
    # `*`, or the host that CONNECT asks for, is no path.
    path = request.path if request.path.startswith("/") else ""
    attributes: Attributes = {
        "url.full": f"{request.scheme}://{request.server.authority}{path}{query}",
    }
    if request.route:
        attributes["url.template"] = request.route
    return attributes


def error_type(status: int, ended_by: str, kind: Kind) -> str:
    """The conventions' error.type: how a request was cut short, or its status; empty: no error."""
    return ended_by or (str(status) if status >= LEAST_ERROR[kind] else "")


def _links_of(request: Request) -> tuple[Link, ...]:
    """To the application's own span of the request, where it has told which that is."""
    if not request.linked_span_id:
        return ()
    flags = TraceFlags(request.linked_flags)
    return (Link(SpanContext(request.trace_id, request.linked_span_id, True, flags)),)


def _span_id() -> int:
    return random.getrandbits(64) or 1


def spans_of(
    request: Request, clock: ClockReading, resource: Resource, style: StageStyle
) -> list[ReadableSpan]:
    """The request's span and, for StageStyle.SPANS, one below it for each stage.

    Times are Unix ns, all converted with the one `clock`, so that the stages tile
    the request's span exactly.
    """
    context = SpanContext(request.trace_id, request.span_id, is_remote=False, trace_flags=_SAMPLED)
    parent = None
    if request.parent_span_id:
        parent = SpanContext(
            request.trace_id,
            request.parent_span_id,
            is_remote=not request.parent_is_local,
            trace_flags=TraceFlags(request.trace_flags),
        )
    failed = error_type(request.status, request.ended_by, request.kind)
    method = request.method if request.method in METHODS else "HTTP"
    spans = [
        ReadableSpan(
            name=f"{method} {request.route}" if request.route else method,
            context=context,
            parent=parent,
            resource=resource,
            attributes=attributes_of(request, clock, style),
            links=_links_of(request),
            kind=_SPAN_KINDS[request.kind],
            status=Status(StatusCode.ERROR) if failed else _UNSET,
            start_time=clock.unix_ns(request.start_ktime_ns),
            end_time=clock.unix_ns(request.end_ktime_ns),
            instrumentation_scope=SCOPE,
        )
    ]
    if style is StageStyle.SPANS:
        spans += [
            ReadableSpan(
                name=stage.name,
                context=SpanContext(
                    request.trace_id, _span_id(), is_remote=False, trace_flags=_SAMPLED
                ),
                parent=context,
                resource=resource,
                attributes={},
                kind=SpanKind.INTERNAL,
                status=_UNSET,
                start_time=clock.unix_ns(stage.start_ktime_ns),
                end_time=clock.unix_ns(stage.end_ktime_ns),
                instrumentation_scope=SCOPE,
            )
            for stage in request.stages
        ]
    return spans
