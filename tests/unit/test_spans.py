# SPDX-License-Identifier: Apache-2.0
"""The request's span by OpenTelemetry's conventions, and the stages below it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.semconv._incubating.attributes import (
    client_attributes,
    error_attributes,
    http_attributes,
    network_attributes,
    server_attributes,
    thread_attributes,
    url_attributes,
    user_agent_attributes,
)
from opentelemetry.trace import SpanKind, StatusCode
from samples import (
    BEGIN_KTIME_NS,
    CLIENT_TOLD,
    PLAIN,
    RESOURCE,
    SMALL,
    WHOLE,
    WITH_QUERY,
    address,
    description,
    record,
    requests,
)
from support.stages import Stage, stages_of

from otelbpf.host.clock import ClockReading
from otelbpf.kernel.records import RequestFlag, RequestRecordRow, Said, Stamp
from otelbpf.ledger.batch import Batch, Requests
from otelbpf.ledger.ids import Ids
from otelbpf.ledger.request import address_of, bounds_of, line_of, server_of
from otelbpf.ledger.trace_contexts import contexts_of
from otelbpf.policy.capture import Capture, Clients
from otelbpf.policy.routes import Routes
from otelbpf.traces.description import SCOPE, StageStyle
from otelbpf.traces.encode import Encoder
from otelbpf.traces.spans import readable_spans

CLOCK = ClockReading(offset_ns=1_785_000_000_000_000_001, uncertainty_ns=37)
CONVENTIONS = (
    client_attributes,
    error_attributes,
    http_attributes,
    network_attributes,
    server_attributes,
    thread_attributes,
    url_attributes,
    user_agent_attributes,
)
KNOWN_NAMES = {
    value
    for module in CONVENTIONS
    for name, value in vars(module).items()
    if name.isupper() and isinstance(value, str)
}
OURS = "otelbpf."
#: Of what a small request is stamped with, all but the acknowledgement bound its stages.
BOUNDS = tuple(stamp for stamp in SMALL if stamp is not Stamp.ACKED)


def request(stamps: dict[Stamp, int] | None = None, **fields: object) -> Requests:
    """One, by this file's clock."""
    return requests(stamps, clock=CLOCK, **fields)  # type: ignore[arg-type]


def make(
    made: Requests, style: StageStyle = StageStyle.SPANS, **says: object
) -> list[ReadableSpan]:
    return readable_spans(description(stages=style, **says), made)  # type: ignore[arg-type]


def told(made: Requests, style: StageStyle = StageStyle.SPANS, **says: object) -> dict[str, object]:
    """The attributes of the request's own span."""
    return dict(make(made, style, **says)[0].attributes or {})


def attributes(*, capture: Capture = PLAIN, **fields: object) -> dict[str, object]:
    return told(request(**fields), capture=capture)  # type: ignore[arg-type]


def everything() -> Requests:
    """A request with every attribute that there can be at once, if the query is captured."""
    return request(
        request_line=b"BREW /" + b"a" * 186,
        request_line_length=500,
        status=503,
        flags=RequestFlag.REQUEST_RECEIVED | RequestFlag.IDLE_TIMEOUT,
        request_retransmits=1,
        out_of_order=2,
    )


def in_words(requests: Requests) -> list[tuple[Stage, ...]]:
    """The stages of each, as plain Python tiles them."""
    return [stages_of(stamps) for stamps in bounds_of(requests.records).tolist()]


