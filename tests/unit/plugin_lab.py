# SPDX-License-Identifier: Apache-2.0
"""A kernel that answers as it is told to, a tracer, and a client that knows its own ports."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id
from support.waiting import wait_until

from otelbpf_plugin import OtelbpfInstrumentor, log, marker
from otelbpf_plugin.watch import watch

COUNT = 23
#: What servers have of a request to port 8080.
ENVIRON = {"wsgi.version": (1, 0), "SERVER_PROTOCOL": "HTTP/1.1", "SERVER_PORT": "8080"}
SCOPE = {
    "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1",
    "client": ("192.0.2.1", 40_000), "server": ("192.0.2.2", 8080),
}  # fmt: skip
#: What an end of a scope's connection may be, and is no address and port.
NOT_AN_END = [
    None, (), [], ("192.0.2.9",), ("", 1), ("localhost", 1), ("192.0.2.9", None),
    ("192.0.2.9", 0), ("192.0.2.9", "0"), ("192.0.2.9", ""), ("192.0.2.9", "http"),
    ("192.0.2.9", -1), ("192.0.2.9", 65_536), ("192.0.2.9", "65536"), ("192.0.2.9", 1.0),
    ("192.0.2.9", True), ("192.0.2.9", "\u0661"), ("192.0.2.9", " 1"), ("192.0.2.9", "1_0"),
    ("192.0.2.9", "9" * 5000), ("192.0.2.9", b"1"), ("192.0.2.9", [1]), (b"192.0.2.9", 1),
    (["192.0.2.9"], 1), ("192.0.2.9:1", 1), ("192.0.2", 1), ("[::1]", 1), ("\0", 1), (":\ud800", 1),
    "192.0.2.9:1", b"192.0.2.9", 1, {"host": "192.0.2.9", "port": 1}, {1: 2},
]  # fmt: skip
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e{:04x}", "00f067aa0ba9{:04x}"


@dataclass(frozen=True)
class Told:
    """One mark.

    Attributes:
        option: marker.START or marker.END.
        peer: the address and port of the connection that it is about.
        own_socket: it came on that connection itself.
    """

    option: int
    trace_id: str
    span_id: str
    parent_span_id: str
    flags: int
    peer: tuple[str, int]
    own_socket: bool
    mark: bytes = field(repr=False)


class Kernel:
    """Stands for the program that answers setsockopt().

    Attributes:
        answer: to each START of a port that is measured; 0: the request was found.
        measured: the ports, for all that have been told or asked about; None: each.
        asked: the ports that it was asked about, but not that whether there is any.
        known: the connections that it says it knows: both addresses packed, both ports.
        asked_of: those that it was asked about.
    """

    def __init__(self) -> None:
        self.answer = marker.JOINED
        self.measured: set[int] | None = None
        self.told: list[Told] = []
        self.asked: list[int] = []
        self.known: set[tuple[bytes, bytes, int, int]] = set()
        self.asked_of: list[tuple[bytes, bytes, int, int]] = []

    def _measures(self, port: int) -> bool:
        """As bpf/hooks/mark.c: port 0 stands for any."""
        return self.measured is None or (port in self.measured if port else bool(self.measured))

    def tell(self, fd: int, option: int, mark: bytes) -> int:
        trace_id, span_id, caller, peer, local, peer_port, port, flags = marker.MARK.unpack(mark)
        if option == marker.ASK and peer_port:
            self.asked_of.append((peer, local, peer_port, port))
            return 0 if self.asked_of[-1] in self.known else errno.ENOPROTOOPT
        if option == marker.ASK:
            self.asked += [port] if port else []
            return 0 if self._measures(port) else errno.ENOPROTOOPT
        if peer_port:
            address = socket.inet_ntop(socket.AF_INET6, peer).removeprefix("::ffff:")
        else:
            with socket.socket(fileno=os.dup(fd)) as own:
                address, peer_port = own.getpeername()[:2]
                port = own.getsockname()[1]
        self.told.append(
            Told(
                option, trace_id.hex(), span_id.hex(), caller.hex(), flags,
                (address.removeprefix("::ffff:"), peer_port), not any(peer), mark,
            )
        )  # fmt: skip
        return self.answer if self._measures(port) else errno.ENOPROTOOPT

    @property
    def starts(self) -> list[Told]:
        return [told for told in self.told if told.option == marker.START]

    @property
    def ends(self) -> list[Told]:
        return [told for told in self.told if told.option == marker.END]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A kernel that finds each request."""
    made = Kernel()
    monkeypatch.setattr(marker, "tell", made.tell)
    monkeypatch.setattr(log, "_said", set())
    return made


@pytest.fixture
def sleeping(kernel: Kernel) -> Iterator[OtelbpfInstrumentor]:
    """The plugin in this process, for the time of a test. Nothing has come yet."""
    instrumentor = OtelbpfInstrumentor()
    instrumentor.instrument()
    try:
        yield instrumentor
    finally:
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument()


@pytest.fixture
def plugin(kernel: Kernel, sleeping: OtelbpfInstrumentor) -> OtelbpfInstrumentor:
    """The same, woken."""
    watch.ask("some server", 1)
    assert watch.is_awake
    kernel.asked.clear()
    return sleeping


class Spans:
    """A tracer provider that keeps its spans."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    @property
    def ended(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    @property
    def servers(self) -> list[ReadableSpan]:
        return [span for span in self.ended if span.kind is SpanKind.SERVER]

    def clear(self) -> None:
        self._exporter.clear()


def ids(span: ReadableSpan) -> tuple[str, str]:
    """A span's trace and its parent's id; empty: it has none."""
    parent = format_span_id(span.parent.span_id) if span.parent else ""
    return format_trace_id(span.context.trace_id), parent


def traceparent(number: int, flags: str = "01") -> str:
    return f"00-{TRACE.format(number)}-{CALLER.format(number)}-{flags}"


def ask_all(port: int, headers: dict[str, str] | None = None) -> dict[str, int]:
    """23 requests from four threads, each with a caller of its own.

    Returns:
        By the caller's span id, the port that the request came from.
    """
    ports: dict[str, int] = {}

    def ask(first: int) -> None:
        with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            for number in range(first, COUNT, 4):
                connection.connect()
                ports[CALLER.format(number)] = connection.sock.getsockname()[1]
                connection.request(
                    "GET", f"/{number}",
                    headers={"traceparent": traceparent(number), **(headers or {})},
                )  # fmt: skip
                response = connection.getresponse()
                assert (response.status, response.read()) == (200, b"hello")
                connection.close()

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ports) == COUNT
    return ports


def assert_each_is_its_own(kernel: Kernel, spans: Spans, ports: dict[str, int]) -> None:
    """Each mark is of the right connection, and each server span below the mark's span."""
    # A span may end after the answer has come.
    wait_until(lambda: len(spans.servers) == COUNT, "all spans ended")
    assert len(kernel.starts) == COUNT
    assert {told.parent_span_id: told.peer for told in kernel.starts} == {
        caller: ("127.0.0.1", port) for caller, port in ports.items()
    }
    expected = {(told.trace_id, told.span_id) for told in kernel.starts}
    assert len(expected) == COUNT
    assert {ids(span) for span in spans.servers} == expected
    assert {told.trace_id for told in kernel.starts} == {TRACE.format(n) for n in range(COUNT)}
    assert sorted(told.mark for told in kernel.ends) == sorted(told.mark for told in kernel.starts)
