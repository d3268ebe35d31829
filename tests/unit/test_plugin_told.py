# SPDX-License-Identifier: Apache-2.0
"""Of requests that could have been joined, and cannot: it is told why, once."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from opentelemetry import propagate
from opentelemetry.trace import SpanKind
from plugin_lab import ENVIRON, NOT_AN_END, SCOPE, Kernel, Spans, ids, kernel, plugin, sleeping

from otelbpf_plugin import OtelbpfInstrumentor
from otelbpf_plugin.watch import watch

__all__ = ["kernel", "plugin", "sleeping"]  # fixtures

PORT, OTHER = 8080, 8081
UNIX = {**SCOPE, "client": None, "server": ("/run/app.sock", None)}
NO_PEER = {**SCOPE, "client": ("203.0.113.7", 0)}
NO_LOCAL = {**SCOPE, "server": None}
NO_SOCKET = {**ENVIRON, "wsgi.input": io.BytesIO()}
CARRIERS = {"no peer": NO_PEER, "no local": NO_LOCAL, "no socket": NO_SOCKET}

each_carrier = pytest.mark.parametrize("carrier", CARRIERS.values(), ids=CARRIERS)


def serve(carrier: Any) -> None:
    """23 requests, which are not joined."""
    made = Spans()
    for _ in range(23):
        made.tracer.start_span("GET /", propagate.extract(carrier), SpanKind.SERVER).end()
    assert {ids(span)[1] for span in made.ended} == {""}


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert not any(record.exc_info for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


@each_carrier
def test_it_is_told_once(
    kernel: Kernel, plugin: OtelbpfInstrumentor, caplog: pytest.LogCaptureFixture, carrier: Any
) -> None:
    serve(carrier)
    (message,) = told(caplog)
    assert message.startswith("does not join requests")
    assert not kernel.told


def test_each_reason_is_told(
    kernel: Kernel, plugin: OtelbpfInstrumentor, caplog: pytest.LogCaptureFixture
) -> None:
    for carrier in (*CARRIERS.values(), *CARRIERS.values()):
        propagate.extract(carrier)
        watch._quiet_until.clear()
    assert len(told(caplog)) == len(CARRIERS)


@pytest.mark.parametrize("carrier", [NO_PEER, NO_SOCKET], ids=["no peer", "no socket"])
def test_of_a_server_that_nobody_measures_nothing_is_told(
    kernel: Kernel, plugin: OtelbpfInstrumentor, caplog: pytest.LogCaptureFixture, carrier: Any
) -> None:
    kernel.measured = {OTHER}
    serve(carrier)
    assert kernel.asked.count(PORT) == 1  # and then it is left alone for a while
    assert not told(caplog)


@pytest.mark.parametrize("measured", [set(), {OTHER}, {PORT}], ids=["nobody", "another", "it"])
@pytest.mark.parametrize("carrier", [NO_LOCAL, NO_SOCKET], ids=["no local", "no socket"])
def test_asleep(
    kernel: Kernel,
    sleeping: OtelbpfInstrumentor,
    caplog: pytest.LogCaptureFixture,
    carrier: Any,
    measured: set[int],
) -> None:
    """A port that is not known may be the one that somebody measures."""
    kernel.measured = measured
    serve(carrier)
    is_told = PORT in measured or (measured and carrier is NO_LOCAL)
    assert len(told(caplog)) == bool(is_told)
    assert watch.is_awake == (PORT in measured and carrier is NO_SOCKET)
    assert not kernel.told


@pytest.mark.parametrize("fixture", ["plugin", "sleeping"])
@pytest.mark.parametrize("carrier", [
    UNIX, {**SCOPE, "http_version": "2"}, {**ENVIRON, "SERVER_PORT": "0"},
    {**ENVIRON, "gunicorn.socket": None}, {"traceparent": "x"},
], ids=["unix", "http2", "wsgi by unix", "client has gone", "headers"])  # fmt: skip
def test_what_came_on_no_connection_is_not_told(
    kernel: Kernel,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    carrier: Any,
    fixture: str,
) -> None:
    request.getfixturevalue(fixture)
    serve(carrier)
    assert not told(caplog)


@pytest.mark.parametrize("fixture", ["plugin", "sleeping"])
@pytest.mark.parametrize("key", ["client", "server", "http_version", "type", "asgi"])
def test_nothing_that_a_scope_may_have_is_an_error(
    kernel: Kernel,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    key: str,
    fixture: str,
) -> None:
    request.getfixturevalue(fixture)
    kernel.answer = 1
    for value in (*NOT_AN_END, ("192.0.2.2", [8080]), ([], {}), object(), 2, b"1.1"):
        propagate.extract({**SCOPE, key: value})
        watch._quiet_until.clear()
    for value in (*NOT_AN_END, object(), 8080, 1.0):
        for name in ("SERVER_PORT", "SERVER_PROTOCOL", "wsgi.input", "gunicorn.socket"):
            propagate.extract({**ENVIRON, name: value})
            watch._quiet_until.clear()
    told(caplog)
