# SPDX-License-Identifier: Apache-2.0
"""What a request's span says: the only place that knows the names of its attributes.

A *section* says what repeats from request to request. It is a function whose parameters are the
columns that decide all of it, and nothing else: so it is asked once for each of their values, and
what it says is kept. A *number* is a column that becomes an attribute as it is.

A new attribute is a line in a section or in the numbers; one that comes of other fields than those
that a section has is one parameter more, or a section of its own.

Source:
    OpenTelemetry semantic conventions for HTTP spans. What is ours starts with `otelbpf.`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind

from otelbpf.kernel.records import RequestFlag
from otelbpf.ledger.batch import STAGE_NAMES, Batch
from otelbpf.ledger.request import (
    Kind,
    absent_of,
    address_of,
    ended_by,
    line_of,
    server_of,
    text_of,
)
from otelbpf.policy.capture import Capture, Clients, prefix_of
from otelbpf.policy.routes import Routes
from otelbpf.protocols.urls import RequestLine
from otelbpf.version import __version__

SCOPE = InstrumentationScope("otelbpf", __version__)
#: That the conventions know.
METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY")
)
#: What a server answers with 4xx was the client's error.
LEAST_ERROR = {Kind.SERVER: 500, Kind.CLIENT: 400}

Value = str | bool | int | float | Sequence[str]
Attributes = dict[str, Value]


class StageStyle(StrEnum):
    """How the stages of a request are told."""

    SPANS = "spans"
    ATTRIBUTES = "attributes"


class Said(NamedTuple):
    """A part of a span. What is None is said by another part."""

    attributes: Attributes
    name: str | None = None
    kind: SpanKind | None = None
    failed: bool | None = None


Section = Callable[..., Said]


def columns_of(section: Section) -> tuple[str, ...]:
    """The columns that decide what it says, by which it is called."""
    return tuple(inspect.signature(section).parameters)


@dataclass(frozen=True)
class Number:
    """An attribute that is a number of each request's own.

    Attributes:
        of: (n,) unsigned, below 2**63.
        where: (n,) bool: which requests have it; None: all.
    """

    key: str
    of: Callable[[Batch], np.ndarray]
    where: Callable[[Batch], np.ndarray] | None = None


class Description:
    """What spans say, under one configuration.

    Args:
        routes: names the paths.
        capture: what is told of them, and of who asks.
        stages: how these are told.
    Attributes:
        sections: of each kind of request; others, once it says something else.
    """

    sections: Mapping[Kind, tuple[Section, ...]]

    def __init__(self, routes: Routes, capture: Capture, stages: StageStyle) -> None:
        self.stages = stages
        self.become(routes, capture)

    def become(self, routes: Routes, capture: Capture) -> None:
        """Says this from now on, of what is not told yet; from any thread."""
        self._routes = routes
        self._capture = capture
        who_asks = () if capture.clients is Clients.NONE else (self._peer, self._client)
        agent = (_agent,) if capture.user_agent else ()
        # Last: whoever sees new ones has all that they say by the new rules.
        self.sections = {
            Kind.SERVER: (
                self._asked,
                *who_asks,
                _server,
                *agent,
                _outcome_of_server,
                _elsewhere,
            ),
            Kind.CLIENT: (self._asked_of, _upstream, *agent, _outcome_of_client, _elsewhere),
        }

    def numbers_of(self, batch: Batch) -> Iterator[Number]:
        """The numbers that requests of this batch may have."""
        yield from _NUMBERS
        if batch.kind is Kind.CLIENT:
            yield from _NUMBERS_OF_CLIENT
        elif self._capture.clients is Clients.WHOLE:
            yield from _PORTS_OF_WHO_ASKS
        if self.stages is StageStyle.ATTRIBUTES:
            for number, run in batch.stages.runs:
                yield _length_of(number, run)

    # ---- sections ----

    def _asked(self, request_line: bytes, request_line_length: int) -> Said:
        line = line_of(request_line, request_line_length)
        route = self._route(line)
        attributes = _method(line.method)
        if self._capture.path:
            attributes["url.path"] = line.path
        if self._capture.query and line.query:
            attributes["url.query"] = line.query
        if route:
            attributes["http.route"] = route
        if line.path_cut:
            attributes["otelbpf.url.path.cut"] = True
        return Said(attributes, _name(line.method, route))

    def _asked_of(
        self,
        request_line: bytes,
        request_line_length: int,
        host: bytes,
        host_length: int,
        peer_address: bytes,
        peer_port: int,
    ) -> Said:
        line = line_of(request_line, request_line_length)
        server = server_of(line, host, host_length, peer_address, peer_port)
        route = self._route(line)
        query = f"?{line.query}" if self._capture.query and line.query else ""
        # `*`, or the host that CONNECT asks for, is no path.
        path = line.path if self._capture.path and line.path.startswith("/") else ""
        attributes = _method(line.method)
        attributes["url.full"] = f"{line.scheme}://{server.authority}{path}{query}"
        if route:
            attributes["url.template"] = route
        if line.path_cut:
            attributes["otelbpf.url.path.cut"] = True
        return Said(attributes, _name(line.method, route))

    def _peer(self, peer_address: bytes) -> Said:
        return Said({"network.peer.address": self._who_asks(peer_address)})

    def _client(self, known_client_address: bytes, is_client_known: bool) -> Said:
        if not is_client_known:
            return Said({})
        return Said({"client.address": self._who_asks(known_client_address)})

    def _who_asks(self, address: bytes) -> str:
        is_whole = self._capture.clients is Clients.WHOLE
        return address_of(address if is_whole else prefix_of(address))

    def _route(self, line: RequestLine) -> str:
        return "" if line.path_cut else self._routes.name(line.path)


def error_type(status: int, how_it_ended: str, kind: Kind) -> str:
    """The conventions' error.type: how a request was cut short, or its status; empty: no error."""
    return how_it_ended or (str(status) if status >= LEAST_ERROR[kind] else "")


