# SPDX-License-Identifier: Apache-2.0
"""Real servers and real instrumentations: each request's mark names its own connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref import simple_server

import pytest
import uvicorn
import waitress
from aiohttp import web
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from flask import Flask
from opentelemetry.instrumentation import fastapi as fastapi_instrumentation
from opentelemetry.instrumentation import flask as flask_instrumentation
from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as AsgiMiddleware
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware as WsgiMiddleware
from opentelemetry.util.http import ExcludeList
from plugin_lab import Kernel, Spans, ask_all, assert_each_is_its_own, kernel, plugin, sleeping
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse as StarletteResponse
from starlette.routing import Route
from werkzeug.serving import WSGIRequestHandler, make_server

from otelbpf_plugin import OtelbpfInstrumentor
from otelbpf_plugin.watch import watch

__all__ = ["kernel", "plugin", "sleeping"]  # fixtures

Serving = contextlib.AbstractContextManager[int]


class QuietWerkzeug(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        """Says nothing."""


class QuietWsgiref(simple_server.WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextlib.contextmanager
def in_thread(run: Callable[[], object], stop: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join()


@contextlib.contextmanager
def werkzeug(app: Any) -> Iterator[int]:
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=QuietWerkzeug)
    with in_thread(lambda: server.serve_forever(0.01), server.shutdown):
        yield server.port
    server.server_close()


@contextlib.contextmanager
def wsgiref(app: Any) -> Iterator[int]:
    server = simple_server.make_server("127.0.0.1", 0, app, handler_class=QuietWsgiref)
    with server, in_thread(lambda: server.serve_forever(0.01), server.shutdown):
        yield server.server_port


@contextlib.contextmanager
def djangos(app: Any) -> Iterator[int]:
    from django.core.servers import basehttp

    class Quiet(basehttp.WSGIRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with basehttp.ThreadedWSGIServer(("127.0.0.1", 0), Quiet) as server:
        server.set_app(app)
        with in_thread(lambda: server.serve_forever(0.01), server.shutdown):
            yield server.server_port


@contextlib.contextmanager
def waitresses(app: Any) -> Iterator[int]:
    sockets: dict[int, Any] = {}
    server = waitress.create_server(app, host="127.0.0.1", port=0, map=sockets, threads=4)
    stopping = threading.Event()

    def run() -> None:
        while not stopping.is_set():
            server.asyncore.loop(timeout=0.01, map=sockets, count=1)

    with in_thread(run, stopping.set):
        yield int(server.effective_port)
    server.task_dispatcher.shutdown()
    server.close()


@contextlib.contextmanager
def uvicorns(app: Any) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="warning", lifespan="off")
        server = uvicorn.Server(config)

        def stop() -> None:
            server.should_exit = True

        with in_thread(lambda: server.run([listener]), stop):
            yield listener.getsockname()[1]


@contextlib.contextmanager
def aiohttps(app: web.Application) -> Iterator[int]:
    loop = asyncio.new_event_loop()
    listener = socket.create_server(("127.0.0.1", 0))

    async def start() -> web.AppRunner:
        runner = web.AppRunner(app)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        return runner

    runner = loop.run_until_complete(start())
    port = listener.getsockname()[1]
    with in_thread(loop.run_forever, lambda: loop.call_soon_threadsafe(loop.stop)):
        yield port
    loop.run_until_complete(runner.cleanup())
    loop.close()


def hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


def flask(spans: Spans) -> Serving:
    app = Flask("test")
    app.add_url_rule("/<number>", view_func=lambda number: "hello", endpoint="hello")
    FlaskInstrumentor().instrument_app(app, tracer_provider=spans.provider)
    return werkzeug(app)


def fastapi(spans: Spans) -> Serving:
    app = FastAPI()

    @app.get("/{number}", response_class=PlainTextResponse)
    async def answer(number: str) -> str:
        return "hello"

    FastAPIInstrumentor.instrument_app(app, tracer_provider=spans.provider)
    return uvicorns(app)


def starlette(spans: Spans) -> Serving:
    async def answer(_: Request) -> StarletteResponse:
        return StarletteResponse("hello")

    app = Starlette(routes=[Route("/{number}", answer)])
    return uvicorns(AsgiMiddleware(app, tracer_provider=spans.provider))


def aiohttp(spans: Spans) -> Serving:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    AioHttpServerInstrumentor().instrument(tracer_provider=spans.provider)
    try:
        app = web.Application()
    finally:
        AioHttpServerInstrumentor().uninstrument()
    app.router.add_get("/{number}", answer)
    return aiohttps(app)


def django(spans: Spans, *, is_asgi: bool) -> Serving:
    import django as django_
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse
    from django.urls import path

    if not settings.configured:
        settings.configure(
            ROOT_URLCONF=(path("<str:number>", lambda _, number: HttpResponse("hello")),),
            ALLOWED_HOSTS=["*"],
            SECRET_KEY="of a test",
            MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
        )
        django_.setup()
    DjangoInstrumentor().instrument(tracer_provider=spans.provider)
    try:
        app = get_asgi_application() if is_asgi else get_wsgi_application()
    finally:
        DjangoInstrumentor().uninstrument()
    return uvicorns(app) if is_asgi else djangos(app)


def under(server: Callable[[Any], Serving]) -> Callable[[Spans], Serving]:
    return lambda spans: server(WsgiMiddleware(hello, tracer_provider=spans.provider))


SERVERS: dict[str, Callable[[Spans], Serving]] = {
    "flask": flask,
    "wsgiref": under(wsgiref),
    "waitress": under(waitresses),
    "django-wsgi": lambda spans: django(spans, is_asgi=False),
    "django-asgi": lambda spans: django(spans, is_asgi=True),
    "fastapi": fastapi,
    "starlette": starlette,
    "aiohttp": aiohttp,
}


@pytest.mark.parametrize("serve", SERVERS.values(), ids=SERVERS)
def test_each_request_s_mark_names_its_connection(
    kernel: Kernel, plugin: OtelbpfInstrumentor, serve: Callable[[Spans], Serving]
) -> None:
    """Behind a gateway, as uvicorn believes it to be: with X-Forwarded-For."""
    spans = Spans()
    with serve(spans) as port:
        ports = ask_all(port, {"X-Forwarded-For": "203.0.113.7"})
    assert_each_is_its_own(kernel, spans, ports)


@pytest.mark.parametrize("serve", SERVERS.values(), ids=SERVERS)
def test_a_request_to_each_wakes_it(
    kernel: Kernel, sleeping: OtelbpfInstrumentor, serve: Callable[[Spans], Serving]
) -> None:
    spans = Spans()
    with serve(spans) as port:
        kernel.measured = {port}
        ask_all(port, {"X-Forwarded-For": "203.0.113.7"})
    assert watch.is_awake
    assert set(kernel.asked) == {port}


@pytest.mark.parametrize("serve", [flask, fastapi])
def test_excluded_urls_have_no_mark(
    kernel: Kernel,
    plugin: OtelbpfInstrumentor,
    monkeypatch: pytest.MonkeyPatch,
    serve: Callable[[Spans], Serving],
) -> None:
    everything = ExcludeList([".*"])
    for instrumentation in (flask_instrumentation, fastapi_instrumentation):
        monkeypatch.setattr(instrumentation, "_excluded_urls_from_env", everything)
    spans = Spans()
    with serve(spans) as port:
        ask_all(port)
    assert not kernel.told
    assert not spans.ended
