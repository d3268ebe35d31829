# SPDX-License-Identifier: Apache-2.0
"""What the plugin costs a request where no agent runs.

    .venv/bin/python bench/plugin.py

Each part is timed around a function that does nothing, so that what the SDK itself takes (about ten
microseconds a span) does not drown it: once with the plugin's part and once without, in turns. The
least of many rounds counts. Once a second a request also asks whether it is measured: `ask`.
"""

from __future__ import annotations

import contextlib
import platform
import socket
import timeit
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import SpanKind

from otelbpf_plugin import OtelbpfPropagator, marker, proxies, spans
from otelbpf_plugin.connection import server_of

ROUNDS, CALLS = 40, 20_000
CONTEXT = Context()
WSGI = {"wsgi.version": (1, 0), "SERVER_PORT": "8080", "SERVER_PROTOCOL": "HTTP/1.1"}
ASGI = {"type": "http", "asgi": {}, "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 8080)}


class Nothing(TextMapPropagator):
    """A propagator that does nothing: what a composite takes for each is in the difference."""

    def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Context:
        return CONTEXT

    def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
        """Does nothing."""

    fields = frozenset()


class Tracer:
    """The SDK's, without what it does."""

    def start_span(
        self, name: str, context: Any = None, kind: Any = SpanKind.INTERNAL,
        attributes: Any = None, links: Any = (), start_time: Any = None,
        record_exception: bool = True, set_status_on_exception: bool = True,
    ) -> Any:
        return None


class MarkingTracer(Tracer):
    """The same, wrapped by the plugin."""

    start_span = spans.marking(Tracer.start_span)


def middleware() -> SimpleNamespace:
    """A module with a middleware like uvicorn's, without what that does."""

    class ProxyHeadersMiddleware:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            return None

    return SimpleNamespace(ProxyHeadersMiddleware=ProxyHeadersMiddleware)


def run(instance: Any) -> Callable[[], None]:
    """Calls an ASGI application that never waits."""

    def call() -> None:
        with contextlib.suppress(StopIteration):
            instance(ASGI.copy(), None, None).send(None)

    return call


def added(with_it: Callable[[], Any], without: Callable[[], Any]) -> float:
    """How many ns more the one takes than the other."""
    timers = (timeit.Timer(with_it), timeit.Timer(without))
    rounds = [[timer.timeit(CALLS) for timer in timers] for _ in range(ROUNDS)]
    least = [min(times) for times in zip(*rounds, strict=True)]
    return (least[0] - least[1]) / CALLS * 1e9


def extracting(carrier: dict[str, Any]) -> float:
    plain = CompositePropagator([Nothing()])
    ours = CompositePropagator([Nothing(), OtelbpfPropagator()])
    marker.quiet_until[server_of(carrier)] = float("inf")
    try:
        return added(lambda: ours.extract(carrier), lambda: plain.extract(carrier))
    finally:
        marker.forget()


def starting(kind: SpanKind) -> float:
    plain, ours = Tracer(), MarkingTracer()

    def call(tracer: Tracer) -> Callable[[], Any]:
        return lambda: tracer.start_span(
            name="GET /", context=CONTEXT, kind=kind, start_time=None, attributes=None
        )

    return added(call(ours), call(plain))


def keeping_the_peer() -> float:
    plain, ours = middleware(), middleware()
    proxies.keep_client(ours)
    return added(run(ours.ProxyHeadersMiddleware()), run(plain.ProxyHeadersMiddleware()))


def asking() -> float:
    with socket.socket() as any_one:
        mark = marker.MARK.pack(bytes(16), bytes(8), bytes(8), bytes(16), bytes(16), 1, 1, 0)
        fd = any_one.fileno()
        return added(lambda: marker.start("server", fd, mark), lambda: None)


def main() -> None:
    print(f"Python {platform.python_version()}, kernel {platform.release()}; ns that the plugin "
          "adds, nobody listens")
    start, inner = starting(SpanKind.SERVER), starting(SpanKind.INTERNAL)
    for name, carrier, rest in (("WSGI", WSGI, 0.0), ("ASGI", ASGI, keeping_the_peer())):
        extract = extracting(carrier)
        print(f"  {name}: extract {extract:4.0f} + start_span {start:4.0f} + end    0 + uvicorn's "
              f"middleware {rest:4.0f} = {extract + start + rest:4.0f} a request")
    print(f"  each other span: {inner:.0f}; ask, once a second: {asking():.0f}")


if __name__ == "__main__":
    main()
