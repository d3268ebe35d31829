# SPDX-License-Identifier: Apache-2.0
"""All that a run of the demo found."""

from dataclasses import dataclass

from demo.check import Sums
from demo.ledgers import Decoded, Figures, Request, Route, Stage, routes
from demo.load import Summary
from demo.traces import Node, Trace, example


@dataclass(frozen=True)
class Export:
    """Where the OTLP went and what arrived there.

    Attributes:
        spans: of the kernel, stages among them, and of the application together.
        application: those of the application.
    """

    endpoint: str
    protocol: str
    exports: int
    spans: int
    application: int
    service: str


@dataclass(frozen=True)
class Findings:
    """All that a report says.

    Attributes:
        traces: those of the gateway's requests, and any that should not be there.
        load: None if the spans come from somewhere else.
        problems: what is missing; none means that every request is accounted for.
    """

    decoded: Decoded
    traces: tuple[Trace, ...]
    sums: Sums
    export: Export
    load: Summary | None = None
    problems: tuple[str, ...] = ()


def as_json(findings: Findings) -> dict[str, object]:
    """As JSON's types; all times in ns."""
    shown = example(findings.traces)
    return {
        "problems": list(findings.problems),
        "load": findings.load.as_json() if findings.load is not None else None,
        "sums": findings.sums.as_json(),
        "otlp": {
            "endpoint": findings.export.endpoint,
            "protocol": findings.export.protocol,
            "exports": findings.export.exports,
            "spans": findings.export.spans,
            "application_spans": findings.export.application,
            "service": findings.export.service,
        },
        "routes": [_route(route) for route in routes(findings.decoded.at_gateway)],
        "requests": [_request(request) for request in findings.decoded.at_gateway],
        "traces": [_trace(trace) for trace in findings.traces],
        "example_trace_id": shown.trace_id if shown is not None else None,
    }


def _route(route: Route) -> dict[str, object]:
    return {
        "method": route.method,
        "path": route.path,
        "statuses": {str(status): count for status, count in route.statuses.items()},
        "total": _figures(route.total),
        "acked": _figures(route.acked) if route.acked is not None else None,
        "stages": [
            {"name": stage.name, "offset_ns": stage.offset_ns, **_figures(stage.figures)}
            for stage in route.stages
        ],
    }


def _figures(figures: Figures) -> dict[str, object]:
    return {"count": figures.count, "median_ns": figures.median_ns, "p99_ns": figures.p99_ns}


def _request(request: Request) -> dict[str, object]:
    return {
        "method": request.method,
        "path": request.path,
        "status": request.status,
        "trace_id": request.trace_id,
        "span_id": request.span_id,
        "parent_span_id": request.parent_span_id,
        "start_unix_ns": request.start_unix_ns,
        "total_ns": request.total_ns,
        "acked_ns": request.acked_ns or None,
        "complete": request.complete,
        "absent": list(request.absent),
        "stages": [_stage(stage) for stage in request.stages],
    }


def _stage(stage: Stage) -> dict[str, object]:
    return {"name": stage.name, "offset_ns": stage.offset_ns, "duration_ns": stage.duration_ns}


def _trace(trace: Trace) -> dict[str, object]:
    return {
        "trace_id": trace.trace_id,
        "total_ns": trace.total_ns,
        "spans": [_node(root) for root in trace.roots],
    }


def _node(node: Node) -> dict[str, object]:
    span = node.span
    return {
        "part": node.part.name.lower() if node.part is not None else None,
        "service": node.service,
        "name": span.name,
        "kind": span.kind.name,
        "span_id": span.span_id,
        "parent_span_id": span.parent_span_id,
        "start_unix_ns": span.start_unix_ns,
        "total_ns": span.end_unix_ns - span.start_unix_ns,
        "stages": [_stage(stage) for stage in node.stages],
        "children": [_node(child) for child in node.children],
    }
