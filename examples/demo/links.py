# SPDX-License-Identifier: Apache-2.0
"""Whether a request's spans are one trace, and each is the child of the right one."""

from collections.abc import Collection, Iterator

from demo.plan import reaches_a_model
from demo.traces import Node, Part, Trace

# Each part of the way, and the one whose child it is. The client span may be further below: what
# an application tells of its own work may lie between.
_PARENTS = {
    Part.SERVER: Part.GATEWAY,
    Part.CLIENT: Part.SERVER,
    Part.CALL: Part.CLIENT,
    Part.MODEL: Part.CLIENT,
}


def broken_links(trace: Trace, callers: Collection[tuple[str, str]]) -> Iterator[str]:
    """All that is wrong with a trace, each to be read after "in this trace".

    Args:
        callers: (trace id, span id) of those who sent a traceparent.
    """
    asked = trace.of(Part.GATEWAY)
    if not asked:
        yield f"{Part.GATEWAY.value} is missing"
        return
    wanted = _wanted(asked[0])
    for part in Part:
        count = len(trace.of(part))
        if count != (part in wanted):
            yield f"{part.value} is {'missing' if not count else 'one too many'}"
    for node in asked:
        caller = node.span.parent_span_id
        if caller and (trace.trace_id, caller) not in callers:
            yield f"{Part.GATEWAY.value} is the child of a span that is no caller's"
    for part, parent in _PARENTS.items():
        above = {node.span.span_id for node in trace.of(parent)}
        # Where that one is missing, this was said.
        if above and any(_parent(trace, node) not in above for node in trace.of(part)):
            yield f"{part.value} is not the child of {parent.value}"


def _parent(trace: Trace, node: Node) -> str:
    """The id of a span's parent; of the client span, past what the application put between."""
    parent = node.span.parent_span_id
    if node.part is not Part.CLIENT:
        return parent
    between = {each.span.span_id: each.span for each in trace.all() if each.part is None}
    while parent in between:
        parent = between[parent].parent_span_id
    return parent


def _wanted(asked: Node) -> tuple[Part, ...]:
    """What the trace of a request has: all parts if it reached a model."""
    request = asked.request
    assert request is not None
    if reaches_a_model(request.method, request.path, request.status):
        return tuple(Part)
    return (Part.GATEWAY, Part.SERVER)