def test_a_small_get() -> None:
    assert attributes() == {
        http_attributes.HTTP_REQUEST_METHOD: "GET",
        url_attributes.URL_PATH: "/items/7",
        http_attributes.HTTP_ROUTE: "/items/{id}",
        url_attributes.URL_SCHEME: "http",
        network_attributes.NETWORK_PROTOCOL_NAME: "http",
        network_attributes.NETWORK_PROTOCOL_VERSION: "1.1",
        network_attributes.NETWORK_PEER_ADDRESS: "198.51.100.7",
        network_attributes.NETWORK_PEER_PORT: 40_001,
        network_attributes.NETWORK_LOCAL_ADDRESS: "192.0.2.1",
        network_attributes.NETWORK_LOCAL_PORT: 8080,
        client_attributes.CLIENT_ADDRESS: "198.51.100.7",
        client_attributes.CLIENT_PORT: 40_001,
        server_attributes.SERVER_ADDRESS: "shop.example",
        server_attributes.SERVER_PORT: 8080,
        http_attributes.HTTP_REQUEST_SIZE: 90,
        http_attributes.HTTP_RESPONSE_SIZE: 150,
        http_attributes.HTTP_REQUEST_BODY_SIZE: 0,
        http_attributes.HTTP_RESPONSE_BODY_SIZE: 12,
        http_attributes.HTTP_RESPONSE_STATUS_CODE: 200,
        user_agent_attributes.USER_AGENT_ORIGINAL: "curl/8.1",
        thread_attributes.THREAD_ID: 4242,
        "otelbpf.ledger.complete": True,
        "otelbpf.ledger.absent": (),
        "otelbpf.clock.uncertainty_ns": 37,
        "otelbpf.connection.request": 0,
        "otelbpf.tcp.ack.duration_ns": 37_656,
    }


@pytest.mark.parametrize("style", StageStyle)
def test_every_name_is_the_conventions_or_ours(style: StageStyle) -> None:
    for made in (request(), everything(), outgoing()):
        names = {n for n in told(made, style, capture=WITH_QUERY) if not n.startswith(OURS)}
        assert names <= KNOWN_NAMES


@pytest.mark.parametrize(
    "method",
    sorted(m.value for m in http_attributes.HttpRequestMethodValues if m.value != "_OTHER"),
)
def test_every_method_of_the_conventions_is_known(method: str) -> None:
    made = request(request_line=f"{method} / HTTP/1.1".encode())
    assert told(made)["http.request.method"] == method
    assert make(made)[0].name == f"{method} /"


@pytest.mark.parametrize("method", ["BREW", "get", "PROPFIND", ""])
def test_other_methods(method: str) -> None:
    found = attributes(request_line=f"{method} / HTTP/1.1".encode())
    assert found["http.request.method"] == http_attributes.HttpRequestMethodValues.OTHER.value
    assert found["http.request.method_original"] == method
    assert make(request(request_line=f"{method} / HTTP/1.1".encode()))[0].name == "HTTP /"


def test_a_known_method_has_no_original() -> None:
    assert "http.request.method_original" not in attributes()


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (200, StatusCode.UNSET, None),
        (101, StatusCode.UNSET, None),
        (304, StatusCode.UNSET, None),
        (404, StatusCode.UNSET, None),
        (499, StatusCode.UNSET, None),
        (500, StatusCode.ERROR, "500"),
        (503, StatusCode.ERROR, "503"),
        (599, StatusCode.ERROR, "599"),
    ],
)
def test_status(status: int, code: StatusCode, error: str | None) -> None:
    (span,) = make(request(status=status), StageStyle.ATTRIBUTES)
    assert span.status.status_code is code
    assert span.status.description is None
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == status
    assert span.attributes.get(error_attributes.ERROR_TYPE) == error


