# SPDX-License-Identifier: Apache-2.0
"""Notes in the Context which connection a request came on."""

from __future__ import annotations

from collections.abc import Hashable
from time import monotonic
from typing import Any

from opentelemetry.context import Context, create_key, set_value
from opentelemetry.propagators import textmap

from otelbpf_plugin.connection import (
    Connection,
    Unknown,
    connection_of,
    is_asgi,
    server_end_of,
    server_of,
)
from otelbpf_plugin.log import warn_once
from otelbpf_plugin.watch import watch

#: Where a Context has its Arrival.
ARRIVAL_KEY = create_key("otelbpf-arrival")


class Arrival:
    """A request that came on a connection.

    Attributes:
        server: what `watch` knows its server by.
        used: a span was started for it; there is one for each request.
    """

    __slots__ = ("connection", "server", "used")

    def __init__(self, connection: Connection, server: Hashable) -> None:
        self.connection = connection
        self.server = server
        self.used = False


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
        """Notes the connection of a request, where its server is measured.

        Else it has the kernel asked about that, but once a second.

        Args:
            carrier: what the server's instrumentation has of the request.
        Returns:
            The same context, or one with an Arrival more.
        """
        # What comes first is all that a request costs while nobody is measured.
        if monotonic() < watch.nobody_until:
            return Context() if context is None else context
        if context is None:
            context = Context()
        try:
            server = server_of(carrier)
            if watch.is_quiet(server):
                return context
            if not watch.is_awake:
                if not watch.ask(server, server_end_of(carrier)):
                    return context
                # Before, nobody watched who is put into a scope.
                if watch.is_awake and is_asgi(carrier):
                    return context
            connection = connection_of(carrier)
            if isinstance(connection, Unknown):
                if watch.ask(server, server_end_of(carrier)):
                    warn_once(f"does not join requests with otelbpf's spans: {connection.why}")
            elif connection is not None and watch.is_awake:
                context = set_value(ARRIVAL_KEY, Arrival(connection, server), context)
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
