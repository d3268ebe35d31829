# SPDX-License-Identifier: Apache-2.0
"""Who is measured: the kernel is asked, and by its answers the plugin wakes and sleeps.

Asleep, one request a second asks, whichever it is; the others pay a look at the clock. Only where
somebody measures another port of this network namespace has each server to ask for itself. Awake,
the answers to the marks tell, and a server that is not measured is left alone for a second.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from time import monotonic
from typing import TypeVar

from otelbpf_plugin import marker
from otelbpf_plugin.connection import Connection, OwnSocket, ServerEnd, end_of
from otelbpf_plugin.switch import Switch

#: How long an answer is good for.
QUIET_S = 1.0
#: How long nobody must have been measured for the plugin to sleep: agents are restarted.
LINGER_S = 5.0
_MOST_SERVERS = 256
_Value = TypeVar("_Value")


class Watch:
    """What the kernel said last. Threads may ask at a time; each leaves what it was told.

    A server is known by what connection.server_of() says.

    Attributes:
        nobody_until: until when, by time.monotonic(), nobody is measured, and no request looked at.
    """

    def __init__(self) -> None:
        self.nobody_until = math.inf
        self._switch: Switch | None = None
        self._quiet_until: dict[Hashable, float] = {}
        # Of the servers that were measured, while awake.
        self._ports: dict[Hashable, int] = {}
        self._measured_at = 0.0

    @property
    def is_awake(self) -> bool:
        """Are requests to be marked?"""
        return self._switch is not None and self._switch.is_on

    def begin(self, switch: Switch) -> None:
        """Has the next request ask. It is to be off."""
        self._switch = switch
        self.nobody_until = 0.0

    def end(self) -> None:
        """Puts the switch off, and asks no more."""
        switch, self._switch = self._switch, None
        if switch is not None:
            switch.close()
        self.nobody_until = math.inf
        self._quiet_until.clear()
        self._ports.clear()

    def is_quiet(self, server: Hashable) -> bool:
        """Was a server not measured just now?"""
        return self._quiet_until.get(server, 0.0) > monotonic()

    def ask(self, server: Hashable, end: ServerEnd) -> bool:
        """Asks the kernel whether a server is measured, and wakes or sleeps if that is to be.

        Returns:
            Is it measured? Of a server whose port is not known: is anyone in its network namespace?
        """
        switch = self._switch
        if switch is None:  # it has ended meanwhile
            self.nobody_until = math.inf
            return False
        now = monotonic()
        fd, port = _place(end)
        if port and marker.ask(fd, port):
            self._note(server, port)
            switch.on()
            return True
        _keep(self._quiet_until, server, now + QUIET_S)
        anyone = switch.is_on or marker.ask(fd, marker.ANY_PORT)
        if not switch.is_on:
            self.nobody_until = 0.0 if anyone else now + QUIET_S
        elif any(marker.ask(marker.any_socket(), each) for each in set(self._ports.values())):
            self._measured_at = now
        elif now - self._measured_at >= LINGER_S:
            self._ports.clear()
            switch.off()
        return anyone and not port

    def hear(self, answer: int, server: Hashable, connection: Connection) -> None:
        """Of the kernel's answer to the mark of a request."""
        if answer in marker.NOT_MEASURED:
            # Which it says too of a socket whose client has gone: it has no port any more.
            self.ask(server, end_of(connection))
        elif answer in (marker.JOINED, marker.UNKNOWN_REQUEST):
            if server in self._ports:
                self._measured_at = monotonic()
            else:
                self._note(server, _place(end_of(connection))[1])

    def _note(self, server: Hashable, port: int) -> None:
        _keep(self._ports, server, port)
        self._measured_at = monotonic()


def _keep(where: dict[Hashable, _Value], server: Hashable, value: _Value) -> None:
    if len(where) >= _MOST_SERVERS:  # these are no servers, but what clients say
        where.clear()
    where[server] = value


def _place(end: ServerEnd) -> tuple[int, int]:
    """The socket to ask on, and the port to ask about; ANY_PORT: it has none, or none is known."""
    # A server's own socket may be of another network namespace, from which it was inherited.
    port = marker.local_port(end.fd) if isinstance(end, OwnSocket) else end
    return (end.fd if isinstance(end, OwnSocket) and port else marker.any_socket()), port


#: This process's.
watch = Watch()
