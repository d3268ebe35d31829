# SPDX-License-Identifier: Apache-2.0
"""causes -> sentences: which connections are not measured, why, and what to do about it.

Knows nothing of the kernel. What is not certain is not said: a wrong hint is worse than none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from otelbpf.records import NoticeKind

# How long connections of one cause are counted before they are told of.
_GATHERED_S = 1.0
# They are told of again when there are so many times as many.
_GROWN = 10
_LISTENERS_MOST = 4
# Of one connection, and of several.
_PROTOCOLS = {
    kind: (f"is {what.format('is')}", f"are {what.format('are')}")
    for kind, what in (
        (NoticeKind.TLS, "TLS, which is not read: measure what ends it, behind it"),
        (NoticeKind.HTTP2, "HTTP/2, which is not read"),
        (NoticeKind.NOT_HTTP, "no HTTP/1, and {} not read"),
    )
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
    #: By one that is, for another port, which is not measured.
    REDIRECTED = auto()
    #: By one that is, for another address or port, where they are measured.
    READDRESSED = auto()
    #: By one that is, in a way that is not known.
    HIDDEN = auto()


@dataclass(frozen=True)
class Cause:
    """Why connections are not measured.

    Attributes:
        port: the server's.
        is_client: is it an upstream's?
        interface: of those whose bytes are unseen, by which they come, or leave.
        way: the way of them.
        detail: who comes first; or the port on the wire, or the address and port.
    """

    kind: NoticeKind
    port: int
    is_client: bool
    interface: str = ""
    way: Way = Way.UNKNOWN
    detail: str = ""

    def sentence(self, count: int) -> str:
        """For people, of so many connections."""
        port = f"upstream port {self.port}" if self.is_client else f"port {self.port}"
        whose = f"{count} connection{'s' * (count != 1)} to {port}"
        if self.kind in _PROTOCOLS:
            one, several = _PROTOCOLS[self.kind]
            return f"{whose} {one if count == 1 else several}"
        return f"{self._passage(whose, count == 1)}{self._explanation(count == 1)}"

    def _passage(self, whose: str, is_one: bool) -> str:
        """What passes where."""
        where = self.interface or "an interface"
        if self.kind is NoticeKind.UNSEEN_OUT:
            what = "requests" if self.is_client else "responses"
            return f"the {what} of {whose} leave by {where}"
        if self.is_client:
            return f"the responses of {whose} come in on {where}"
        return f"{whose} {'comes' if is_one else 'come'} in on {where}"

    def _explanation(self, is_one: bool) -> str:
        if self.way is Way.UNMEASURED:
            return f", which is not measured: add --interface {self.interface}"
        if self.way is Way.NO_ETHERNET:
            return ", which cannot be measured: its packets have no Ethernet header"
        if self.way is Way.BEHIND:
            whose = "its" if is_one else "their"
            return f", where {self.detail} keeps {whose} packets from otelbpf"
        if self.way is Way.REDIRECTED:
            return (
                f" to port {self.detail}, and REDIRECT or DNAT changes that: measure --port "
                f"{self.detail} instead; stamps of the sockets will be absent"
            )
        if self.way is Way.READDRESSED:
            return (
                f" to {self.detail}, and REDIRECT or DNAT changes that: measured without the "
                "stamps of the sockets"
            )
        if self.way is Way.HIDDEN:
            verb, whom = ("is", "it") if is_one else ("are", "them")
            return (
                f", which is measured, and {verb} not seen there: REDIRECT, DNAT, IPsec or "
                f"fragments may hide {whom}"
            )
        return " that is not measured"


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
    ports: dict[str, list[int]] = {}
    for other, name in sorted(listeners.items()):
        ports.setdefault(name or "somebody", []).append(other)
    others = [
        f"{name} listens on {', '.join(map(str, theirs[:_LISTENERS_MOST]))}"
        + (f" and {len(theirs) - _LISTENERS_MOST} more" if len(theirs) > _LISTENERS_MOST else "")
        for name, theirs in ports.items()
    ]
    namespace = f"in network namespace {where}" if where else "here"
    return "; ".join([f"nobody listens on port {port} {namespace}", *others[:_LISTENERS_MOST]])