def _method(method: str) -> Attributes:
    if method in METHODS:
        return {"http.request.method": method}
    return {"http.request.method": "_OTHER", "http.request.method_original": method}


def _name(method: str, route: str) -> str:
    method = method if method in METHODS else "HTTP"
    return f"{method} {route}" if route else method


def _server(
    naming_line: bytes,
    naming_line_length: int,
    local_address: bytes,
    local_port: int,
    host: bytes,
    host_length: int,
) -> Said:
    line = line_of(naming_line, naming_line_length)
    server = server_of(line, host, host_length, local_address, local_port)
    return Said(
        {
            "url.scheme": line.scheme,
            "network.local.address": address_of(local_address),
            "network.local.port": local_port,
            "server.address": server.address,
            "server.port": server.port,
        }
    )


def _upstream(
    naming_line: bytes,
    naming_line_length: int,
    peer_address: bytes,
    peer_port: int,
    local_address: bytes,
    host: bytes,
    host_length: int,
) -> Said:
    line = line_of(naming_line, naming_line_length)
    server = server_of(line, host, host_length, peer_address, peer_port)
    return Said(
        {
            "url.scheme": line.scheme,
            "network.peer.address": address_of(peer_address),
            "network.peer.port": peer_port,
            "network.local.address": address_of(local_address),
            "server.address": server.address,
            "server.port": server.port,
        }
    )


def _agent(user_agent: bytes, user_agent_length: int) -> Said:
    agent = text_of(user_agent, user_agent_length)
    return Said({"user_agent.original": agent} if agent else {})


def _outcome_of_server(status: int, ending: int, http_minor: int, present: int) -> Said:
    return _outcome(Kind.SERVER, SpanKind.SERVER, status, ending, http_minor, present)


def _outcome_of_client(status: int, ending: int, http_minor: int, present: int) -> Said:
    return _outcome(Kind.CLIENT, SpanKind.CLIENT, status, ending, http_minor, present)


def _outcome(
    kind: Kind, span_kind: SpanKind, status: int, ending: int, http_minor: int, present: int
) -> Said:
    absent, complete = absent_of(present, kind)
    error = error_type(status, ended_by(RequestFlag(ending), kind), kind)
    attributes: Attributes = {
        "network.protocol.name": "http",
        "network.protocol.version": f"1.{http_minor}",
        "otelbpf.ledger.complete": complete,
        "otelbpf.ledger.absent": absent,
    }
    if status:
        attributes["http.response.status_code"] = status
    if error:
        attributes["error.type"] = error
    if ending & RequestFlag.IDLE_TIMEOUT:
        attributes["otelbpf.ended_by"] = "idle_timeout"
    return Said(attributes, kind=span_kind, failed=bool(error))


def _elsewhere(elsewhere_trace_id: bytes) -> Said:
    if not any(elsewhere_trace_id):
        return Said({})
    return Said({"otelbpf.thread_context.trace_id": elsewhere_trace_id.hex()})


# ---- numbers ----


def _column(name: str) -> Callable[[Batch], np.ndarray]:
    return lambda batch: batch.column(name)


def _nonzero(name: str) -> Callable[[Batch], np.ndarray]:
    return lambda batch: batch.column(name) != 0


def _flagged(flag: RequestFlag) -> Callable[[Batch], np.ndarray]:
    return lambda batch: batch.records["flags"] & np.uint32(flag) != 0


def _uncertainty(batch: Batch) -> np.ndarray:
    return np.full(len(batch), batch.clock.uncertainty_ns, np.uint64)


_NUMBERS = (
    Number("http.request.size", _column("request_bytes")),
    Number("http.response.size", _column("response_bytes")),
    # Of a body that was cut short only its announced size is known, so none is given.
    Number(
        "http.request.body.size",
        _column("request_body_bytes"),
        _flagged(RequestFlag.REQUEST_RECEIVED),
    ),
    Number(
        "http.response.body.size",
        _column("response_body_bytes"),
        _flagged(RequestFlag.REQUEST_ANSWERED),
    ),
    Number("otelbpf.connection.request", _column("ordinal")),
    Number("otelbpf.clock.uncertainty_ns", _uncertainty),
    Number("thread.id", _column("tid"), _nonzero("tid")),
    Number("otelbpf.tcp.retransmits", _column("retransmits"), _nonzero("retransmits")),
    Number("otelbpf.tcp.ack.duration_ns", _column("acked_ns"), _nonzero("acked_ns")),
    Number("otelbpf.tcp.out_of_order", _column("out_of_order"), _nonzero("out_of_order")),
)
_PORTS_OF_WHO_ASKS = (
    Number("network.peer.port", _column("peer_port")),
    Number("client.port", _column("known_client_port"), _nonzero("known_client_port")),
)
_NUMBERS_OF_CLIENT = (Number("network.local.port", _column("local_port")),)


def _length_of(number: int, run: slice) -> Number:
    """The length of one stage, ns.

    Args:
        run: where the stages of this number are among those of the batch.
    """

    def of(batch: Batch) -> np.ndarray:
        stages = batch.stages
        lengths = np.zeros(len(batch), np.uint64)
        lengths[stages.row[run]] = stages.end_ktime_ns[run] - stages.start_ktime_ns[run]
        return lengths

    def where(batch: Batch) -> np.ndarray:
        having = np.zeros(len(batch), bool)
        having[batch.stages.row[run]] = True
        return having

    return Number(f"otelbpf.stage.{STAGE_NAMES[number]}", of, where)