@pytest.mark.parametrize(
    ("flag", "error"),
    [
        (RequestFlag.PEER_RESET, "client_reset"),
        (RequestFlag.LOCAL_RESET, "server_reset"),
        (RequestFlag.PEER_CLOSED, "client_closed"),
        (RequestFlag.LOCAL_CLOSED, "server_closed"),
        (RequestFlag.IDLE_TIMEOUT, "idle_timeout"),
        (0, "connection_lost"),
    ],
)
@pytest.mark.parametrize("status", [0, 200, 503])
def test_cut_short(flag: int, error: str, status: int) -> None:
    """How it ended says more than the status that came before."""
    made = request(status=status, flags=RequestFlag.REQUEST_RECEIVED | flag)
    span = make(made)[0]
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == error
    assert span.attributes.get("http.response.status_code", 0) == status
    assert span.attributes.get("otelbpf.ended_by") == (
        "idle_timeout" if error == "idle_timeout" else None
    )


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (b"shop.example:81", ("shop.example", 81)),
        (b"shop.example", ("shop.example", 8080)),
        (b"shop.example:", ("shop.example", 8080)),  # RFC 3986: the port may be empty
        (b"192.0.2.9:81", ("192.0.2.9", 81)),
        (b"[2001:db8::9]:81", ("2001:db8::9", 81)),
        (b"[2001:db8::9]", ("2001:db8::9", 8080)),
        (b"[::1]:65535", ("::1", 65_535)),
        (b"", ("192.0.2.1", 8080)),
    ],
)
def test_host(host: bytes, expected: tuple[str, int]) -> None:
    found = attributes(host=host)
    assert (found["server.address"], found["server.port"]) == expected


def test_no_host_on_ipv6() -> None:
    found = attributes(host=b"", local_address=address("2001:db8::80"))
    assert (found["server.address"], found["server.port"]) == ("2001:db8::80", 8080)


@pytest.mark.parametrize(
    "host", [b"h:65536", b"h:" + b"9" * 60, b"h:\xb2", b"h:-1", b"h:80x", b"h:0x50", b"h:\xbd"]
)
def test_a_port_that_is_none(host: bytes) -> None:
    """A client may send anything; no number of its making may break the export of a batch."""
    (span,) = make(request(host=host), StageStyle.ATTRIBUTES)
    assert span.attributes is not None
    assert span.attributes["server.port"] == 8080
    encode_spans([span])  # OTLP's integers have 64 bits


def test_sizes_of_bodies_that_were_cut_are_left_out() -> None:
    request_size, response_size = "http.request.body.size", "http.response.body.size"
    fields = {"request_body_bytes": 70, "response_body_bytes": 80}
    found = attributes(flags=WHOLE, **fields)
    assert (found[request_size], found[response_size]) == (70, 80)
    found = attributes(flags=RequestFlag.REQUEST_RECEIVED, **fields)
    assert found[request_size] == 70
    assert response_size not in found
    found = attributes(flags=RequestFlag.PEER_RESET, **fields)
    assert request_size not in found
    assert response_size not in found
    found = attributes(flags=RequestFlag.REQUEST_ANSWERED, **fields)  # answered before its end
    assert request_size not in found
    assert found[response_size] == 80


def test_the_query_only_when_captured() -> None:
    assert "url.query" not in attributes()
    assert attributes(capture=WITH_QUERY)["url.query"] == "token=s3cret"
    assert "url.query" not in attributes(capture=WITH_QUERY, request_line=b"GET /a? HTTP/1.1")
    assert "s3cret" not in repr([span.to_json() for span in make(request())])
    assert b"s3cret" not in Encoder(description()).encode(request())
    assert b"s3cret" in Encoder(description(capture=WITH_QUERY)).encode(request())


@pytest.mark.parametrize(
    ("whole", "prefix"),
    [("192.0.2.77", "192.0.2.0"), ("2001:db8:1:2::3", "2001:db8:1::"), ("::1", "::")],
)
def test_of_addresses_of_who_asks_a_prefix_may_be_all_that_is_told(whole: str, prefix: str) -> None:
    fields = {
        "peer_address": address(whole), "peer_port": 7, "client_told": CLIENT_TOLD,
        "client_address": address(whole), "client_port": 8,
    }  # fmt: skip
    keys = ("network.peer.address", "network.peer.port", "client.address", "client.port")
    told = {clients: attributes(capture=Capture(clients=clients), **fields) for clients in Clients}
    assert {clients: [found.get(key) for key in keys] for clients, found in told.items()} == {
        Clients.WHOLE: [whole, 7, whole, 8],
        Clients.PREFIX: [prefix, None, prefix, None],
        Clients.NONE: [None] * 4,
    }


