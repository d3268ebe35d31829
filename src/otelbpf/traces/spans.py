# SPDX-License-Identifier: Apache-2.0
"""requests -> the SDK's spans, of the same description, for exporters that take those.

For the console, files and any other exporter of OpenTelemetry's: one object for each span.
"""

from __future__ import annotations

import numpy as np
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from otelbpf.ledger.batch import STAGE_NAMES, Batch, Requests, batches_of
from otelbpf.traces.description import SCOPE, Attributes, Description, StageStyle, columns_of

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET = Status(StatusCode.UNSET)


def readable_spans(description: Description, requests: Requests) -> list[ReadableSpan]:
    """The requests' spans and, for StageStyle.SPANS, those of their stages."""
    spans = []
    for batch in batches_of(requests):
        own = _own_spans(description, batch)
        spans += own
        if description.stages is StageStyle.SPANS:
            spans += _stage_spans(batch, own)
    return spans


def _own_spans(description: Description, batch: Batch) -> list[ReadableSpan]:
    sections = [
        (section, list(zip(*(batch.values(name) for name in columns_of(section)), strict=True)))
        for section in description.sections[batch.kind]
    ]
    numbers = [
        (
            number.key,
            number.of(batch).tolist(),
            [True] * len(batch) if number.where is None else number.where(batch).tolist(),
        )
        for number in description.numbers_of(batch)
    ]
    contexts = batch.contexts
    high, low = contexts.trace_id_high.tolist(), contexts.trace_id_low.tolist()
    own, parents = contexts.span_id.tolist(), contexts.parent_span_id.tolist()
    caused, flags = contexts.caused.tolist(), contexts.flags.tolist()
    linked, linked_flags = contexts.linked_span_id.tolist(), batch.values("linked_flags")
    starts, ends = (
        batch.unix_ns(each).tolist() for each in (batch.start_ktime_ns, batch.end_ktime_ns)
    )
    spans = []
    for i, resource in enumerate(batch.resources):
        attributes: Attributes = {}
        name, kind, failed = "", SpanKind.INTERNAL, False
        for section, values in sections:
            said = section(*values[i])
            attributes |= said.attributes
            name = said.name if said.name is not None else name
            kind = said.kind if said.kind is not None else kind
            failed = said.failed if said.failed is not None else failed
        attributes |= {key: values[i] for key, values, has in numbers if has[i]}
        trace_id = high[i] << 64 | low[i]
        parent = links = None
        if parents[i]:
            parent = SpanContext(trace_id, parents[i], not caused[i], TraceFlags(flags[i]))
        if linked[i]:
            link = SpanContext(trace_id, linked[i], True, TraceFlags(linked_flags[i]))
            links = (Link(link),)
        spans.append(
            ReadableSpan(
                name=name,
                context=SpanContext(trace_id, own[i], is_remote=False, trace_flags=_SAMPLED),
                parent=parent,
                resource=resource,
                attributes=attributes,
                links=links or (),
                kind=kind,
                status=Status(StatusCode.ERROR) if failed else _UNSET,
                start_time=starts[i],
                end_time=ends[i],
                instrumentation_scope=SCOPE,
            )
        )
    return spans


def _stage_spans(batch: Batch, own: list[ReadableSpan]) -> list[ReadableSpan]:
    stages = batch.stages
    # As they came, for those who look at them.
    order = np.lexsort((stages.end_ktime_ns, stages.start_ktime_ns, stages.row))
    columns = (
        stages.row,
        stages.number,
        batch.stage_span_ids(),
        batch.unix_ns(stages.start_ktime_ns),
        batch.unix_ns(stages.end_ktime_ns),
    )
    spans = []
    for row, number, span_id, start, end in zip(
        *(column[order].tolist() for column in columns), strict=True
    ):
        request = own[row]
        context = request.get_span_context()
        assert context is not None
        spans.append(
            ReadableSpan(
                name=STAGE_NAMES[number],
                context=SpanContext(
                    context.trace_id, span_id, is_remote=False, trace_flags=_SAMPLED
                ),
                parent=context,
                resource=request.resource,
                attributes={},
                kind=SpanKind.INTERNAL,
                status=_UNSET,
                start_time=start,
                end_time=end,
                instrumentation_scope=SCOPE,
            )
        )
    return spans
