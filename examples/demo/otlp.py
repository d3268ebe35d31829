# SPDX-License-Identifier: Apache-2.0
"""Reading OTLP: from protobuf messages to plain spans."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

Value = str | bool | int | float | bytes | list["Value"] | dict[str, "Value"] | None


class Kind(Enum):
    """A span's kind, with OTLP's numbers."""

    UNSPECIFIED = 0
    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


@dataclass(frozen=True)
class Span:
    """One span as it was received.

    Ids are lower-case hex; ``parent_span_id`` is empty for the root of a trace. ``links`` are trace
    and span ids.
    """

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    kind: Kind
    start_unix_ns: int
    end_unix_ns: int
    attributes: Mapping[str, Value]
    scope: str
    resource: Mapping[str, Value]
    links: tuple[tuple[str, str], ...] = ()


def spans(exports: Iterable[ExportTraceServiceRequest]) -> Iterator[Span]:
    """Every span of these exports, in the order in which they were sent.

    Source:
        opentelemetry/proto/trace/v1/trace.proto.
    """
    for export in exports:
        for resource_spans in export.resource_spans:
            resource = attributes(resource_spans.resource.attributes)
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    yield _span(span, scope_spans.scope.name, resource)


def attributes(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    """OTLP's key-value pairs as a dictionary."""
    return {pair.key: value(pair.value) for pair in pairs}


def value(any_value: AnyValue) -> Value:
    """OTLP's AnyValue as the Python value that it holds; None if it holds none."""
    which = any_value.WhichOneof("value")
    if which is None:
        return None
    if which == "array_value":
        return [value(item) for item in any_value.array_value.values]
    if which == "kvlist_value":
        return attributes(any_value.kvlist_value.values)
    held: Value = getattr(any_value, which)
    return held


def _span(span: trace_pb2.Span, scope: str, resource: Mapping[str, Value]) -> Span:
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex(),
        name=span.name,
        kind=Kind(span.kind),
        start_unix_ns=span.start_time_unix_nano,
        end_unix_ns=span.end_time_unix_nano,
        attributes=attributes(span.attributes),
        scope=scope,
        resource=resource,
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
    )