def test_what_is_not_there_is_left_out() -> None:
    found = attributes(status=0, user_agent=b"", tid=0)
    for name in (
        "http.response.status_code",
        "user_agent.original",
        "thread.id",
        "otelbpf.url.path.cut",
        "otelbpf.tcp.retransmits",
        "otelbpf.tcp.out_of_order",
        "otelbpf.ended_by",
        "url.query",
    ):
        assert name not in found


def test_ours() -> None:
    found = attributes(
        stamps={s: at for s, at in SMALL.items() if s not in (Stamp.TCP, Stamp.RUNNING)},
        ordinal=22,
        request_retransmits=2,
        response_retransmits=3,
        out_of_order=4,
    )
    assert found["otelbpf.ledger.complete"] is False
    assert found["otelbpf.ledger.absent"] == ("tcp", "running")
    assert found["otelbpf.connection.request"] == 22
    assert found["otelbpf.tcp.retransmits"] == 5
    assert found["otelbpf.tcp.out_of_order"] == 4
    assert told(everything())["otelbpf.url.path.cut"] is True


@pytest.mark.parametrize(("request_", "response"), [(1, 0), (0, 1), (7, 8)])
def test_segments_sent_again_are_told_whichever_way_they_went(request_: int, response: int) -> None:
    found = attributes(request_retransmits=request_, response_retransmits=response)
    assert found["otelbpf.tcp.retransmits"] == request_ + response
    assert "otelbpf.tcp.out_of_order" not in found


def test_the_requests_span() -> None:
    span = make(request())[0]
    assert span.kind is SpanKind.SERVER
    assert span.start_time == CLOCK.offset_ns + BEGIN_KTIME_NS
    assert span.end_time == CLOCK.offset_ns + BEGIN_KTIME_NS + SMALL[Stamp.TC_OUT]
    assert span.resource is RESOURCE
    assert span.instrumentation_scope is SCOPE
    assert (span.context.trace_id, span.context.span_id) == (1 << 64, 0xABC)
    assert span.context.trace_flags == 1
    assert not span.context.is_remote
    assert span.parent is None
    assert list(span.events) == []


@pytest.mark.parametrize("last", [Stamp.TC_OUT, Stamp.TC_OUT_LAST, Stamp.ENDED])
def test_the_acknowledgement_comes_after_the_span(last: Stamp) -> None:
    """The span ends when the response's last byte has left, or no more of it can."""
    stamps = {stamp: SMALL[stamp] for stamp in BOUNDS} | {last: 440_000, Stamp.ACKED: 450_001}
    span = make(request(stamps))[0]
    assert span.end_time == CLOCK.offset_ns + BEGIN_KTIME_NS + 440_000
    assert span.attributes is not None
    assert span.attributes["otelbpf.tcp.ack.duration_ns"] == 10_001


@pytest.mark.parametrize("acked_ns", [None, 412_345, 400_000])
def test_what_is_not_acknowledged_after_its_end_has_no_such_time(acked_ns: int | None) -> None:
    """Its last byte may have been sent again since."""
    stamps = {stamp: SMALL[stamp] for stamp in BOUNDS}
    if acked_ns is not None:
        stamps[Stamp.ACKED] = acked_ns
    (span,) = make(request(stamps), StageStyle.ATTRIBUTES)
    assert span.end_time == CLOCK.offset_ns + BEGIN_KTIME_NS + SMALL[Stamp.TC_OUT]
    assert span.attributes is not None
    assert "otelbpf.tcp.ack.duration_ns" not in span.attributes


