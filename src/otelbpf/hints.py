# SPDX-License-Identifier: Apache-2.0
"""notices -> sentences: which connections are not measured, why, and what to do about it.

Knows nothing of the kernel. What is not certain is not said: a wrong hint is worse than none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto

from otelbpf.notices import Notice
from otelbpf.records import NoticeKind

# How long connections of one cause are counted before they are told of.
_GATHERED_S = 1.0
# They are told of again when there are so many times as many.
_GROWN = 10
_LISTENERS_MOST = 4
_PROTOCOLS = {
    NoticeKind.TLS: ("TLS", "which is not read: measure what ends it, behind it"),
    NoticeKind.HTTP2: ("HTTP/2", "which is not read"),
    NoticeKind.NOT_HTTP: ("no HTTP/1", "and are not read"),
}


class Way(Enum):
    """How bytes come to a socket unseen."""

    #: It is not known by which interface.
    UNKNOWN = auto()
    #: By an interface that is not measured.
    UNMEASURED = auto()
    #: By one that cannot be: its packets have no Ethernet header.
    NO_ETHERNET = auto()
    #: By one that is, where somebody's program comes first.
    BEHIND = auto()
    #: By one that is, for another port.
    REDIRECTED = auto()
    #: By one that is, in a way that is not known.
    HIDDEN = auto()


@dataclass(frozen=True)
class Cause:
    """Why connections are not measured.

    Attributes:
        port: the server's.
        is_client: is it an upstream's?
        way: of those whose bytes are unseen.
        interface: by which they come.
        detail: who comes first, or the port on the wire.
    """

    kind: NoticeKind
    port: int
    is_client: bool
    interface: str = ""
    way: Way = Way.UNKNOWN
    detail: str = ""

    def sentence(self, count: int) -> str:
        """For people, of so many connections."""
        if self.kind in _PROTOCOLS:
            what, therefore = _PROTOCOLS[self.kind]
            verb = "is" if count == 1 else "are"
            if count == 1:
                therefore = therefore.replace("are not", "is not")
            return f"{_connections(count)} to {self._whose} {verb} {what}, {therefore}"
        return f"{self._unseen(count)}{self._explanation}"

    @property
    def _whose(self) -> str:
        return f"upstream port {self.port}" if self.is_client else f"port {self.port}"

    def _unseen(self, count: int) -> str:
        """Which bytes pass, and where."""
        one = count == 1
        if self.kind is NoticeKind.UNSEEN_OUT:
            what = "requests" if self.is_client else "responses"
            start = f"the {what} of {_connections(count)} to {self._whose} leave by"
        elif self.is_client:
            start = f"the responses of {_connections(count)} to {self._whose} come in on"
        else:
            start = f"{_connections(count)} to {self._whose} {'comes' if one else 'come'} in on"
        return f"{start} {self.interface or 'an interface'}"

    @property
    def _explanation(self) -> str:
        if self.way is Way.UNMEASURED:
            return f", which is not measured: add --interface {self.interface}"
        if self.way is Way.NO_ETHERNET:
            return ", which cannot be measured: its packets have no Ethernet header"
        if self.way is Way.BEHIND:
            return f", where {self.detail} keeps them from otelbpf"
        if self.way is Way.REDIRECTED:
            return (
                f" for port {self.detail}, and are redirected to there: measure --port "
                f"{self.detail} instead, without the stamps of the sockets"
            )
        if self.way is Way.HIDDEN:
            return (
                ", which is measured, and are not seen there: REDIRECT, DNAT or IPsec hides them, "
                "or a program before otelbpf's"
            )
        return " that is not measured"


def _connections(count: int) -> str:
    return "1 connection" if count == 1 else f"{count} connections"


@dataclass
class _Tally:
    count: int
    due_s: float
    told: int = 0


class Hints:
    """Gathers causes, and says each in time."""

    def __init__(self) -> None:
        self._tallies: dict[Cause, _Tally] = {}

    def add(self, causes: Iterable[Cause], now_s: float) -> None:
        """One for each connection."""
        for cause in causes:
            tally = self._tallies.setdefault(cause, _Tally(0, now_s + _GATHERED_S))
            tally.count += 1

    def due(self, now_s: float) -> list[str]:
        """What is to be said now: each cause once, and again when there are ten times as many."""
        said = []
        for cause, tally in self._tallies.items():
            if now_s >= tally.due_s and tally.count >= tally.told * _GROWN:
                tally.told = tally.count
                said.append(cause.sentence(tally.count))
        return said


def nobody_listens(port: int, listeners: Mapping[int, str], where: str) -> str:
    """That nobody listens on a measured port.

    Args:
        listeners: who listens on the other ports; empty: it is not known who.
        where: the name of the network namespace; empty: the agent's own.
    """
    others = [
        f"{name or 'somebody'} listens on {port}"
        for port, name in sorted(listeners.items())[:_LISTENERS_MOST]
    ]
    more = len(listeners) - len(others)
    namespace = f" in network namespace {where}" if where else " here"
    return f"nobody listens on port {port}{namespace}" + (
        f"; {', '.join(others)}{f', and on {more} more' if more > 0 else ''}" if others else ""
    )
