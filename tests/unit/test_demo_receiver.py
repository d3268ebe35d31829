# SPDX-License-Identifier: Apache-2.0
"""The demo's OTLP receiver, fed by OpenTelemetry's own exporters and by bare clients."""

import http.client
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from demo.otlp import Kind, Span
from demo.receiver import Behaviour, Receiver
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, set_span_in_context

COUNT = 23
# Long enough that only a broken test waits for it.
TIMEOUT_S = 30.0
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


def exporter_of(kind: str, receiver: Receiver) -> SpanExporter:
    if kind == "grpc":
        return GrpcExporter(endpoint=receiver.grpc_endpoint, insecure=True)
    compression = Compression.Gzip if kind == "http gzip" else Compression.NoCompression
    endpoint = f"{receiver.http_endpoint}/v1/traces"
    return HttpExporter(endpoint=endpoint, compression=compression)


def emit(exporter: SpanExporter, count: int) -> list[tuple[str, str]]:
    """Send ``count`` spans, one an export; return their (trace id, span id)."""
    provider = TracerProvider(resource=Resource({"service.name": "gateway", "process.pid": 7}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("otelbpf")
    ids = []
    for number in range(count):
        span = tracer.start_span(
            "GET",
            kind=SpanKind.SERVER,
            start_time=1_000 + number,
            attributes={
                "url.path": f"/{number}",
                "http.response.status_code": 200,
                "otelbpf.ledger.complete": number % 2 == 0,
                "otelbpf.ledger.absent": ["woken", "running"],
                "ratio": 0.5,
            },
        )
        span.end(2_000 + number)
        context = span.get_span_context()
        ids.append((f"{context.trace_id:032x}", f"{context.span_id:016x}"))
    provider.shutdown()
    return ids


@pytest.mark.parametrize("kind", ["grpc", "http", "http gzip"])
def test_every_span_arrives_in_order_and_whole(receiver: Receiver, kind: str) -> None:
    ids = emit(exporter_of(kind, receiver), COUNT)

    assert receiver.wait_for(COUNT, TIMEOUT_S)
    spans = receiver.spans()
    assert len(receiver.exports()) == COUNT
    assert [(span.trace_id, span.span_id) for span in spans] == ids
    assert spans[5] == Span(
        trace_id=ids[5][0],
        span_id=ids[5][1],
        parent_span_id="",
        name="GET",
        kind=Kind.SERVER,
        start_unix_ns=1_005,
        end_unix_ns=2_005,
        attributes={
            "url.path": "/5",
            "http.response.status_code": 200,
            "otelbpf.ledger.complete": False,
            "otelbpf.ledger.absent": ["woken", "running"],
            "ratio": 0.5,
        },
        scope="otelbpf",
        resource={"service.name": "gateway", "process.pid": 7},
    )


def test_a_child_names_its_parent(receiver: Receiver) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter_of("grpc", receiver)))
    tracer = provider.get_tracer("otelbpf")
    parent = tracer.start_span("GET")
    tracer.start_span("nic_to_tc", context=set_span_in_context(parent)).end()
    parent.end()

    assert receiver.wait_for(2, TIMEOUT_S)
    child, root = receiver.spans()
    assert (child.parent_span_id, child.trace_id) == (root.span_id, root.trace_id)
    assert (child.kind, root.parent_span_id) == (Kind.INTERNAL, "")


def test_waiting_ends_when_the_last_span_comes(receiver: Receiver) -> None:
    waited: list[bool] = []
    waiter = threading.Thread(target=lambda: waited.append(receiver.wait_for(COUNT, TIMEOUT_S)))
    waiter.start()

    emit(exporter_of("grpc", receiver), COUNT - 1)
    assert not waited
    emit(exporter_of("http", receiver), 1)
    waiter.join(TIMEOUT_S)
    assert waited == [True]


def test_waiting_gives_up_in_time(receiver: Receiver) -> None:
    emit(exporter_of("grpc", receiver), COUNT)

    assert receiver.wait_for(COUNT, 0)
    assert not receiver.wait_for(COUNT + 1, 0)


def test_waiting_counts_only_what_is_asked_for(receiver: Receiver) -> None:
    emit(exporter_of("grpc", receiver), COUNT)

    def even(span: Span) -> bool:
        return span.attributes["otelbpf.ledger.complete"] is True

    assert receiver.wait_for(12, 0, even)
    assert not receiver.wait_for(13, 0, even)