def test_a_callers_span_is_the_parent() -> None:
    parent = make(request(parent=0xDEF, parent_flags=3))[0].parent
    assert parent is not None
    assert (parent.trace_id, parent.span_id) == (1 << 64, 0xDEF)
    assert parent.is_remote
    assert parent.trace_flags == 3


@pytest.mark.parametrize("present", [BOUNDS, BOUNDS[::2], (Stamp.TC,)])
def test_stage_spans_tile_the_requests_span(present: tuple[Stamp, ...]) -> None:
    made = request({s: SMALL[s] for s in present}, parent=0xDEF)
    span, *stages = make(made)
    (expected,) = in_words(made)
    assert [s.name for s in stages] == [s.name for s in expected]
    assert len(stages) == max(1, len(present) - 1)
    assert stages[0].start_time == span.start_time
    assert stages[-1].end_time == span.end_time
    for one, next_one in itertools.pairwise(stages):
        assert one.end_time == next_one.start_time
    assert sum(s.end_time - s.start_time for s in stages) == span.end_time - span.start_time
    for stage in stages:
        assert stage.kind is SpanKind.INTERNAL
        assert stage.parent == span.context
        assert stage.context.trace_id == span.context.trace_id
        assert stage.context.trace_flags == 1
        assert stage.status.status_code is StatusCode.UNSET
        assert dict(stage.attributes or {}) == {}
        assert stage.resource is RESOURCE
    ids = {s.context.span_id for s in (span, *stages)}
    assert len(ids) == len(stages) + 1
    assert 0 not in ids


def test_stages_as_attributes() -> None:
    (span,) = make(request(), StageStyle.ATTRIBUTES)
    assert span.attributes is not None
    lengths = {
        name.removeprefix("otelbpf.stage."): value
        for name, value in span.attributes.items()
        if name.startswith("otelbpf.stage.")
    }
    assert lengths == {
        "nic_to_tc": 700,
        "tc_to_tcp": 1_301,
        "tcp_to_queued": 899,
        "queued_to_woken": 433,
        "woken_to_running": 11_667,
        "running_to_read": 6_007,
        "read_to_write": 378_993,
        "write_to_tc_out": 12_345,
    }
    assert sum(lengths.values()) == span.end_time - span.start_time
    assert not any(n.startswith("otelbpf.stage.") for n in attributes())


def test_a_span_id_is_never_zero() -> None:
    """The one request's whose first stage would have that id."""
    made = request()
    (first, *_) = Batch(made).stages.number.tolist()
    made.contexts.span_id[:] = -0x9E3779B97F4A7C15 * (first + 1) % 2**64
    ids = [span.context.span_id for span in make(made)[1:]]
    assert ids[0] == 1
    assert 0 not in ids


#: What a request to an upstream is stamped with; ns after the first.
OUTGOING = {
    Stamp.WRITE: 0, Stamp.TC_OUT: 9_000, Stamp.NIC: 400_000, Stamp.TC: 401_000,
    Stamp.TCP: 403_000, Stamp.QUEUED: 404_000, Stamp.READ: 420_000,
}  # fmt: skip


def outgoing(stamps: dict[Stamp, int] = OUTGOING, **fields: object) -> Requests:
    """A request to an upstream at 198.51.100.7."""
    flags = fields.pop("flags", WHOLE) | RequestFlag.CLIENT  # type: ignore[operator]
    return request(stamps, **{"peer_port": 9090, "local_port": 40_001, "flags": flags, **fields})  # type: ignore[arg-type]


