# SPDX-License-Identifier: Apache-2.0
"""What becomes of a server span when it starts: the kernel is told, and the span given a parent.

There is a new level between the caller's span and the application's only where the kernel has
found the request, and so will export a span with that id.
"""

from __future__ import annotations

import functools
import os
from typing import Any, Callable

from opentelemetry.context import Context, get_current
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Span, SpanContext, SpanKind, get_current_span

from otelbpf_plugin import marker
from otelbpf_plugin.addresses import reached_by
from otelbpf_plugin.connection import ANY_ADDRESS, Connection, OwnSocket
from otelbpf_plugin.log import warn_once
from otelbpf_plugin.propagator import ARRIVAL_KEY, Arrival
from otelbpf_plugin.watch import watch

# Looking it up in the enumeration takes longer than all else here.
_SERVER = SpanKind.SERVER


def parent_can_be_set() -> bool:
    """Does a span of this SDK have the parent that we give it? It is the SDK's own attribute."""
    parent = SpanContext(1, 1, is_remote=True)
    span = ReadableSpan("probe", parent=None)
    if not hasattr(span, "_parent"):
        return False
    span._parent = parent
    return span.parent is parent


def marking(start_span: Callable[..., Span]) -> Callable[..., Span]:
    """The SDK's Tracer.start_span, and then the mark of a request.

    It has the arguments of the API's `Tracer.start_span`, and hands on those that it may get later.
    """

    @functools.wraps(start_span)
    def wrapper(
        self: Any,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Any = None,
        links: Any = (),
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        **later: Any,
    ) -> Span:
        if later:
            span = start_span(
                self,
                name,
                context,
                kind,
                attributes,
                links,
                start_time,
                record_exception,
                set_status_on_exception,
                **later,
            )
        else:  # is what costs least, and always the case so far
            span = start_span(
                self,
                name,
                context,
                kind,
                attributes,
                links,
                start_time,
                record_exception,
                set_status_on_exception,
            )
        if kind is _SERVER:
            # Of a Context's values nothing is known; only our propagator has this one's key.
            around = get_current() if context is None else context
            arrival: Arrival | None = around.get(ARRIVAL_KEY)  # type: ignore[assignment]
            if arrival is not None and not arrival.used:
                _mark(span, context, arrival)
        return span

    return wrapper


def _mark(span: Span, context: Context | None, arrival: Arrival) -> None:
    try:
        _try_to_mark(span, context, arrival)
    except Exception as error:  # a request goes on, whatever is wrong here
        warn_once("cannot mark a request", error)


def _try_to_mark(span: Span, context: Context | None, arrival: Arrival) -> None:
    caller = get_current_span(context).get_span_context()
    own = span.get_span_context()
    # A span below another one of this process is not the request's; and a tracer that is off
    # hands back its caller's.
    if (caller.is_valid and not caller.is_remote) or not own.is_valid or own == caller:
        return
    arrival.used = True
    span_id = _new_span_id()
    fd, ends = _addressed(arrival.connection)
    mark = marker.MARK.pack(
        own.trace_id.to_bytes(16, "big"),
        span_id,
        caller.span_id.to_bytes(8, "big"),
        *ends,
        own.trace_flags,
    )
    # A span that is not recorded is told too: caller, kernel and application are to agree on it.
    answer = marker.tell(fd, marker.START, mark)
    watch.hear(answer, arrival.server, arrival.connection)
    if answer == marker.JOINED and span.is_recording():
        # The SDK's own, and not in the API: parent_can_be_set() has looked for it.
        span._parent = SpanContext(  # type: ignore[attr-defined]
            own.trace_id,
            int.from_bytes(span_id, "big"),
            is_remote=True,  # the kernel's span is another process's
            trace_flags=own.trace_flags,
            trace_state=own.trace_state,
        )
        _tell_end(span, fd, mark)


def _addressed(connection: Connection) -> tuple[int, tuple[bytes, bytes, int, int]]:
    """The socket to tell of a connection, and a mark's peer, local address, and their ports."""
    if isinstance(connection, OwnSocket):
        return connection.fd, (bytes(16), bytes(16), 0, 0)
    local = connection.local
    if local == ANY_ADDRESS:
        local = reached_by(connection)
    return marker.any_socket(), (
        connection.peer, local, connection.peer_port, connection.local_port
    )  # fmt: skip


def _new_span_id() -> bytes:
    """From the system: an application may seed Python's generator anew for each request."""
    while True:
        span_id = os.urandom(8)
        if any(span_id):
            return span_id


def _tell_end(span: Span, fd: int, mark: bytes) -> None:
    """Has this one span tell when it ends. Others are left alone, and pay nothing."""
    end = span.end

    def tell_and_end(*arguments: Any, **keywords: Any) -> None:
        try:
            # Only the first end counts, as in the SDK; nor does the span refer to itself any more.
            if vars(span).pop("end", None) is not None:
                marker.tell(fd, marker.END, mark)
        except Exception as error:
            warn_once("cannot tell the end of a request", error)
        end(*arguments, **keywords)

    span.end = tell_and_end  # type: ignore[method-assign]  # which is what is wanted
