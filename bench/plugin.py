# SPDX-License-Identifier: Apache-2.0
"""What the plugin costs a request where no agent runs.

    .venv/bin/python bench/plugin.py

A request is what an application has the plugin see of it: uvicorn's middleware (ASGI), the
propagators, the server span's start and its end. Those are stand-ins that do nothing, so that what
the SDK itself takes (about ten microseconds a span) does not drown the plugin's part. Each is timed
with the plugin and without, in turns, in one process; the median of many differences counts. `ask`
is what the one request takes longer that asks, once a second.
"""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import statistics
import timeit
from collections.abc import Callable
from typing import Any

from opentelemetry.context import Context
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    set_span_in_context,
)

from otelbpf_plugin import OtelbpfPropagator, proxies, spans
from otelbpf_plugin.switch import Patch, Switch
from otelbpf_plugin.watch import watch

ROUNDS, CALLS = 300, 2_000
CONTEXT = Context()
WSGI = {"wsgi.version": (1, 0), "SERVER_PORT": "8080", "SERVER_PROTOCOL": "HTTP/1.1"}
ASGI = {"type": "http", "asgi": {}, "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 8080)}


class Nothing(TextMapPropagator):
    """A propagator that does nothing."""

    def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Context:
        return CONTEXT

    def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
        """Does nothing."""

    fields = frozenset()


class Span:
    """The SDK's, without what it does."""

    def end(self, end_time: int | None = None) -> None:
        """Does nothing."""


class Application:
    """What the plugin has to do with, each part without what it does.

    Args:
        plugged: the plugin is in, as its instrumentor puts it in.
    """

    def __init__(self, plugged: bool) -> None:
        span = Span()

        class Tracer:
            def start_span(
                self, name: str, context: Any = None, kind: Any = SpanKind.INTERNAL,
                attributes: Any = None, links: Any = (), start_time: Any = None,
                record_exception: bool = True, set_status_on_exception: bool = True,
            ) -> Span:  # fmt: skip
                return span

        class ProxyHeadersMiddleware:
            def __init__(self, app: Any) -> None:
                self.app = app

            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                return await self.app(scope, receive, send)

        async def answer(scope: Any, receive: Any, send: Any) -> None:
            self.serve(scope)

        self._tracer = Tracer()
        self._asgi = ProxyHeadersMiddleware(answer)
        self._propagators = CompositePropagator([Nothing()])
        if plugged:
            self._propagators = CompositePropagator([Nothing(), OtelbpfPropagator()])
            switch = Switch()
            switch.add(Patch(Tracer, "start_span", spans.marking))
            switch.add(Patch(ProxyHeadersMiddleware, "__call__", proxies.keeping_client))
            watch.begin(switch)

    def serve(self, carrier: Any) -> None:
        context = self._propagators.extract(carrier)
        self.start(context, SpanKind.SERVER).end()

    def start(self, context: Context, kind: SpanKind) -> Span:
        return self._tracer.start_span(
            name="GET /", context=context, kind=kind, start_time=None, attributes=None
        )

    def wsgi(self) -> None:
        self.serve(WSGI)

    def asgi(self) -> None:
        with contextlib.suppress(StopIteration):  # it never waits
            self._asgi(ASGI.copy(), None, None).send(None)

    def extract(self) -> None:
        self._propagators.extract(ASGI)

    def other_span(self) -> None:
        self.start(CONTEXT, SpanKind.INTERNAL).end()

    def ask(self) -> None:
        watch.nobody_until = 0.0
        watch._quiet_until.clear()
        self._propagators.extract(ASGI)


def added(with_it: Callable[[], Any], without: Callable[[], Any]) -> float:
    """How many ns more the one takes than the other."""
    timers = (timeit.Timer(with_it), timeit.Timer(without))
    rounds = [[timer.timeit(CALLS) for timer in timers] for _ in range(ROUNDS)]
    return statistics.median(ours - plain for ours, plain in rounds) / CALLS * 1e9


def publishing() -> float | None:
    """Making a span the current one and back; None: the thread context is not installed."""
    if importlib.util.find_spec("otelbpf_thread_context") is None:
        return None
    from otelbpf_thread_context.context import PublishingContext

    span = NonRecordingSpan(SpanContext(1 << 127 | 1, 1 << 63 | 1, is_remote=False))
    context = set_span_in_context(span, CONTEXT)

    def there_and_back(current: ContextVarsRuntimeContext) -> Callable[[], None]:
        return lambda: current.detach(current.attach(context))

    return added(there_and_back(PublishingContext()), there_and_back(ContextVarsRuntimeContext()))


def main() -> None:
    print(
        f"Python {platform.python_version()}, kernel {platform.release()}; ns that the plugin "
        "adds, no agent runs"
    )
    ours, plain = Application(plugged=True), Application(plugged=False)
    wsgi, asgi, extract, other = (
        added(getattr(ours, name), getattr(plain, name))
        for name in ("wsgi", "asgi", "extract", "other_span")
    )
    print(f"  a request in total: WSGI {wsgi:.0f}, ASGI {asgi:.0f}; extract alone {extract:.0f}")
    print(f"  each other span: {other:.0f}")
    print(f"  once a second, ask: {added(ours.ask, plain.extract):.0f}")
    if watch.is_awake:
        raise SystemExit("port 8080 is measured here: these are not the figures without an agent")
    current = publishing()
    said = "otelbpf-thread-context is not installed" if current is None else f"{current:.0f}"
    print(f"  each span that is made the current one, published to the thread: {said}")


if __name__ == "__main__":
    main()