def test_a_small_get_to_an_upstream() -> None:
    made = outgoing(host=b"shop.internal:9090")
    assert told(made) == {
        http_attributes.HTTP_REQUEST_METHOD: "GET",
        url_attributes.URL_FULL: "http://shop.internal:9090/items/7",
        url_attributes.URL_TEMPLATE: "/items/{id}",
        url_attributes.URL_SCHEME: "http",
        network_attributes.NETWORK_PROTOCOL_NAME: "http",
        network_attributes.NETWORK_PROTOCOL_VERSION: "1.1",
        network_attributes.NETWORK_PEER_ADDRESS: "198.51.100.7",
        network_attributes.NETWORK_PEER_PORT: 9090,
        network_attributes.NETWORK_LOCAL_ADDRESS: "192.0.2.1",
        network_attributes.NETWORK_LOCAL_PORT: 40_001,
        server_attributes.SERVER_ADDRESS: "shop.internal",
        server_attributes.SERVER_PORT: 9090,
        http_attributes.HTTP_REQUEST_SIZE: 90,
        http_attributes.HTTP_RESPONSE_SIZE: 150,
        http_attributes.HTTP_REQUEST_BODY_SIZE: 0,
        http_attributes.HTTP_RESPONSE_BODY_SIZE: 12,
        http_attributes.HTTP_RESPONSE_STATUS_CODE: 200,
        user_agent_attributes.USER_AGENT_ORIGINAL: "curl/8.1",
        thread_attributes.THREAD_ID: 4242,
        "otelbpf.ledger.complete": True,
        "otelbpf.ledger.absent": ("woken", "running"),
        "otelbpf.clock.uncertainty_ns": 37,
        "otelbpf.connection.request": 0,
    }
    span, *stages = make(made)
    assert (span.name, span.kind) == ("GET /items/{id}", SpanKind.CLIENT)
    assert [stage.name for stage in stages] == [
        "write_to_tc_out", "tc_out_to_nic", "nic_to_tc", "tc_to_tcp", "tcp_to_queued",
        "queued_to_read",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "full", "server"),
    [
        ({"host": b"shop.internal"}, "http://shop.internal/items/7", ("shop.internal", 9090)),
        ({"host": b""}, "http://198.51.100.7:9090/items/7", ("198.51.100.7", 9090)),
        (
            {"host": b"", "peer_address": address("fd00::7")},
            "http://[fd00::7]:9090/items/7", ("fd00::7", 9090),
        ),
        # What goes through a proxy says whom it is for, and that goes before its Host.
        (
            {"host": b"proxy", "request_line": b"GET http://proxied.example/a HTTP/1.1"},
            "http://proxied.example/a", ("proxied.example", 80),
        ),
        (
            {"host": b"proxy", "request_line": b"GET http://10.0.0.1:9000/a?b HTTP/1.1"},
            "http://10.0.0.1:9000/a", ("10.0.0.1", 9000),
        ),
        (
            {"request_line": b"CONNECT shop.example:443 HTTP/1.1"},
            "http://shop.example:443", ("shop.example", 443),
        ),
        (
            {"host": b"shop.internal", "request_line": b"OPTIONS * HTTP/1.1"},
            "http://shop.internal", ("shop.internal", 9090),
        ),
    ],
)  # fmt: skip
def test_where_an_upstream_is(
    fields: dict[str, object], full: str, server: tuple[str, int]
) -> None:
    found = told(outgoing(**fields))
    assert found[url_attributes.URL_FULL] == full
    assert (
        found[server_attributes.SERVER_ADDRESS], found[server_attributes.SERVER_PORT]
    ) == server  # fmt: skip
    # Where it went is another thing.
    peer = address_of(fields.get("peer_address", address("198.51.100.7")))  # type: ignore[arg-type]
    assert found[network_attributes.NETWORK_PEER_ADDRESS] == peer
    assert found[network_attributes.NETWORK_PEER_PORT] == 9090


def test_a_server_is_asked_for_by_its_request_line_first() -> None:
    line = b"GET https://shop.example/items/7 HTTP/1.1"
    found = attributes(request_line=line, host=b"other.example:81")
    assert (found["server.address"], found["server.port"]) == ("shop.example", 443)
    assert found[url_attributes.URL_SCHEME] == "https"
    assert found[url_attributes.URL_PATH] == "/items/7"
    assert found[http_attributes.HTTP_ROUTE] == "/items/{id}"


