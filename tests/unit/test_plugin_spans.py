# SPDX-License-Identifier: Apache-2.0
"""What becomes of spans: who gets a parent, what the marks say, and that requests go on."""

from __future__ import annotations

import errno
import logging
import math
from typing import Any

import pytest
from opentelemetry import propagate, trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import Tracer
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    ParentBasedTraceIdRatio,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from plugin_lab import CALLER, TRACE, Kernel, Spans, ids, kernel, plugin, sleeping, traceparent

from otelbpf_plugin import OtelbpfInstrumentor, OtelbpfPropagator, marker, propagator, spans
from otelbpf_plugin.propagator import ARRIVAL_KEY
from otelbpf_plugin.watch import watch

__all__ = ["kernel", "plugin", "sleeping"]  # fixtures

SCOPE = {
    "type": "http", "asgi": {}, "client": ("192.0.2.1", 40_000), "server": ("192.0.2.2", 8080),
}  # fmt: skip


class ScopeGetter:
    """Of headers beside the scope."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers

    def get(self, _: object, key: str) -> list[str] | None:
        return [self._headers[key]] if key in self._headers else None

    def keys(self, _: object) -> list[str]:
        return list(self._headers)


def arrive(header: str | None = None, scope: Any = SCOPE) -> Context:
    headers = {} if header is None else {"traceparent": header}
    return propagate.extract(scope, getter=ScopeGetter(headers))  # type: ignore[arg-type]


def serve(made: Spans, context: Context, kind: SpanKind = SpanKind.SERVER) -> trace.Span:
    span = made.tracer.start_span("GET /", context, kind)
    span.end()
    return span


@pytest.mark.parametrize("header", [None, traceparent(7)], ids=["root", "child"])
def test_a_request_that_was_found_has_the_mark_s_span_above_it(
    kernel: Kernel, plugin: OtelbpfInstrumentor, header: str | None
) -> None:
    made = Spans()
    serve(made, arrive(header))
    (span,), (told,) = made.ended, kernel.starts
    assert ids(span) == (told.trace_id, told.span_id)
    assert told.peer == ("192.0.2.1", 40_000)
    assert told.flags & 1 == 1
    assert told.parent_span_id == (CALLER.format(7) if header else "0" * 16)
    if header:
        assert told.trace_id == TRACE.format(7)
    assert span.parent.is_remote
    assert told.span_id not in (format_span_id(span.context.span_id), "0" * 16)
    assert [end.mark for end in kernel.ends] == [told.mark]


@pytest.mark.parametrize("answer", [errno.EPERM, errno.ENOPROTOOPT, errno.EBADF])
@pytest.mark.parametrize("header", [None, traceparent(7)], ids=["root", "child"])
def test_a_request_that_was_not_found_is_as_without_the_plugin(
    kernel: Kernel, plugin: OtelbpfInstrumentor, header: str | None, answer: int
) -> None:
    kernel.answer = answer
    made = Spans()
    serve(made, arrive(header))
    (span,) = made.ended
    assert ids(span)[1] == (CALLER.format(7) if header else "")
    assert len(kernel.starts) == 1
    assert not kernel.ends
    assert "end" not in vars(span)


@pytest.mark.parametrize(
    ("sampler", "header", "sampled"),
    [
        (DEFAULT_ON, traceparent(1, "01"), True),
        (DEFAULT_ON, traceparent(1, "00"), False),
        (DEFAULT_ON, None, True),
        (DEFAULT_OFF, None, False),
        (DEFAULT_OFF, traceparent(1, "01"), True),
        (ALWAYS_ON, traceparent(1, "00"), True),
        (ALWAYS_OFF, traceparent(1, "01"), False),
        (TraceIdRatioBased(0.0), traceparent(1, "01"), False),
        (ParentBasedTraceIdRatio(1.0), None, True),
        (ParentBasedTraceIdRatio(0.0), traceparent(1, "01"), True),
        (ParentBasedTraceIdRatio(0.0), None, False),
    ],
)
def test_the_sampler_decides_as_without_the_plugin_and_the_kernel_hears_of_it(
    kernel: Kernel, plugin: OtelbpfInstrumentor, sampler: Any, header: str | None, sampled: bool
) -> None:
    made = Spans(sampler)
    span = serve(made, arrive(header))
    (told,) = kernel.starts
    assert told.flags & 1 == sampled == span.get_span_context().trace_flags.sampled
    assert told.trace_id == format_trace_id(span.get_span_context().trace_id)
    assert told.parent_span_id == (CALLER.format(1) if header else "0" * 16)
    assert len(made.ended) == len(kernel.ends) == sampled
    assert [ids(span)[1] for span in made.ended] == [told.span_id] * sampled


def test_the_trace_state_is_kept(kernel: Kernel, plugin: OtelbpfInstrumentor) -> None:
    made = Spans(DEFAULT_ON)
    getter = ScopeGetter({"traceparent": traceparent(1), "tracestate": "a=1"})
    serve(made, propagate.extract(SCOPE, getter=getter))  # type: ignore[arg-type]
    (span,) = made.ended
    assert span.parent.trace_state["a"] == span.context.trace_state["a"] == "1"


@pytest.mark.parametrize("kind", [each for each in SpanKind if each is not SpanKind.SERVER])
def test_only_server_spans_are_marked(
    kernel: Kernel, plugin: OtelbpfInstrumentor, kind: SpanKind
) -> None:
    made = Spans()
    serve(made, arrive(traceparent(1)), kind)
    assert not kernel.told
    assert ids(made.ended[0])[1] == CALLER.format(1)


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF], ids=["recorded", "not recorded"])
def test_a_request_has_one_server_span_of_its_own(
    kernel: Kernel, plugin: OtelbpfInstrumentor, sampler: Any
) -> None:
    """Neither a nested one nor another one of the same context is it."""
    made = Spans(sampler)
    context = arrive(traceparent(1))
    token = attach(context)
    with made.tracer.start_as_current_span("outer", kind=SpanKind.SERVER) as outer:
        with made.tracer.start_as_current_span("inner", kind=SpanKind.SERVER):
            pass
        serve(made, context)
    detach(token)
    assert len(kernel.starts) == 1
    if sampler is ALWAYS_ON:
        inner, again, _ = made.ended
        assert ids(inner)[1] == format_span_id(outer.get_span_context().span_id)
        assert ids(again)[1] == CALLER.format(1)


def test_a_span_below_one_of_this_process_is_not_the_request_s(
    kernel: Kernel, plugin: OtelbpfInstrumentor
) -> None:
    made = Spans()
    with made.tracer.start_as_current_span("job") as job:
        serve(made, propagate.extract(SCOPE, trace.set_span_in_context(job)))
    assert not kernel.told


def test_messages_and_headers_are_no_requests(kernel: Kernel, plugin: OtelbpfInstrumentor) -> None:
    made = Spans()
    serve(made, propagate.extract({"traceparent": traceparent(1)}))
    assert not kernel.told
    assert ids(made.ended[0])[1] == CALLER.format(1)


def test_a_tracer_that_is_off_marks_nothing(
    kernel: Kernel, plugin: OtelbpfInstrumentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tracer, "_is_enabled", lambda _: False)
    serve(Spans(), arrive(traceparent(1)))
    assert not kernel.told


def test_a_span_ends_once(kernel: Kernel, plugin: OtelbpfInstrumentor) -> None:
    made = Spans()
    span = made.tracer.start_span("GET /", arrive(), SpanKind.SERVER)
    span.end(end_time=2**60)
    span.end()
    assert len(kernel.ends) == len(made.ended) == 1
    assert made.ended[0].end_time == 2**60


def test_ids_are_new_even_if_the_application_seeds_its_random_numbers(
    kernel: Kernel, plugin: OtelbpfInstrumentor
) -> None:
    import random

    made, state = Spans(), random.getstate()
    for _ in range(23):
        random.seed(0)
        serve(made, arrive(traceparent(1)))
    random.setstate(state)
    assert len({told.span_id for told in kernel.starts}) == 23


@pytest.mark.parametrize("faulty", ["connection_of", "tell START", "tell END", "_new_span_id"])
def test_a_fault_of_ours_is_told_once_and_disturbs_no_request(
    kernel: Kernel,
    plugin: OtelbpfInstrumentor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    faulty: str,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    def tell(fd: int, option: int, mark: bytes) -> int:
        if option == (marker.START if faulty == "tell START" else marker.END):
            fail()
        return kernel.tell(fd, option, mark)

    if faulty == "connection_of":
        monkeypatch.setattr("otelbpf_plugin.propagator.connection_of", fail)
    elif faulty == "_new_span_id":
        monkeypatch.setattr(spans, "_new_span_id", fail)
    else:
        monkeypatch.setattr(marker, "tell", tell)
    made = Spans()
    for number in range(23):
        serve(made, arrive(traceparent(number)))
    assert [ids(span)[0] for span in made.ended] == [TRACE.format(n) for n in range(23)]
    records = [each for each in caplog.records if each.name == "otelbpf_plugin"]
    assert [(each.levelno, each.exc_info[0]) for each in records] == [
        (logging.WARNING, RuntimeError)
    ]


def test_the_propagator_writes_nothing() -> None:
    carrier: dict[str, str] = {}
    OtelbpfPropagator().inject(carrier)
    assert carrier == {}
    assert OtelbpfPropagator().fields == set()


@pytest.mark.parametrize("awake", [False, True], ids=["asleep", "awake"])
def test_it_is_added_once_and_all_is_undone(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, awake: bool
) -> None:
    before, start_span = propagate.get_global_textmap(), Tracer.start_span
    instrumentor = OtelbpfInstrumentor()
    try:
        theirs = TraceContextTextMapPropagator()
        for installed in (
            theirs,
            CompositePropagator([theirs]),
            CompositePropagator([CompositePropagator([theirs, OtelbpfPropagator()])]),
        ):
            propagate.set_global_textmap(installed)
            instrumentor.instrument()
            kernel.measured = None if awake else set()
            if awake:
                arrive()
            seen: list[object] = []
            with monkeypatch.context() as patching:
                patching.setattr(propagator, "server_of", seen.append)
                getter = ScopeGetter({"traceparent": traceparent(1)})
                context = propagate.extract(SCOPE, getter=getter)  # type: ignore[arg-type]
            assert seen == [SCOPE]
            assert (ARRIVAL_KEY in context) == awake == (Tracer.start_span is not start_span)
            assert trace.get_current_span(context).get_span_context().is_valid
            instrumentor.uninstrument()
            assert propagate.get_global_textmap() is installed
            assert Tracer.start_span is start_span
            assert watch.nobody_until == math.inf  # where the propagator stays, it does nothing
    finally:
        propagate.set_global_textmap(before)


def test_an_sdk_without_the_attribute_is_left_alone(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Slotted:
        parent = None

        def __init__(self, *_: object, **__: object) -> None: ...

    monkeypatch.setattr(spans, "ReadableSpan", Slotted)
    start_span = Tracer.start_span
    instrumentor = OtelbpfInstrumentor()
    for _ in range(2):
        instrumentor.instrument()
        assert Tracer.start_span is start_span
        instrumentor.uninstrument()
    assert [each.name for each in caplog.records] == ["otelbpf_plugin"]


def test_arguments_that_a_later_sdk_may_have_are_handed_on() -> None:
    seen = {}

    def start_span(self: object, name: str, *arguments: object, **later: object) -> str:
        seen.update(later, name=name)
        return "span"

    assert spans.marking(start_span)(None, "x", colour="blue") == "span"
    assert seen == {"colour": "blue", "name": "x"}
