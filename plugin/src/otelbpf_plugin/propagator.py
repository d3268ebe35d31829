# SPDX-License-Identifier: Apache-2.0
"""Notes in the Context which connection a request came on."""

from __future__ import annotations

from typing import Any

from opentelemetry.context import Context, create_key, get_value, set_value
from opentelemetry.propagators import textmap

from otelbpf_plugin import marker
from otelbpf_plugin.connection import connection_of
from otelbpf_plugin.log import warn_once

_ARRIVAL_KEY = create_key("otelbpf-arrival")


class Arrival:
    """A request that came on a connection.

    Attributes:
        connection: a mark's first 36 bytes.
        used: a span was started for it; there is one for each request.
    """

    __slots__ = ("connection", "used")

    def __init__(self, connection: bytes) -> None:
        self.connection = connection
        self.used = False


def arrival_in(context: Context | None) -> Arrival | None:
    """The request that extract() noted in a Context (None: in the current one)."""
    arrival = get_value(_ARRIVAL_KEY, context)
    return arrival if isinstance(arrival, Arrival) else None


class OtelbpfPropagator(textmap.TextMapPropagator):
    """Reads no header and writes none: it knows the request itself when it is handed one.

    It invents nothing: the Context's span is the one that other propagators found.
    """

    def extract(
        self,
        carrier: Any,
        context: Context | None = None,
        getter: textmap.Getter[Any] = textmap.default_getter,
    ) -> Context:
        """Notes the connection of a request, while somebody listens for it.

        Args:
            carrier: what the server's instrumentation has of the request.
        Returns:
            The same context, or one with an Arrival more.
        """
        if context is None:
            context = Context()
        if not marker.listening():
            return context
        try:
            connection = connection_of(carrier)
            if connection is not None:
                context = set_value(_ARRIVAL_KEY, Arrival(connection), context)
        except Exception as error:  # a request goes on, whatever is wrong here
            warn_once("cannot tell which connection a request came on", error)
        return context

    def inject(
        self,
        carrier: Any,
        context: Context | None = None,
        setter: textmap.Setter[Any] = textmap.default_setter,
    ) -> None:
        """Does nothing."""

    @property
    def fields(self) -> set[str]:
        """No header."""
        return set()