@pytest.mark.parametrize("flag", [RequestFlag(0), RequestFlag.CLIENT])
@pytest.mark.parametrize(
    "line",
    [
        b"", b"/", b"a/b", b" /a HTTP/1.1", b"  http://a/ HTTP/1.1", b"GET /a HTTP/1.1",
        b"GET /http://a/ HTTP/1.1", b"GET http://a:81/ HTTP/1.1", b"GET HTTPS://a/ HTTP/1.1",
        b"GET ftp://a/ HTTP/1.1", b"GET * HTTP/1.1", b"CONNECT a:443 HTTP/1.1",
        b"CONNECT /a HTTP/1.1", b"CONNECT  HTTP/1.1", b"connect a:443 HTTP/1.1",
        b"C" * 191 + b" ", b"C" * 192,
    ],
)  # fmt: skip
def test_spans_and_series_say_the_same_of_a_server(line: bytes, flag: RequestFlag) -> None:
    made = request(request_line=line, flags=WHOLE | flag)
    (row,) = map(RequestRecordRow, made.records.tolist())
    http1, found = row.http1, told(made)
    asked = line_of(http1.request_line, http1.request_line_length)
    theirs = (row.peer_address, row.peer_port) if flag else (row.local_address, row.local_port)
    server = server_of(asked, http1.host, http1.host_length, *theirs)
    assert (found["server.address"], found["server.port"]) == (server.address, server.port)
    assert found["url.scheme"] == asked.scheme


def test_an_upstreams_query_only_when_captured() -> None:
    for capture, full in ((False, "/items/7"), (True, "/items/7?token=s3cret")):
        found = told(outgoing(), capture=Capture(query=capture))
        assert str(found[url_attributes.URL_FULL]).endswith(full)
        assert url_attributes.URL_QUERY not in found


@pytest.mark.parametrize(
    ("status", "error"), [(200, None), (399, None), (400, "400"), (503, "503")]
)
def test_an_upstreams_4xx_is_an_error_of_the_client(status: int, error: str | None) -> None:
    span = make(outgoing(status=status))[0]
    assert span.attributes.get(error_attributes.ERROR_TYPE) == error
    assert span.status.status_code is (StatusCode.ERROR if error else StatusCode.UNSET)


@pytest.mark.parametrize(
    ("flag", "error"),
    [
        (RequestFlag.PEER_RESET, "server_reset"), (RequestFlag.PEER_CLOSED, "server_closed"),
        (RequestFlag.LOCAL_RESET, "client_reset"), (RequestFlag.LOCAL_CLOSED, "client_closed"),
        (RequestFlag.IDLE_TIMEOUT, "idle_timeout"), (RequestFlag(0), "connection_lost"),
    ],
)  # fmt: skip
def test_cut_short_by_an_upstream(flag: RequestFlag, error: str) -> None:
    made = outgoing(flags=RequestFlag.REQUEST_RECEIVED | flag)
    assert told(made)[error_attributes.ERROR_TYPE] == error


def test_an_upstreams_response_is_not_acknowledged_but_read() -> None:
    assert told(outgoing())["otelbpf.ledger.complete"] is True
    unread = {stamp: at for stamp, at in OUTGOING.items() if stamp is not Stamp.READ}
    assert told(outgoing(unread))["otelbpf.ledger.complete"] is False


def test_a_cause_is_a_parent_on_this_machine() -> None:
    made = outgoing(parent=0xDEF)
    made.contexts.caused[:] = True
    span = make(made)[0]
    assert span.parent is not None
    assert (span.parent.span_id, span.parent.is_remote) == (0xDEF, False)


