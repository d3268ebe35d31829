# SPDX-License-Identifier: Apache-2.0
"""From spans to whole traces: the kernel's spans and the application's, each below its parent."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from demo.ledgers import SCOPE, Request, Stage
from demo.otlp import Kind, Span
from demo.plan import CHAT
from demo.topology import GATEWAY_PORT


class Part(Enum):
    """What a span tells of a request's way through the gateway, in the order of that way."""

    GATEWAY = "the kernel's span of the gateway's request"
    SERVER = "the application's server span"
    CLIENT = "the application's client span"
    CALL = "the kernel's span of the call"
    MODEL = "the kernel's span of the model's request"


@dataclass(frozen=True)
class Node:
    """A span, above those whose parent it is.

    Attributes:
        part: None for what an application tells beside its server and client spans.
        service: whose it is.
        request: as the kernel told it, with its stages; None for an application's span.
        children: in order of their beginning.
    """

    part: Part | None
    service: str
    span: Span
    request: Request | None
    children: tuple["Node", ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those of the kernel's span; an application's has none."""
        return self.request.stages if self.request is not None else ()

    def all(self) -> Iterator["Node"]:
        """This one, and all that are below it."""
        yield self
        for child in self.children:
            yield from child.all()


@dataclass(frozen=True)
class Trace:
    """All spans of one trace but stages, which are part of their requests.

    Attributes:
        roots: those whose parent is not among them; of a whole trace that is one.
    """

    trace_id: str
    roots: tuple[Node, ...]

    def all(self) -> Iterator[Node]:
        """Every node, those below a node after it."""
        for root in self.roots:
            yield from root.all()

    def of(self, part: Part) -> list[Node]:
        """The spans that are this part of the way; a request has at most one of each."""
        return [node for node in self.all() if node.part is part]

    @property
    def start_unix_ns(self) -> int:
        """When its first span began."""
        return min(node.span.start_unix_ns for node in self.all())

    @property
    def total_ns(self) -> int:
        """From the beginning of its first span to the end of its last."""
        return max(node.span.end_unix_ns for node in self.all()) - self.start_unix_ns


def traces(
    spans: Iterable[Span], requests: Iterable[Request], names: Mapping[int, str] | None = None
) -> tuple[Trace, ...]:
    """Put each span below its parent.

    Args:
        requests: the kernel's, with their stages.
        names: process id -> the name that the demo has for it, for its service's.
    Returns:
        In the order in which they began.
    """
    asked = {(request.trace_id, request.span_id): request for request in requests}
    groups: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        if span.scope != SCOPE or (span.trace_id, span.span_id) in asked:
            groups[span.trace_id].append(span)
    found = []
    for trace_id, group in groups.items():
        roots = _roots(sorted(group, key=lambda span: span.start_unix_ns), asked, names or {})
        if roots:
            found.append(Trace(trace_id, roots))
    return tuple(sorted(found, key=lambda trace: trace.start_unix_ns))


def _roots(
    spans: Sequence[Span], asked: Mapping[tuple[str, str], Request], names: Mapping[int, str]
) -> tuple[Node, ...]:
    ids = {span.span_id for span in spans}
    children: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        children[span.parent_span_id if span.parent_span_id in ids else ""].append(span)

    def below(span_id: str) -> tuple[Node, ...]:
        return tuple(map(node, children[span_id]))

    def node(span: Span) -> Node:
        request = asked.get((span.trace_id, span.span_id))
        service = str(span.resource.get("service.name", ""))
        pid = span.resource.get("process.pid")
        if isinstance(pid, int):
            service = names.get(pid, service)
        return Node(_part(span, request), service, span, request, below(span.span_id))

    return below("")


def _part(span: Span, request: Request | None) -> Part | None:
    if request is None:
        return {Kind.SERVER: Part.SERVER, Kind.CLIENT: Part.CLIENT}.get(span.kind)
    if request.kind is Kind.CLIENT:
        return Part.CALL
    return Part.GATEWAY if request.port == GATEWAY_PORT else Part.MODEL


def example(found: Iterable[Trace]) -> Trace | None:
    """The one to show: a streamed answer if there is one, else the one that took longest.

    Of the streams it is the one in the middle, rather one with a caller and one that is whole.
    """
    requests = [trace for trace in found if trace.of(Part.GATEWAY)]
    streams = [trace for trace in requests if _is_streamed(trace)]
    if not streams:
        return max(requests, key=lambda trace: trace.total_ns, default=None)

    def worth(trace: Trace) -> tuple[bool, bool]:
        whole = len(trace.roots) == 1 and all(trace.of(part) for part in Part)
        return whole, bool(trace.roots[0].span.parent_span_id)

    best = max(map(worth, streams))
    middle = sorted((t for t in streams if worth(t) == best), key=lambda trace: trace.total_ns)
    return middle[len(middle) // 2]


def _is_streamed(trace: Trace) -> bool:
    requests = (node.request for node in trace.of(Part.GATEWAY))
    return any(each and (each.path, each.status) == (CHAT, 200) for each in requests)
