# SPDX-License-Identifier: Apache-2.0
"""Receivers of OTLP on the loopback that give the answers that a test tells them to give."""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

HOST = "127.0.0.1"
#: Collectors' default for a gRPC message.
MOST_OCTETS = 4 << 20
PROTOBUF = {"Content-Type": "application/x-protobuf"}
_SERVICES = {
    "opentelemetry.proto.collector.trace.v1.TraceService": "traces",
    "opentelemetry.proto.collector.metrics.v1.MetricsService": "metrics",
}


@dataclass(frozen=True)
class Web:
    """An HTTP answer.

    Attributes:
        pause_s: between its body's octets.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    pause_s: float = 0.0


@dataclass(frozen=True)
class Rpc:
    """A gRPC answer: OK with a body, or a status."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    trailers: tuple[tuple[str, bytes], ...] = ()
    body: bytes = b""


def partial(rejected: int, words: str = "", signal: str = "traces") -> bytes:
    """The body of a success that is none in part."""
    if signal == "metrics":
        metrics = ExportMetricsPartialSuccess(rejected_data_points=rejected, error_message=words)
        return ExportMetricsServiceResponse(partial_success=metrics).SerializeToString()
    spans = ExportTracePartialSuccess(rejected_spans=rejected, error_message=words)
    return ExportTraceServiceResponse(partial_success=spans).SerializeToString()


def retry_info(seconds: float) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata by which a gRPC server says when to ask again."""
    info, packed = RetryInfo(), Packed()
    info.retry_delay.FromNanoseconds(int(seconds * 1e9))
    packed.Pack(info)
    return (("grpc-status-details-bin", Status(code=14, details=[packed]).SerializeToString()),)


@dataclass
class Receiver:
    """What came, and what is answered.

    Attributes:
        answers: the next answers, in order; then what `otherwise` is; None: all is well.
        tries: how many messages came.
        kept: those that were answered well, as they came.
        headers: of each try.
    """

    port: int = 0
    answers: list[Web | Rpc | None] = field(default_factory=list)
    otherwise: Web | Rpc | None = None
    kept: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def tries(self) -> int:
        return len(self.headers)

    def spans(self) -> list[str]:
        """The names of the spans that came and were taken, in order."""
        return [
            span.name
            for body in self.kept
            for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]

    def metrics(self) -> list[ExportMetricsServiceRequest]:
        return [ExportMetricsServiceRequest.FromString(body) for body in self.kept]

    def answer(self, body: bytes, headers: Mapping[str, str]) -> Web | Rpc | None:
        with self.lock:
            self.headers.append({name.lower(): value for name, value in headers.items()})
            answer = self.answers.pop(0) if self.answers else self.otherwise
            if (
                answer is None
                or (isinstance(answer, Web) and 200 <= answer.status < 300)
                or (isinstance(answer, Rpc) and answer.code is grpc.StatusCode.OK)
            ):
                self.kept.append(body)
            return answer


@dataclass(frozen=True)
class Certificate:
    """A certificate that is its own authority."""

    key: Path
    certificate: Path

    @classmethod
    def make(cls, directory: Path, name: str) -> Certificate:
        """For the host `name`."""
        made = cls(directory / f"{name}.key", directory / f"{name}.pem")
        subprocess.run(
            ["openssl", "req", "-x509", "-nodes", "-days", "2", "-newkey", "ec",
             "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", made.key, "-out", made.certificate,
             "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"],
            check=True, capture_output=True,
        )  # fmt: skip
        return made


@contextlib.contextmanager
def http_receiver(certificate: Certificate | None = None) -> Iterator[Receiver]:
    """Over HTTP."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            match self.headers.get("Content-Encoding"):
                case "gzip":
                    body = gzip.decompress(body)
                case "deflate":
                    body = zlib.decompress(body)
            answer = receiver.answer(body, {**self.headers, ":path": self.path}) or Web()
            assert isinstance(answer, Web)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if not answer.pause_s:
                self.wfile.write(answer.body)
                return
            with contextlib.suppress(OSError):
                for octet in answer.body:
                    self.wfile.write(bytes([octet]))
                    receiver.closing.wait(answer.pause_s)

        def log_message(self, *_arguments: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_arguments: Any) -> None:
            """A client that does not trust us says so itself."""

    with Server((HOST, 0), Handler) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.certificate, certificate.key)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        receiver.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.closing.set()
            server.shutdown()


@contextlib.contextmanager
def grpc_receiver(
    certificate: Certificate | None = None, most_octets: int = MOST_OCTETS
) -> Iterator[Receiver]:
    """Over gRPC."""
    receiver = Receiver()

    def export(body: bytes, context: grpc.ServicerContext) -> bytes:
        answer = receiver.answer(body, dict(context.invocation_metadata())) or Rpc()
        assert isinstance(answer, Rpc)
        if answer.code is grpc.StatusCode.OK:
            return answer.body
        context.set_trailing_metadata(answer.trailers)
        context.abort(answer.code, answer.details)
        raise AssertionError("abort() returns")

    server = grpc.server(ThreadPoolExecutor(2), options=[
        ("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", most_octets)
    ])  # fmt: skip
    server.add_generic_rpc_handlers(tuple(
        grpc.method_handlers_generic_handler(
            service, {"Export": grpc.unary_unary_rpc_method_handler(export)})
        for service in _SERVICES
    ))  # fmt: skip
    if certificate is None:
        receiver.port = server.add_insecure_port(f"{HOST}:0")
    else:
        pair = certificate.key.read_bytes(), certificate.certificate.read_bytes()
        receiver.port = server.add_secure_port(f"{HOST}:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        yield receiver
    finally:
        receiver.closing.set()
        server.stop(grace=None).wait()


@contextlib.contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port of the loopback where each connection is treated like that, and then closed."""
    with socket.create_server((HOST, 0)) as listening:
        open_now: list[socket.socket] = []

        def treat(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                serve(connection)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    open_now.append(connection)
                    threading.Thread(target=treat, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            for connection in open_now:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def is_silent(connection: socket.socket) -> None:
    """Reads, and never answers."""
    while connection.recv(1 << 16):
        pass


def resets(connection: socket.socket) -> None:
    """As one whose process is killed when it has read a request of HTTP/1, or what begins 2."""
    came = connection.recv(1 << 16)
    while came.startswith(b"POST") and not _is_request(came):
        came += connection.recv(1 << 16)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _is_request(octets: bytes) -> bool:
    head, end, body = octets.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].split(b"\r")[0]
    return end != b"" and len(body) == int(length)


def closes(connection: socket.socket) -> None:
    """After the request, and without an answer."""
    connection.recv(1 << 16)


def speaks_another_language(connection: socket.socket) -> None:
    """No HTTP of any version."""
    connection.recv(1 << 16)
    connection.sendall(b"220 mail.example ESMTP\r\n")


@contextlib.contextmanager
def proxy() -> Iterator[tuple[int, list[str]]]:
    """(port, what it was asked for): an HTTP proxy that makes tunnels, and asks for others."""
    asked: list[str] = []

    def serve(connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(1 << 16)
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ", 2)
        asked.append(f"{method} {target}")
        if method == "CONNECT":
            first, to = b"", target
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            first, to = head, target.partition("://")[2].partition("/")[0]
        with socket.create_connection((HOST, int(to.rpartition(":")[2]))) as other:
            other.sendall(first)
            threading.Thread(target=_copy, args=(other, connection), daemon=True).start()
            _copy(connection, other)

    with listener(serve) as port:
        yield port, asked


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while octets := source.recv(1 << 16):
            sink.sendall(octets)
        sink.shutdown(socket.SHUT_WR)