def grpc_export(receiver: Receiver) -> grpc.StatusCode:
    with grpc.insecure_channel(receiver.grpc_endpoint.removeprefix("http://")) as channel:
        call = channel.unary_unary(
            EXPORT,
            request_serializer=ExportTraceServiceRequest.SerializeToString,
            response_deserializer=ExportTraceServiceResponse.FromString,
        )
        try:
            call(ExportTraceServiceRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def http_export(
    receiver: Receiver,
    path: str = "/v1/traces",
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", receiver.http_port, timeout=TIMEOUT_S)
    try:
        headers = headers or {"Content-Type": "application/x-protobuf"}
        connection.request("POST", path, body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("retryable", "grpc_code", "http_status"),
    [(True, grpc.StatusCode.UNAVAILABLE, 503), (False, grpc.StatusCode.INVALID_ARGUMENT, 400)],
)
def test_a_refused_export_is_not_kept(
    receiver: Receiver, retryable: bool, grpc_code: grpc.StatusCode, http_status: int
) -> None:
    receiver.behave(Behaviour(refuse=True, retryable=retryable))
    assert grpc_export(receiver) is grpc_code
    assert http_export(receiver) == http_status
    assert (receiver.refused, receiver.exports()) == (2, [])

    receiver.behave(Behaviour())
    assert grpc_export(receiver) is grpc.StatusCode.OK
    assert http_export(receiver) == 200
    assert (receiver.arrived, receiver.refused, len(receiver.exports())) == (4, 2, 2)


def test_a_sender_that_tries_again_gets_through(receiver: Receiver) -> None:
    receiver.behave(Behaviour(refuse=True))
    sender = threading.Thread(target=emit, args=(exporter_of("grpc", receiver), 1))
    sender.start()
    assert receiver.wait_until(lambda receiver: receiver.refused >= 1, TIMEOUT_S)
    assert receiver.spans() == []

    receiver.behave(Behaviour())
    assert receiver.wait_for(1, TIMEOUT_S)
    sender.join(TIMEOUT_S)
    assert len(receiver.spans()) == 1


@pytest.mark.parametrize("export", [grpc_export, http_export])
def test_a_delayed_export_is_answered_late(receiver: Receiver, export: object) -> None:
    receiver.behave(Behaviour(delay_s=0.2))
    before = time.monotonic()
    assert callable(export)
    assert export(receiver) in (grpc.StatusCode.OK, 200)
    assert time.monotonic() - before >= 0.2
    assert len(receiver.exports()) == 1


def test_closing_does_not_wait_for_a_delay() -> None:
    before = time.monotonic()
    with Receiver() as receiver:
        receiver.behave(Behaviour(delay_s=10 * TIMEOUT_S))
        sender = threading.Thread(target=grpc_export, args=(receiver,))
        sender.start()
        assert receiver.wait_until(lambda receiver: receiver.arrived == 1, TIMEOUT_S)
    sender.join(TIMEOUT_S)
    assert not sender.is_alive()
    assert time.monotonic() - before < TIMEOUT_S


def test_metrics_are_kept_apart(receiver: Receiver) -> None:
    message = ExportMetricsServiceRequest()
    message.resource_metrics.add().scope_metrics.add().metrics.add().name = "otelbpf.requests.seen"

    assert http_export(receiver, "/v1/metrics", message.SerializeToString()) == 200
    assert receiver.metrics() == [message]
    assert receiver.exports() == []


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/logs", b"", {"Content-Type": "application/x-protobuf"}, 404),
        ("/v1/traces", b"{}", {"Content-Type": "application/json"}, 415),
        ("/v1/traces", b"no protobuf", {"Content-Type": "application/x-protobuf"}, 400),
        (
            "/v1/traces",
            b"no gzip",
            {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"},
            400,
        ),
    ],
)
def test_what_is_no_otlp_is_an_error(
    receiver: Receiver, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    assert http_export(receiver, path, body, headers) == status
    assert receiver.exports() == []


def test_two_receivers_do_not_share_a_port(receiver: Receiver) -> None:
    with Receiver() as other:
        ports = {receiver.grpc_port, receiver.http_port, other.grpc_port, other.http_port}
        assert len(ports) == 4
        emit(exporter_of("grpc", other), 1)
        assert other.wait_for(1, TIMEOUT_S)
    assert receiver.spans() == []
