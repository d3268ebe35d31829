# SPDX-License-Identifier: Apache-2.0
"""Puts the plugin into an application, and takes it out again."""

from __future__ import annotations

from collections.abc import Collection
from types import ModuleType
from typing import Any, Callable

import wrapt
from opentelemetry import propagate

# Its module opts out of being checked, so that nothing in it is known, nor a class below it.
from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
    BaseInstrumentor,
)
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import Tracer

from otelbpf_plugin import child_agent, proxies, spans
from otelbpf_plugin.log import warn_once
from otelbpf_plugin.propagator import OtelbpfPropagator
from otelbpf_plugin.switch import Patch, Switch
from otelbpf_plugin.watch import watch


class OtelbpfInstrumentor(BaseInstrumentor):  # type: ignore[misc]
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
            self._undo = [_add_propagator(), watch.end]
            watch.begin(_switch())
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


def _switch() -> Switch:
    """Of what is wrapped while somebody measures."""
    switch = Switch()
    switch.add(Patch(Tracer, "start_span", spans.marking))

    def add_uvicorn(module: ModuleType) -> None:
        patch = Patch(module.ProxyHeadersMiddleware, "__call__", proxies.keeping_client)
        switch.add(patch)

    # Now, or when it is imported: it need not be installed. Such a hook cannot be taken back.
    wrapt.register_post_import_hook(add_uvicorn, proxies.MODULE)
    return switch


def _nothing() -> None:
    """What there is to undo where nothing was done."""
