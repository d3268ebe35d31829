# SPDX-License-Identifier: Apache-2.0
"""What each answer of a receiver is taken for: gRPC and HTTP, by the official exporters' ways."""

from __future__ import annotations

import ast
import email.utils
import inspect
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import samples
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (
    OTLPMetricExporter as GrpcMetricExporter,
)
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcSpanExporter,
)
from opentelemetry.exporter.otlp.proto.http.metric_exporter import (
    OTLPMetricExporter as HttpMetricExporter,
)
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter as HttpSpanExporter,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from support.misbehaving import (
    PROTOBUF,
    Certificate,
    Receiver,
    Rpc,
    Web,
    closes,
    grpc_receiver,
    http_receiver,
    is_silent,
    listener,
    partial,
    proxy,
    resets,
    retry_info,
    speaks_another_language,
)

from otelbpf.export import doors, ways_out
from otelbpf.export.answers import Answer, Verdict
from otelbpf.export.doors import MOST_OCTETS, GrpcDoor, HttpDoor, door_of
from otelbpf.export.exporters import Signal
from otelbpf.export.ways_out import spans_way_out
from otelbpf.traces.encode import Encoder
from otelbpf.traces.spans import readable_spans

TAKEN, LATER, TOO_LARGE, REFUSED = Verdict
LONG_S = 30.0
Code = grpc.StatusCode
GRPC, HTTP = "grpc", "http/protobuf"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("", "_TRACES", "_METRICS"):
        for what in ("ENDPOINT", "HEADERS", "COMPRESSION", "CERTIFICATE", "TIMEOUT", "INSECURE"):
            monkeypatch.delenv(f"OTEL_EXPORTER_OTLP{name}_{what}", raising=False)
    for name in (
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "grpc_proxy",
        "no_grpc_proxy",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def message() -> bytes:
    """What a request's spans become."""
    return Encoder(samples.description()).encode(samples.requests())


def door(
    protocol: str, port: int, scheme: str = "http", host: str = "127.0.0.1"
) -> GrpcDoor | HttpDoor:
    exporter = (
        GrpcSpanExporter(f"{scheme}://{host}:{port}")
        if protocol == GRPC
        else HttpSpanExporter(f"{scheme}://{host}:{port}/v1/traces")
    )
    found = door_of(exporter, Signal.TRACES)
    assert isinstance(found, GrpcDoor if protocol == GRPC else HttpDoor)
    return found


def ask(
    protocol: str, port: int, message: bytes, scheme: str = "http", host: str = "127.0.0.1"
) -> Answer:
    made = door(protocol, port, scheme, host)
    try:
        return made.send(message, LONG_S)
    finally:
        made.close()


@pytest.fixture
def web() -> Iterator[Receiver]:
    with http_receiver() as receiver:
        yield receiver


@pytest.fixture
def rpc() -> Iterator[Receiver]:
    with grpc_receiver() as receiver:
        yield receiver


def status(words: str) -> bytes:
    return Status(code=3, message=words).SerializeToString()


HTML = b"<html><head><style>p {}</style><title>502 Bad Gateway</title></head><body>nginx\n</body>"

WEB_ANSWERS: list[tuple[Web, Answer]] = [
    (Web(), Answer(TAKEN)),
    (Web(202), Answer(TAKEN)),
    (Web(204), Answer(TAKEN)),
    (Web(200, PROTOBUF, partial(18, "too old")), Answer(TAKEN, "too old", 18)),
    (Web(200, PROTOBUF, partial(0, "use v2")), Answer(TAKEN, "use v2")),
    (Web(200, PROTOBUF, partial(-5)), Answer(TAKEN)),
    (Web(200, {"Content-Type": "application/json"},
         b'{"partialSuccess":{"rejectedSpans":"3","errorMessage":"x","new":1}}'),
     Answer(TAKEN, "x", 3)),
    (Web(200, {"Content-Type": "application/json"}, b"ok"), Answer(TAKEN)),
    (Web(200, {"Content-Type": "text/html"}, HTML), Answer(TAKEN)),
    (Web(301, {"Location": "http://else.example/"}),
     Answer(REFUSED, "HTTP 301 Moved Permanently: to http://else.example/")),
    (Web(302), Answer(REFUSED, "HTTP 302 Found")),
    (Web(304), Answer(REFUSED, "HTTP 304 Not Modified")),
    (Web(307), Answer(REFUSED, "HTTP 307 Temporary Redirect")),
    (Web(308), Answer(REFUSED, "HTTP 308 Permanent Redirect")),
    (Web(400, PROTOBUF, status("bad\n data")), Answer(REFUSED, "HTTP 400 Bad Request: bad data")),
    (Web(400, PROTOBUF, status("http: request body too large")),
     Answer(TOO_LARGE, "HTTP 400 Bad Request: http: request body too large")),
    (Web(400, PROTOBUF, b"no status\xff"), Answer(REFUSED, "HTTP 400 Bad Request")),
    (Web(401, {"Content-Type": "application/json"}, b'{"message":"no such token"}'),
     Answer(REFUSED, "HTTP 401 Unauthorized: no such token")),
    (Web(403, {"Content-Type": "application/json"}, b'{"error": "no"}'),
     Answer(REFUSED, 'HTTP 403 Forbidden: {"error": "no"}')),
    (Web(404, {}, b"404 page not found\n\x1b[31m"),
     Answer(REFUSED, "HTTP 404 Not Found: 404 page not found [31m")),
    (Web(405), Answer(REFUSED, "HTTP 405 Method Not Allowed")),
    (Web(413), Answer(TOO_LARGE, "HTTP 413 Request Entity Too Large")),
    (Web(415), Answer(REFUSED, "HTTP 415 Unsupported Media Type")),
    (Web(431, {}, b"too large"),
     Answer(REFUSED, "HTTP 431 Request Header Fields Too Large: too large")),
    (Web(429), Answer(LATER, "HTTP 429 Too Many Requests")),
    (Web(429, {"Retry-After": "7"}), Answer(LATER, "HTTP 429 Too Many Requests", after_s=7.0)),
    (Web(429, {"Retry-After": "soon"}), Answer(LATER, "HTTP 429 Too Many Requests")),
    (Web(429, {"Retry-After": "-1"}), Answer(LATER, "HTTP 429 Too Many Requests")),
    (Web(429, {"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}),
     Answer(LATER, "HTTP 429 Too Many Requests", after_s=0.0)),
    (Web(500, {}, b"x" * 1000),
     Answer(REFUSED, "HTTP 500 Internal Server Error: " + "x" * 300 + "…")),
    (Web(501), Answer(REFUSED, "HTTP 501 Not Implemented")),
    (Web(502, {"Content-Type": "text/html; charset=utf-8"}, HTML),
     Answer(LATER, "HTTP 502 Bad Gateway: 502 Bad Gateway nginx")),
    (Web(503, {"Retry-After": "0"}), Answer(LATER, "HTTP 503 Service Unavailable", after_s=0.0)),
    (Web(504), Answer(LATER, "HTTP 504 Gateway Timeout")),
]  # fmt: skip

RPC_ANSWERS: list[tuple[Rpc, Answer]] = [
    (Rpc(), Answer(TAKEN)),
    (Rpc(body=partial(18, "too old")), Answer(TAKEN, "too old", 18)),
    (Rpc(body=partial(0, "use v2")), Answer(TAKEN, "use v2")),
    (Rpc(body=b"\xff"), Answer(TAKEN)),
    *((Rpc(code, "why"), Answer(REFUSED, f"gRPC {code.name}: why")) for code in (
        Code.UNKNOWN, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED, Code.FAILED_PRECONDITION, Code.UNIMPLEMENTED, Code.INTERNAL,
        Code.UNAUTHENTICATED)),
    *((Rpc(code, "why"), Answer(LATER, f"gRPC {code.name}: why")) for code in (
        Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.OUT_OF_RANGE,
        Code.UNAVAILABLE, Code.DATA_LOSS)),
    (Rpc(Code.UNAVAILABLE, "", retry_info(2.5)), Answer(LATER, "gRPC UNAVAILABLE", after_s=2.5)),
    (Rpc(Code.UNAVAILABLE, "", (("grpc-status-details-bin", b"\xff"),)),
     Answer(LATER, "gRPC UNAVAILABLE")),
    (Rpc(Code.RESOURCE_EXHAUSTED, "quota"), Answer(REFUSED, "gRPC RESOURCE_EXHAUSTED: quota")),
    (Rpc(Code.RESOURCE_EXHAUSTED, "quota", retry_info(0.5)),
     Answer(LATER, "gRPC RESOURCE_EXHAUSTED: quota", after_s=0.5)),
    # Go, C, Java, Rust; and nginx, in the words of gRPC itself.
    *((Rpc(code, words), Answer(TOO_LARGE, f"gRPC {code.name}: {words}")) for code, words in (
        (Code.RESOURCE_EXHAUSTED, "grpc: received message larger than max (5 vs. 4)"),
        (Code.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (5 vs. 4)"),
        (Code.RESOURCE_EXHAUSTED, "gRPC message exceeds maximum size 4: 5"),
        (Code.OUT_OF_RANGE, "Error, decoded message length too large: found 5 bytes"),
        (Code.UNKNOWN, "Received http2 header with status: 413"))),
]  # fmt: skip


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
@pytest.mark.parametrize(
    ("answer", "expected"),
    WEB_ANSWERS,
    ids=[f"{n}-{web.status}" for n, (web, _) in enumerate(WEB_ANSWERS)],
)
def test_http(
    web: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    message: bytes,
    compression: str,
    answer: Web,
    expected: Answer,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    web.otherwise = answer
    assert ask(HTTP, web.port, message) == expected
    (headers,) = web.headers
    assert headers.get("content-encoding", "none") == compression
    assert headers["content-type"] == "application/x-protobuf"
    assert headers[":path"] == "/v1/traces"
    assert web.kept == ([message] if expected.verdict is TAKEN else [])


def test_a_date_to_come_again_at(web: Receiver, message: bytes) -> None:
    at = email.utils.formatdate(time.time() + 100, usegmt=True)
    web.otherwise = Web(503, {"Retry-After": at})
    after_s = ask(HTTP, web.port, message).after_s
    assert after_s is not None
    assert 0 < after_s <= 100


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize(
    ("answer", "expected"),
    RPC_ANSWERS,
    ids=[f"{n}-{rpc.code.name}" for n, (rpc, _) in enumerate(RPC_ANSWERS)],
)
def test_grpc(
    rpc: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    message: bytes,
    compression: str,
    answer: Rpc,
    expected: Answer,
) -> None:
    if compression == "gzip":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    rpc.otherwise = answer
    assert ask(GRPC, rpc.port, message) == expected
    assert rpc.tries == 1
    assert rpc.kept == ([message] if expected.verdict is TAKEN else [])


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_metrics(monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    """Their own service and path, and rejected points in place of rejected spans."""
    make = grpc_receiver if protocol == GRPC else http_receiver
    with make() as receiver:
        body = partial(4, "no", "metrics")
        receiver.otherwise = Rpc(body=body) if protocol == GRPC else Web(200, PROTOBUF, body)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.port}")
        exporter = GrpcMetricExporter() if protocol == GRPC else HttpMetricExporter()
        made = door_of(exporter, Signal.METRICS)
        assert made is not None
        assert made.send(b"", LONG_S) == Answer(TAKEN, "no", 4)
        made.close()
    if protocol == HTTP:
        assert receiver.headers[0][":path"] == "/v1/metrics"


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_headers_of_the_variables(
    monkeypatch: pytest.MonkeyPatch, message: bytes, protocol: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=s3cret,x-tenant=a%20b")
    with (grpc_receiver if protocol == GRPC else http_receiver)() as receiver:
        assert ask(protocol, receiver.port, message).verdict is TAKEN
    (headers,) = receiver.headers
    assert (headers["x-api-key"], headers["x-tenant"]) == ("s3cret", "a b")
    assert "OTel-OTLP-Exporter-Python" in headers["user-agent"]


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_too_much_for_any_is_not_sent(message: bytes, protocol: str) -> None:
    """It may still be taken in halves."""
    with (grpc_receiver if protocol == GRPC else http_receiver)() as receiver:
        beyond = message + bytes(MOST_OCTETS)
        answer = ask(protocol, receiver.port, beyond)
    assert (answer.verdict, receiver.tries) == (TOO_LARGE, 0)
    assert answer.reason == f"{len(beyond):,} bytes are more than collectors take"


def test_a_server_that_takes_less(message: bytes) -> None:
    """By gRPC's own words."""
    with grpc_receiver(most_octets=len(message) - 1) as receiver:
        answer = ask(GRPC, receiver.port, message)
    assert (answer.verdict, receiver.tries) == (TOO_LARGE, 0)
    assert "larger than max" in answer.reason


# --- no answer at all ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("serve", "protocol", "words"),
    [
        (None, GRPC, "Connection refused"),
        (None, HTTP, "Connection refused"),
        (resets, GRPC, "reset by peer"),
        (resets, HTTP, "reset by peer"),
        (closes, GRPC, "Socket closed"),
        (closes, HTTP, "closed connection without response"),
        (speaks_another_language, GRPC, "Failed parsing HTTP/2"),
        (speaks_another_language, HTTP, "BadStatusLine: 220 mail.example"),
    ],
)  # fmt: skip
def test_nothing_that_is_an_answer(
    message: bytes, serve: Callable[..., None] | None, protocol: str, words: str
) -> None:
    with listener(serve or closes) as port:
        if serve is not None:
            answer = ask(protocol, port, message)
    if serve is None:  # the port is free again
        answer = ask(protocol, port, message)
    assert answer.verdict is LATER
    assert words in answer.reason
    assert "\n" not in answer.reason


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_a_name_that_nobody_knows(message: bytes, protocol: str) -> None:
    answer = ask(protocol, 4317, message, host="no-such-host.invalid")
    assert answer.verdict is LATER
    assert "gRPC UNAVAILABLE: " in answer.reason or answer.reason.startswith("ConnectionError: ")


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_one_that_is_silent_is_waited_for_as_the_variable_says(
    monkeypatch: pytest.MonkeyPatch, message: bytes, protocol: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    with listener(is_silent) as port:
        begin = time.monotonic()
        answer = ask(protocol, port, message)
    assert answer.verdict is LATER
    assert 0.2 <= time.monotonic() - begin < LONG_S
    assert answer.reason == (
        "gRPC DEADLINE_EXCEEDED: Deadline Exceeded" if protocol == GRPC
        else "ReadTimeout: TimeoutError: timed out"
    )  # fmt: skip


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_and_no_longer_than_who_asks_has_time(message: bytes, protocol: str) -> None:
    with listener(is_silent) as port:
        made = door(protocol, port)
        begin = time.monotonic()
        assert made.send(message, 0.2).verdict is LATER
        assert time.monotonic() - begin < 9  # the exporters' own time-out is 10 s
        made.close()


@pytest.mark.parametrize(("code", "verdict"), [(200, TAKEN), (400, REFUSED), (503, LATER)])
def test_a_body_without_end_is_not_waited_for(
    web: Receiver, monkeypatch: pytest.MonkeyPatch, message: bytes, code: int, verdict: Verdict
) -> None:
    """Each of its octets comes in time, all of them in a day; the status was said."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.3")
    web.answers = [Web(code, {}, b"w" * 1_000_000, pause_s=0.1)]
    made = door(HTTP, web.port)
    begin = time.monotonic()
    assert made.send(message, LONG_S).verdict is verdict
    assert time.monotonic() - begin < 10
    # And what is left of it is no part of the next answer.
    assert made.send(message, LONG_S) == Answer(TAKEN)
    made.close()


def test_a_body_that_is_far_too_long_is_not_read(web: Receiver, message: bytes) -> None:
    web.otherwise = Web(403, {}, b"no " * (8 << 20))
    answer = ask(HTTP, web.port, message)
    assert answer.verdict is REFUSED
    assert len(answer.reason) < 400


def test_an_old_connection_that_was_closed_is_opened_again_at_once(
    web: Receiver, message: bytes
) -> None:
    """Without a word; on a new one a closed connection is an answer."""
    made = door(HTTP, web.port)
    assert made.send(message, LONG_S).verdict is TAKEN
    real_post, calls = made._post, []

    def cut_off_once(octets: bytes, end: float) -> object:
        import requests
        import urllib3

        calls.append(octets)
        if len(calls) == 1:
            raise requests.ConnectionError(urllib3.exceptions.ProtocolError("Connection aborted."))
        return real_post(octets, end)

    made._post = cut_off_once
    assert made.send(message, LONG_S).verdict is TAKEN
    assert (len(calls), web.tries) == (2, 2)
    made.close()


def test_what_cannot_be_asked_is_refused(monkeypatch: pytest.MonkeyPatch, message: bytes) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x=a%0Ab")
    answer = ask(HTTP, 9, message)
    assert answer.verdict is REFUSED
    assert answer.reason.startswith("InvalidHeader: ")


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Certificate]:
    directory = tmp_path_factory.mktemp("certificates")
    return {name: Certificate.make(directory, name) for name in ("localhost", "else.example")}


@pytest.mark.impure
@pytest.mark.parametrize("bundle", [None, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize(
    ("of_server", "trusted", "protocol", "words"),
    [
        ("localhost", "localhost", GRPC, ""),
        ("localhost", "localhost", HTTP, ""),
        ("localhost", "else.example", GRPC, "CERTIFICATE_VERIFY_FAILED"),
        ("localhost", "else.example", HTTP, "CERTIFICATE_VERIFY_FAILED"),
        ("else.example", "else.example", GRPC, "Hostname Verification Check failed"),
        ("else.example", "else.example", HTTP, "certificate is not valid for 'localhost'"),
    ],
)  # fmt: skip
def test_tls(
    certificates: dict[str, Certificate],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    message: bytes,
    of_server: str,
    trusted: str,
    protocol: str,
    words: str,
    bundle: str | None,
) -> None:
    """Whatever other programs are told to trust."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(certificates[trusted].certificate))
    if bundle is not None:
        others = "else.example" if trusted == "localhost" else "localhost"
        monkeypatch.setenv(bundle, str(certificates[others].certificate))
    make = grpc_receiver if protocol == GRPC else http_receiver
    with make(certificates[of_server]) as receiver:
        answer = ask(protocol, receiver.port, message, "https", "localhost")
    if words:
        assert answer.verdict is LATER
        assert words in answer.reason
        assert receiver.tries == 0
    else:
        assert answer == Answer(TAKEN)
        assert receiver.kept == [message]


@pytest.mark.impure
def test_the_bundle_of_other_programs_holds_where_no_certificate_is_named(
    certificates: dict[str, Certificate], monkeypatch: pytest.MonkeyPatch, message: bytes
) -> None:
    made = certificates["localhost"]
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(made.certificate))
    with http_receiver(made) as receiver:
        assert ask(HTTP, receiver.port, message, "https", "localhost") == Answer(TAKEN)


@pytest.mark.impure
@pytest.mark.parametrize("protocol", [GRPC, HTTP])
@pytest.mark.parametrize("tls_where", ["here", "there"])
def test_tls_on_one_side_only(
    certificates: dict[str, Certificate],
    monkeypatch: pytest.MonkeyPatch,
    message: bytes,
    protocol: str,
    tls_where: str,
) -> None:
    made = certificates["localhost"]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(made.certificate))
    make = grpc_receiver if protocol == GRPC else http_receiver
    with make(made if tls_where == "there" else None) as receiver:
        scheme = "https" if tls_where == "here" else "http"
        answer = ask(protocol, receiver.port, message, scheme, "localhost")
    assert answer.verdict is LATER
    assert receiver.tries == 0
    if tls_where == "here":
        assert "WRONG_VERSION_NUMBER" in answer.reason or "EOF" in answer.reason


# --- proxies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_a_proxy(monkeypatch: pytest.MonkeyPatch, message: bytes, protocol: str) -> None:
    make = grpc_receiver if protocol == GRPC else http_receiver
    with make() as receiver, proxy() as (port, asked):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        assert ask(protocol, receiver.port, message, host="localhost") == Answer(TAKEN)
    assert receiver.kept == [message]
    assert asked == [
        f"CONNECT localhost:{receiver.port}"
        if protocol == GRPC
        else f"POST http://localhost:{receiver.port}/v1/traces"
    ]


@pytest.mark.impure
def test_tls_through_a_proxy(
    certificates: dict[str, Certificate], monkeypatch: pytest.MonkeyPatch, message: bytes
) -> None:
    made = certificates["localhost"]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(made.certificate))
    with http_receiver(made) as receiver, proxy() as (port, asked):
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        assert ask(HTTP, receiver.port, message, "https", "localhost") == Answer(TAKEN)
    assert asked == [f"CONNECT localhost:{receiver.port}"]


def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch, message: bytes) -> None:
    with listener(closes) as port:
        pass
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    answer = ask(HTTP, 9, message)
    assert answer.verdict is LATER
    assert answer.reason == "ProxyError: ConnectionRefusedError: [Errno 111] Connection refused"


# --- the exporters' attributes that are not public ------------------------------------------------

PRIVATE = [
    (GrpcSpanExporter, GRPC, name)
    for name in ("_channel", "_headers", "_timeout", "_initialize_channel_and_stub")
] + [
    (HttpSpanExporter, HTTP, name)
    for name in ("_client", "_client._transport", "_client._transport._session",
                 "_client._compress", "_client._endpoint", "_client._headers", "_client._timeout")
]  # fmt: skip


class Without:
    """Another object without one of its attributes."""

    def __init__(self, whole: object, name: str) -> None:
        first, _, rest = name.partition(".")
        self._whole, self._first, self._rest = whole, first, rest

    def __getattr__(self, name: str) -> object:
        if name != self._first:
            return getattr(self._whole, name)
        if not self._rest:
            raise AttributeError(name)
        return Without(getattr(self._whole, name), self._rest)


def test_each_of_them_is_named_here() -> None:
    """All that the doors use of an object that is not theirs and begins with an underscore."""
    used = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(doors)))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }
    assert used == {name.rpartition(".")[2] for _, _, name in PRIVATE}


