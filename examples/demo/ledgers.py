# SPDX-License-Identifier: Apache-2.0
"""From spans to requests with their stages, and from requests to routes."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from demo.otlp import Kind, Span, Value
from demo.topology import GATEWAY_PORT
from otelbpf.ledger import request as otelbpf_request
from otelbpf.ledger.stamps import WAY, Owner, ends_of, owner_of
from otelbpf.traces import spans as otelbpf_spans

SCOPE = otelbpf_spans.SCOPE.name

_ROLES = {Kind.SERVER: otelbpf_request.Kind.SERVER, Kind.CLIENT: otelbpf_request.Kind.CLIENT}
_WAY = [stamp.name.lower() for stamp in WAY[otelbpf_request.Kind.SERVER]]
# The last byte may pass a point before the first passes the next, or long after. So may a handler
# end: one that streams does so when all is sent.
_LAST = [name for name in _WAY if name.endswith("_last") or name == "handler_end"]


@dataclass(frozen=True)
class Stage:
    """The time between two neighbouring stamps of one request.

    Attributes:
        name: the two stamps, as in ``nic_to_tc``.
        offset_ns: from the request's first stamp to this stage's first.
        duration_ns: from this stage's first stamp to its second.
    """

    name: str
    offset_ns: int
    duration_ns: int

    @property
    def end_ns(self) -> int:
        """From the request's first stamp to this stage's second."""
        return self.offset_ns + self.duration_ns


@dataclass(frozen=True)
class Request:
    """One request as otelbpf told it.

    Attributes:
        kind: SERVER where it was answered, CLIENT where it was asked.
        port: the server's.
        status: None if no response was seen.
        parent_span_id: the caller's span; empty if the request started its trace.
        total_ns: from the first stamp to the request's end.
        acked_ns: from there until the client's TCP acknowledged it; 0: that was not seen.
        stages: in order of time.
        complete: whether the ledger has every stamp it could have.
        absent: the names of the stamps that it lacks.
    """

    kind: Kind
    port: int
    method: str
    path: str
    status: int | None
    trace_id: str
    span_id: str
    parent_span_id: str
    start_unix_ns: int
    total_ns: int
    acked_ns: int
    stages: tuple[Stage, ...]
    complete: bool
    absent: tuple[str, ...]
    attributes: Mapping[str, Value]

    @property
    def tiles(self) -> tuple[tuple[Owner, int], ...]:
        """Whose the time of each stage is, and how long that is in ns."""
        role = _ROLES[self.kind]
        return tuple((owner_of(stage.name, role), stage.duration_ns) for stage in self.stages)

    @property
    def stages_sum_ns(self) -> int:
        """All stages added up."""
        return sum(stage.duration_ns for stage in self.stages)

    @property
    def tiled(self) -> bool:
        """Whether the stages cover the request to the nanosecond, with no gap or overlap."""
        edges = [0, *(stage.end_ns for stage in self.stages)]
        starts = [*(stage.offset_ns for stage in self.stages), self.total_ns]
        return (
            bool(self.stages) and edges == starts and all(s.duration_ns >= 0 for s in self.stages)
        )


@dataclass(frozen=True)
class Decoded:
    """What a set of spans says.

    Attributes:
        requests: in order of their first stamps.
        orphans: stages whose request's span is not there.
    """

    requests: tuple[Request, ...]
    orphans: tuple[Span, ...]

    @property
    def at_gateway(self) -> tuple[Request, ...]:
        """Those that the gateway was asked."""
        return tuple(each for each in self._answered if each.port == GATEWAY_PORT)

    @property
    def calls(self) -> tuple[Request, ...]:
        """Those that the gateway asked, as seen where it did."""
        return tuple(each for each in self.requests if each.kind is Kind.CLIENT)

    @property
    def at_models(self) -> tuple[Request, ...]:
        """Those that the models were asked."""
        return tuple(each for each in self._answered if each.port != GATEWAY_PORT)

    @property
    def _answered(self) -> Iterator[Request]:
        return (each for each in self.requests if each.kind is Kind.SERVER)


def decode(spans: Iterable[Span]) -> Decoded:
    """Put each stage under its request. Spans of other instrumentations are left alone."""
    asked: list[Span] = []
    children: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in spans:
        if span.scope != SCOPE:
            continue
        if span.kind in (Kind.SERVER, Kind.CLIENT):
            asked.append(span)
        else:
            children[span.trace_id, span.parent_span_id].append(span)
    asked.sort(key=lambda span: span.start_unix_ns)
    requests = tuple(
        _request(span, children.pop((span.trace_id, span.span_id), [])) for span in asked
    )
    return Decoded(requests, tuple(span for group in children.values() for span in group))


def _request(span: Span, children: list[Span]) -> Request:
    stages = [
        Stage(
            child.name,
            child.start_unix_ns - span.start_unix_ns,
            child.end_unix_ns - child.start_unix_ns,
        )
        for child in children
    ]
    stages.sort(key=lambda stage: (stage.offset_ns, stage.end_ns))
    status = span.attributes.get("http.response.status_code")
    absent = span.attributes.get("otelbpf.ledger.absent")
    acked = span.attributes.get("otelbpf.tcp.ack.duration_ns")
    client = span.kind is Kind.CLIENT
    port = span.attributes.get("network.peer.port" if client else "network.local.port")
    url = str(span.attributes.get("url.full", ""))
    return Request(
        kind=span.kind,
        port=port if isinstance(port, int) else 0,
        method=str(span.attributes.get("http.request.method", span.name)),
        path=urlsplit(url).path if client else str(span.attributes.get("url.path", "")),
        status=status if isinstance(status, int) else None,
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id,
        start_unix_ns=span.start_unix_ns,
        total_ns=span.end_unix_ns - span.start_unix_ns,
        acked_ns=acked if isinstance(acked, int) else 0,
        stages=tuple(stages),
        complete=span.attributes.get("otelbpf.ledger.complete") is True,
        absent=tuple(map(str, absent)) if isinstance(absent, list) else (),
        attributes=span.attributes,
    )


@dataclass(frozen=True)
class Figures:
    """How often, and how long: the middle one and the one that 99 of 100 do not exceed."""

    count: int
    median_ns: int
    p99_ns: int


@dataclass(frozen=True)
class RouteStage:
    """One stage over all requests of a route.

    Attributes:
        offset_ns: the median time from the request's first stamp to the stage's first.
    """

    name: str
    owner: Owner
    offset_ns: int
    figures: Figures


@dataclass(frozen=True)
class Route:
    """All requests with the same method and path.

    Medians of stages do not add up to the median of the whole; the stages of one request do.

    Attributes:
        acked: of the acknowledgements after the requests' ends; None: none was seen.
    """

    method: str
    path: str
    statuses: Mapping[int | None, int]
    total: Figures
    acked: Figures | None
    stages: tuple[RouteStage, ...]


def routes(requests: Sequence[Request]) -> tuple[Route, ...]:
    """Group requests by method and path, the most frequent first."""
    groups: dict[tuple[str, str], list[Request]] = defaultdict(list)
    for request in requests:
        groups[request.method, request.path].append(request)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(_route(method, path, group) for (method, path), group in ordered)


def _route(method: str, path: str, requests: list[Request]) -> Route:
    offsets: dict[str, list[int]] = defaultdict(list)
    durations: dict[str, list[int]] = defaultdict(list)
    for request in requests:
        for stage in request.stages:
            offsets[stage.name].append(stage.offset_ns)
            durations[stage.name].append(stage.duration_ns)
    stages = [
        RouteStage(
            name,
            owner_of(name, _ROLES[requests[0].kind]),
            quantile(offsets[name], 50),
            figures(durations[name]),
        )
        for name in _along_the_way(durations)
    ]
    statuses = Counter(request.status for request in requests)
    acked = [request.acked_ns for request in requests if request.acked_ns]
    return Route(
        method,
        path,
        dict(sorted(statuses.items(), key=lambda item: (item[0] is None, item[0]))),
        figures([request.total_ns for request in requests]),
        figures(acked) if acked else None,
        tuple(stages),
    )


def _along_the_way(durations: Mapping[str, Sequence[int]]) -> list[str]:
    """Stages in the order of their stamps: not of their offsets, which not all requests share."""
    at = {stamp: float(index) for index, stamp in enumerate(_WAY) if stamp not in _LAST}
    ends = {name: ends_of(name) for name in durations}
    for last in _LAST:
        # Behind the stamp that most requests have before it.
        before = [name for name, (first, second) in ends.items() if second == last and first in at]
        if before:
            after = at[ends[max(before, key=lambda name: len(durations[name]))][0]]
            at[last] = (after + math.floor(after) + 1) / 2

    def place(name: str) -> tuple[float, float, str]:
        first, second = ends[name]
        return at.get(first, math.inf), at.get(second, math.inf), name

    return sorted(durations, key=place)


def figures(values_ns: Sequence[int]) -> Figures:
    """Count, median and p99 of at least one duration."""
    return Figures(len(values_ns), quantile(values_ns, 50), quantile(values_ns, 99))


def quantile(values: Sequence[int], percent: int) -> int:
    """The smallest value that ``percent`` of all values do not exceed (nearest rank).

    It is always a value that was measured, never one between two.

    Raises:
        ValueError: there are no values, or ``percent`` is not from 1 to 100.
    """
    if not values or not 1 <= percent <= 100:
        raise ValueError(f"no {percent}% quantile of {len(values)} values")
    return sorted(values)[-(-percent * len(values) // 100) - 1]
