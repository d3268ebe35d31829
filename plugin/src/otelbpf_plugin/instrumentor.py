# SPDX-License-Identifier: Apache-2.0
"""Puts the plugin into an application, and takes it out again."""

from __future__ import annotations

from collections.abc import Collection
from types import ModuleType
from typing import Any, Callable

import wrapt
from opentelemetry import propagate
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import Tracer

from otelbpf_plugin import child_agent, proxies, spans
from otelbpf_plugin.log import warn_once
from otelbpf_plugin.propagator import OtelbpfPropagator


class OtelbpfInstrumentor(BaseInstrumentor):
    """Marks the requests of this process for otelbpf, where it runs.

    With OTELBPF_AGENT=auto it also starts otelbpf.
    """

    _undo: list[Callable[[], None]]

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: it works with whatever server's instrumentation there is."""
        return ()

    def _instrument(self, **_: Any) -> None:
        self._undo = []
        if not spans.parent_can_be_set():
            warn_once("does nothing: a span of this version of the SDK cannot be given a parent")
        else:
            self._undo = [_add_propagator(), _wrap_start_span(), _watch_uvicorn()]
            child_agent.start_if_asked()

    def _uninstrument(self, **_: Any) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo = []


def _add_propagator() -> Callable[[], None]:
    before = propagate.get_global_textmap()
    propagators = _flat(before)
    if any(isinstance(each, OtelbpfPropagator) for each in propagators):
        return _nothing
    ours = CompositePropagator([*propagators, OtelbpfPropagator()])
    propagate.set_global_textmap(ours)

    def undo() -> None:
        if propagate.get_global_textmap() is ours:
            propagate.set_global_textmap(before)

    return undo


def _flat(propagator: TextMapPropagator) -> list[TextMapPropagator]:
    if type(propagator) is not CompositePropagator:
        return [propagator]
    return [inner for each in propagator._propagators for inner in _flat(each)]


def _wrap_start_span() -> Callable[[], None]:
    before = Tracer.start_span
    ours = spans.marking(before)
    Tracer.start_span = ours  # type: ignore[method-assign]

    def undo() -> None:
        # If another one's wrapper is around ours, both stay.
        if Tracer.start_span is ours:
            Tracer.start_span = before  # type: ignore[method-assign]

    return undo


def _watch_uvicorn() -> Callable[[], None]:
    """Wraps uvicorn's middleware now, or when it is imported: it need not be installed."""
    undos: list[Callable[[], None]] = []
    wanted = True

    def wrap(module: ModuleType) -> None:
        if wanted:  # such a hook cannot be taken back
            undos.append(proxies.keep_client(module))

    def undo() -> None:
        nonlocal wanted
        wanted = False
        for each in undos:
            each()

    wrapt.register_post_import_hook(wrap, proxies.MODULE)
    return undo


def _nothing() -> None:
    """What there is to undo where nothing was done."""
