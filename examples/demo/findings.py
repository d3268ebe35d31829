# SPDX-License-Identifier: Apache-2.0
"""All that a run of the demo found."""

from dataclasses import dataclass

from demo.check import Sums
from demo.ledgers import Figures, Request, Route, Stage, routes
from demo.load import Summary


@dataclass(frozen=True)
class Export:
    """Where the OTLP went and what arrived there."""

    endpoint: str
    protocol: str
    exports: int
    spans: int
    service: str


@dataclass(frozen=True)
class Findings:
    """All that a report says.

    Attributes:
        load: None if the spans come from somewhere else.
        problems: what is missing; none means that every request is accounted for.
    """

    requests: tuple[Request, ...]
    sums: Sums
    export: Export
    load: Summary | None = None
    problems: tuple[str, ...] = ()


def as_json(findings: Findings) -> dict[str, object]:
    """As JSON's types; all times in ns."""
    return {
        "problems": list(findings.problems),
        "load": findings.load.as_json() if findings.load is not None else None,
        "sums": findings.sums.as_json(),
        "otlp": {
            "endpoint": findings.export.endpoint,
            "protocol": findings.export.protocol,
            "exports": findings.export.exports,
            "spans": findings.export.spans,
            "service": findings.export.service,
        },
        "routes": [_route(route) for route in routes(findings.requests)],
        "requests": [_request(request) for request in findings.requests],
    }


def _route(route: Route) -> dict[str, object]:
    return {
        "method": route.method,
        "path": route.path,
        "statuses": {str(status): count for status, count in route.statuses.items()},
        "total": _figures(route.total),
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
        "complete": request.complete,
        "absent": list(request.absent),
        "stages": [_stage(stage) for stage in request.stages],
    }


def _stage(stage: Stage) -> dict[str, object]:
    return {"name": stage.name, "offset_ns": stage.offset_ns, "duration_ns": stage.duration_ns}
