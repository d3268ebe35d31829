# SPDX-License-Identifier: Apache-2.0
"""Records in, spans out: the whole way behind the reader, with nothing left to chance."""

from __future__ import annotations

import hashlib
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from otelbpf.agent.config import Config
from otelbpf.agent.pipeline import Pipeline
from otelbpf.export.ways_out import by_export
from otelbpf.host.clock import ClockReading
from otelbpf.host.resource import Resources
from otelbpf.kernel.records import REQUEST_RECORD
from otelbpf.ledger.ids import Ids
from otelbpf.ledger.reader import decode
from otelbpf.policy.routes import Routes
from otelbpf.traces.description import Description

RECORDS = Path(__file__).resolve().parents[1] / "records"
RING = RECORDS / "requests.ring"
SPANS = RECORDS / "requests.spans.json"
ORIGIN = RECORDS / "requests.txt"
CLOCK = ClockReading(offset_ns=1_790_000_000_000_000_000, uncertainty_ns=50)


def layout() -> str:
    """Tells one version of struct request_record from another."""
    return hashlib.sha256(repr(REQUEST_RECORD.descr).encode()).hexdigest()[:16]


def replay(ring: bytes, config: Config) -> tuple[Pipeline, list[ReadableSpan]]:
    """The spans of the records in `ring`, in the order in which they were exported."""
    exporter = InMemorySpanExporter()
    description = Description(Routes(config.routes), config.capture, config.stages)
    pipeline = Pipeline(
        config,
        Ids(bytes(16)),
        Resources(config.service_name),
        by_export(exporter, description, "there"),
    )
    pipeline.clock = CLOCK
    pipeline.take(decode(ring))
    pipeline.sender.start()
    pipeline.sender.stop()
    return pipeline, list(exporter.get_finished_spans())


def by_request(spans: list[ReadableSpan]) -> list[tuple[ReadableSpan, list[ReadableSpan]]]:
    """Each request's span with its stages, in whatever order they were exported."""
    return [
        (span, [s for s in spans if s.parent and s.parent.span_id == span.context.span_id])
        for span in spans
        if span.kind is SpanKind.SERVER
    ]


def all_as_json(spans: list[ReadableSpan]) -> list[dict[str, object]]:
    """What all of them say, the stages of a request after it."""
    return [as_json(each) for span, stages in by_request(spans) for each in (span, *stages)]


def as_json(span: ReadableSpan) -> dict[str, object]:
    """All that a span says, but for its resource, which the machine has a part in."""
    return {
        "name": span.name,
        "kind": span.kind.name,
        "trace_id": f"{span.context.trace_id:032x}",
        "span_id": f"{span.context.span_id:016x}",
        "trace_flags": int(span.context.trace_flags),
        "parent_span_id": f"{span.parent.span_id:016x}" if span.parent else None,
        "parent_is_remote": span.parent.is_remote if span.parent else None,
        "start_unix_ns": span.start_time,
        "end_unix_ns": span.end_time,
        "status": span.status.status_code.name,
        "description": span.status.description,
        "attributes": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in sorted((span.attributes or {}).items())
        },
        "events": len(span.events),
        "links": len(span.links),
    }