@pytest.mark.parametrize(
    ("exporter", "protocol", "name"),
    PRIVATE,
    ids=[f"{protocol}{name}" for _, protocol, name in PRIVATE],
)
def test_without_one_of_them_there_is_no_door(
    exporter: type,
    protocol: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """So that a new version of an exporter is used as it was before there were doors."""
    made = exporter()
    assert door_of(made, Signal.TRACES) is not None
    without = Without(made, name)
    assert door_of(without, Signal.TRACES) is None
    assert_by_export(without, monkeypatch, caplog)
    made.shutdown()


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_nor_where_it_is_not_said_that_bodies_are_compressed(
    compression: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By headers that the exporter has before it sends anything."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    made = HttpSpanExporter()
    assert door_of(made, Signal.TRACES) is not None
    assert made._client._headers.pop("Content-Encoding") == compression
    assert door_of(made, Signal.TRACES) is None
    assert_by_export(made, monkeypatch, caplog)
    made.shutdown()


def assert_by_export(
    exporter: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is given the SDK's spans, by its own export(), which is said once."""
    given: list[object] = []
    monkeypatch.setattr(ways_out, "load_exporter", lambda *_: exporter)
    monkeypatch.setattr(
        type(getattr(exporter, "_whole", exporter)),
        "export",
        lambda _, spans: given.append(spans) or SpanExportResult.SUCCESS,
    )
    way_out = spans_way_out("otlp_proto_http", samples.description())
    assert way_out is not None
    for _ in range(2):
        assert way_out.door.send(way_out.form(samples.requests()), LONG_S) == Answer(TAKEN)
    assert [[type(span) for span in spans] for spans in given] == [
        [ReadableSpan] * len(readable_spans(samples.description(), samples.requests()))
    ] * 2
    (message,) = caplog.messages
    assert message.startswith("the exporter of traces is of a version that otelbpf does not know: ")


def test_other_exporters_have_none() -> None:
    assert door_of(object(), Signal.TRACES) is None


# --- channels and closing -----------------------------------------------------------------------


def test_a_channel_that_could_not_connect_is_opened_anew(message: bytes) -> None:
    """By itself it would not try again for a second, later for two minutes."""
    with listener(closes) as port:
        pass
    made = door(GRPC, port)
    channel = made._exporter._channel
    assert made.send(message, LONG_S).verdict is LATER
    assert made._exporter._channel is not channel
    made.close()


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_what_was_closed_sends_nothing(message: bytes, protocol: str) -> None:
    with (grpc_receiver if protocol == GRPC else http_receiver)() as receiver:
        made = door(protocol, receiver.port)
        made.close()
        answer = made.send(message, LONG_S)
    assert (answer.verdict, receiver.tries) == (LATER, 0)
    assert "closed" in answer.reason


def test_closing_ends_what_is_under_way(message: bytes) -> None:
    """Over gRPC; over HTTP it goes on until its time is up."""
    reading, answers = threading.Event(), []

    def is_read(connection: socket.socket) -> None:
        reading.set()
        is_silent(connection)

    with listener(is_read) as port:
        made = door(GRPC, port)
        thread = threading.Thread(target=lambda: answers.append(made.send(message, LONG_S)))
        thread.start()
        assert reading.wait(LONG_S)
        made.close()
        thread.join(5)  # half of the exporters' own time-out
        assert not thread.is_alive()
    assert [answer.verdict for answer in answers] == [LATER]


def test_a_channel_is_not_opened_anew_after_the_end(message: bytes) -> None:
    """The answer may come when it was closed already."""
    with listener(closes) as port:
        made = door(GRPC, port)
        made.close()
        channel = made._exporter._channel
        made._renew()
        assert made._exporter._channel is channel