def test_all_of_it_can_be_encoded() -> None:
    odd = bytes(range(128, 192))
    made = [request(), everything(), request(host=odd, user_agent=odd, request_line=odd)]
    largest = request()
    for words in (largest.contexts.trace_id_high, largest.contexts.trace_id_low):
        words[:] = (1 << 64) - 1
    largest.contexts.span_id[:] = (1 << 64) - 1
    made.append(largest)
    spans = [span for one in made for span in make(one)]
    assert (spans[-9].context.trace_id, spans[-9].context.span_id) == (
        (1 << 128) - 1,
        (1 << 64) - 1,
    )
    encode_spans(spans)
    Encoder(description()).encode(Requests.joined(made))


def published(**fields: object) -> Requests:
    trace_id, span_id = bytes(range(1, 17)), bytes(range(21, 29))
    made = record(
        marked=Said.BY_THREAD, trace_id=trace_id, span_id=span_id, trace_flags=1, **fields
    )
    return Requests(made, contexts_of(made, Ids(bytes(16))), np.array([RESOURCE], object), CLOCK)


def test_the_application_s_own_span_is_linked() -> None:
    first, *stages = make(published())
    (link,) = first.links
    assert link.context.trace_id == first.context.trace_id == int.from_bytes(range(1, 17), "big")
    assert link.context.span_id == int.from_bytes(range(21, 29), "big")
    assert link.context.is_remote and link.context.trace_flags == 1
    assert first.parent is None
    assert not any(stage.links for stage in stages)
    assert "otelbpf.thread_context.trace_id" not in first.attributes
    assert encode_spans([first]).resource_spans[0].scope_spans[0].spans[0].links


def test_an_application_that_is_in_another_trace_is_told_of() -> None:
    header = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    first, *_ = make(published(traceparent=header))
    assert not first.links
    trace_id = first.attributes["otelbpf.thread_context.trace_id"]
    assert trace_id == bytes(range(1, 17)).hex()


@pytest.mark.parametrize(
    ("flag", "key"), [(RequestFlag(0), "http.route"), (RequestFlag.CLIENT, "url.template")]
)
def test_a_route_that_was_given_is_in_the_name(flag: RequestFlag, key: str) -> None:
    whole = RequestFlag.REQUEST_RECEIVED | RequestFlag.REQUEST_ANSWERED | flag
    line = {"request_line": b"GET /users/bob?x=1 HTTP/1.1", "flags": whole}
    span = make(request(**line), routes=Routes(("/users/{name}",), found_most=0))[0]
    assert (span.name, span.attributes[key]) == ("GET /users/{name}", "/users/{name}")
    span = make(request(**line), routes=Routes(("/others/{name}",), found_most=0))[0]
    assert (span.name, key in span.attributes) == ("GET", False)


@pytest.mark.parametrize(
    ("flag", "key"), [(RequestFlag(0), "http.route"), (RequestFlag.CLIENT, "url.template")]
)
def test_a_route_that_was_found_is_in_the_name_if_it_was_among_the_first(
    flag: RequestFlag, key: str
) -> None:
    whole = RequestFlag.REQUEST_RECEIVED | RequestFlag.REQUEST_ANSWERED | flag
    routes = Routes(found_most=2)
    spans = [
        make(request(flags=whole, request_line=f"GET {target} HTTP/1.1".encode()), routes=routes)[0]
        for target in ("/users/7", "http://shop.example/a?b", "/slug", "/users/8/", "/users/9", "*")
    ]
    assert [(span.name, span.attributes.get(key)) for span in spans] == [
        ("GET /users/{id}", "/users/{id}"), ("GET /a", "/a"), ("GET", None), ("GET", None),
        ("GET /users/{id}", "/users/{id}"), ("GET", None),
    ]  # fmt: skip


def test_a_path_that_was_cut_has_no_route() -> None:
    line = b"GET /" + b"a" * 187
    span = make(request(request_line=line, request_line_length=500))[0]
    assert (span.name, "http.route" in span.attributes) == ("GET", False)
