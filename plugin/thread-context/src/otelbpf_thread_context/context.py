# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry's current context, as by default, and for each thread a published copy of its span.

A thread that runs an event loop works on many requests in turn, and nobody is told of each turn: it
publishes nothing while the loop runs. Nor do threads publish where greenlets take turns.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry.context.context import Context
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_LIBRARY = Path(__file__).with_name("record.so")
# struct record: ids, valid, trace flags; size of attributes.
_SIZE = 28
_IDS, _VALID, _FLAGS = slice(0, 24), 24, 25
_NOTHING = bytes(26)
_GREENLETS = ("gevent", "eventlet")


class _Token:
    """What attach() returns.

    Attributes:
        inner: of the context variable.
        record: that was changed; None: none.
        before: what it held.
    """

    __slots__ = ("before", "inner", "record")

    def __init__(self, inner: Any, record: memoryview | None, before: bytes) -> None:
        self.inner = inner
        self.record = record
        self.before = before


class PublishingContext(ContextVarsRuntimeContext):
    """What OTEL_PYTHON_CONTEXT=otelbpf names."""

    def __init__(self) -> None:
        super().__init__()
        # Not CDLL, which lets other threads run during a call: this one takes no time.
        self._library = ctypes.PyDLL(str(_LIBRARY))
        self._library.otelbpf_thread_record.restype = ctypes.c_void_p
        self._thread = threading.local()

    def attach(self, context: Context) -> Any:
        """Makes a context the current one, and publishes its span.

        Returns:
            What detach() takes.
        """
        inner = super().attach(context)
        record = self._record()
        if record is None:
            return _Token(inner, None, b"")
        before = bytes(record[:26])
        _publish(record, _bytes_of(self._span_of(context)))
        return _Token(inner, record, before)

    def detach(self, token: Any) -> None:
        """Goes back to the context and to the published span that were before.

        Not to that context's own span: a thread that runs something in a copied context has
        published nothing of that, and would go on to when it works on something else.
        """
        try:
            super().detach(token.inner)  # refuses what was attached in another context
        finally:
            record = self._record()
            # What was attached in another thread says nothing of this one.
            if record is not None:
                _publish(record, token.before if token.record is record else _NOTHING)

    def _record(self) -> memoryview | None:
        """The calling thread's; None: it has none, since tasks or greenlets take turns on it."""
        try:
            record: memoryview | None = self._thread.record
        except AttributeError:
            record = self._thread.record = self._make_record()
        events = sys.modules.get("asyncio.events")
        if events is not None and events._get_running_loop() is not None:
            if record is not None:
                record[_VALID] = 0
            return None
        return record

    def _make_record(self) -> memoryview | None:
        if any(name in sys.modules for name in _GREENLETS):
            return None
        # Not before: OpenTelemetry imports this module in the middle of importing what it needs.
        from opentelemetry.trace import get_current_span

        self._span_of = get_current_span
        address = self._library.otelbpf_thread_record()
        return memoryview((ctypes.c_uint8 * _SIZE).from_address(address)).cast("B")


def _bytes_of(span: Span) -> bytes:
    """The record's beginning for a span, if that is one of this process."""
    context = span.get_span_context()
    if not context.is_valid or context.is_remote:
        return _NOTHING
    ids = context.trace_id.to_bytes(16, "big") + context.span_id.to_bytes(8, "big")
    return ids + bytes((1, context.trace_flags))


def _publish(record: memoryview, content: bytes) -> None:
    # A reader stops this thread, or is called by it: it sees these steps in this order.
    record[_VALID] = 0
    if content[_VALID]:
        record[_IDS] = content[_IDS]
        record[_FLAGS] = content[_FLAGS]
        record[_VALID] = 1
