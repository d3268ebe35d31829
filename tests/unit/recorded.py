# SPDX-License-Identifier: Apache-2.0
"""Spans as a file of OTLP's JSON holds them, to be changed by a test."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: Of the first request's first stamp.
BEGIN_UNIX_NS = 1_790_000_000_123_456_789
TRACE = "4bf92f3577b34da6a3ce929d0e0e{:04x}"
SERVER, CLIENT, INTERNAL = 2, 3, 1
#: A request's stages by default; together 100 us.
STAGES = {
    "nic_to_tc": 1_000, "tc_to_tcp": 2_000, "tcp_to_queued": 3_000, "queued_to_read": 4_000,
    "read_to_write": 80_000, "write_to_tc_out": 3_000, "tc_out_to_tc_out_last": 7_000,
}  # fmt: skip

_stage_ids = itertools.count(0x5000_0000_0000_0000)


def span(
    name: str,
    span_id: int,
    start_unix_ns: int,
    duration_ns: int,
    *,
    trace: int = 1,
    parent: int = 0,
    kind: int = INTERNAL,
    attributes: Mapping[str, object] | None = None,
    failed: bool = False,
) -> dict[str, Any]:
    """One span in OTLP's JSON."""
    made: dict[str, Any] = {
        "traceId": TRACE.format(trace), "spanId": f"{span_id:016x}",
        "parentSpanId": f"{parent:016x}" if parent else "", "name": name, "kind": kind,
        "startTimeUnixNano": str(start_unix_ns),
        "endTimeUnixNano": str(start_unix_ns + duration_ns),
        "attributes": pairs(attributes or {}), "status": {"code": 2} if failed else {},
    }  # fmt: skip
    return made


def request(
    number: int = 1,
    *,
    stages: Mapping[str, int] | None = None,
    path: str = "/items/7",
    after_ns: int = 0,
    parent: int = 0,
    trace: int | None = None,
    kind: int = SERVER,
    as_attributes: bool = False,
    status: int = 200,
    error: str = "",
    host: str = "up:9000",
    absent: Sequence[str] = (),
    acked_ns: int = 0,
    **attributes: object,
) -> list[dict[str, Any]]:
    """A request's span, whose id is its number, and its stages.

    Args:
        after_ns: its first stamp, after BEGIN_UNIX_NS.
        acked_ns: from its end until its client acknowledged it; 0: that is not told.
    """
    stages = STAGES if stages is None else stages
    trace = number if trace is None else trace
    at = BEGIN_UNIX_NS + after_ns
    told: dict[str, object] = {
        "http.request.method": "GET", "http.response.status_code": status,
        "otelbpf.ledger.absent": list(absent), "otelbpf.ledger.complete": not absent,
        **({"url.path": path, "network.local.port": 8080} if kind == SERVER
           else {"url.full": f"http://{host}{path}"}),
        **({"error.type": error} if error else {}),
        **({"otelbpf.tcp.ack.duration_ns": acked_ns} if acked_ns else {}), **attributes,
    }  # fmt: skip
    if as_attributes:
        told |= {f"otelbpf.stage.{name}": ns for name, ns in stages.items()}
    made = [
        span(
            "GET",
            number,
            at,
            sum(stages.values()),
            trace=trace,
            parent=parent,
            kind=kind,
            attributes=told,
            failed=bool(error),
        )
    ]
    if not as_attributes:
        for name, ns in stages.items():
            made.append(span(name, next(_stage_ids), at, ns, trace=trace, parent=number))
            at += ns
    return made


def export(
    *spans: Sequence[dict[str, Any]], scope: str = "otelbpf", service: str = "shop"
) -> dict[str, Any]:
    """One export with all these spans."""
    return {"resourceSpans": [{
        "resource": {"attributes": pairs({"service.name": service})},
        "scopeSpans": [{"scope": {"name": scope}, "spans": list(itertools.chain(*spans))}],
    }]}  # fmt: skip


def write(path: Path, *exports: dict[str, Any]) -> Path:
    """A file of these exports, one a line."""
    path.write_text("".join(json.dumps(each) + "\n" for each in exports))
    return path


def pairs(attributes: Mapping[str, object]) -> list[dict[str, Any]]:
    """A dictionary as OTLP's key-value pairs."""
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: object) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case list():
            return {"arrayValue": {"values": [_value(each) for each in value]}}
    return {"stringValue": value}
