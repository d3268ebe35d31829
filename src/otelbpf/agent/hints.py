# SPDX-License-Identifier: Apache-2.0
"""causes -> sentences: which connections are not measured, why, and what to do about it.

Knows nothing of the kernel. What is not certain is not said: a wrong hint is worse than none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from otelbpf.kernel.records import NoticeKind

# How long connections of one cause are counted before they are told of.
_GATHERED_S = 1.0
# They are told of again when there are so many times as many.
_GROWN = 10
_LISTENERS_MOST = 4
# How many causes are told of in so many seconds, and how many are known.
_TOLD_MOST, _TOLD_S = 10, 60.0
_CAUSES_MOST = 1_000
# Of one connection, and of several.
_PROTOCOLS = {
    kind: (f"is {what.format('is')}", f"are {what.format('are')}")
    for kind, what in (
        (NoticeKind.TLS, "TLS, which is not read: measure what ends it, behind it"),
        (NoticeKind.HTTP2, "HTTP/2, which is not read"),
        (NoticeKind.NOT_HTTP, "no HTTP/1, and {} not read"),
    )
}
_PROXY_HEADER = (
    "{} with a header of the PROXY protocol, and {} not read: name the proxies that send it with "
    "--proxy-protocol; one that is named sends it once, before the first request"
)
_PROTOCOLS[NoticeKind.PROXY_HEADER] = (
    _PROXY_HEADER.format("begins", "is"),
    _PROXY_HEADER.format("begin", "are"),
)


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
        if self.kind is NoticeKind.UNSEEN_OUT:
            what = "requests" if self.is_client else "responses"
            return f"the {what} of {whose} leave by {self.interface or 'a way'}"
        where = f"on {self.interface}" if self.interface else "by a way"
        if self.is_client:
            return f"the responses of {whose} come in {where}"
        return f"{whose} {'comes' if is_one else 'come'} in {where}"

    def _explanation(self, is_one: bool) -> str:
        if self.way is Way.UNMEASURED:
            return f", which is not measured: add --interface {self.interface}"
        if self.way is Way.NO_ETHERNET:
            return ", which cannot be measured: its packets have no Ethernet header"
        if self.way is Way.BEHIND:
            whose = "its" if is_one else "their"
            return f", where {self.detail} is before otelbpf, and may keep {whose} packets from it"
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
    """Gathers causes, and says each in time, but not too many at once."""

    def __init__(self) -> None:
        self._tallies: dict[Cause, _Tally] = {}
        self._told_s: deque[float] = deque(maxlen=_TOLD_MOST)

    def add(self, causes: Iterable[Cause], now_s: float) -> None:
        """One for each connection."""
        for cause in causes:
            if cause not in self._tallies and len(self._tallies) < _CAUSES_MOST:
                self._tallies[cause] = _Tally(0, now_s + _GATHERED_S)
            if cause in self._tallies:
                self._tallies[cause].count += 1

    def due(self, now_s: float, *, at_end: bool = False) -> list[str]:
        """What is to be said now: each cause once, and again when there are ten times as many.

        Args:
            at_end: nothing will be said later.
        """
        said: list[str] = []
        for cause, tally in self._tallies.items():
            if not (at_end or now_s >= tally.due_s) or tally.count < max(1, tally.told * _GROWN):
                continue
            is_full = len(self._told_s) == _TOLD_MOST and now_s - self._told_s[0] < _TOLD_S
            if len(said) == _TOLD_MOST or (is_full and not at_end):
                break
            tally.told = tally.count
            self._told_s.append(now_s)
            said.append(cause.sentence(tally.count))
        return said


def nobody_listens(port: int, listeners: Mapping[int, str], where: str) -> str:
    """That nobody listens on a measured port, from which nothing is known to lead elsewhere.

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
    return "; ".join(
        [
            f"nobody listens on port {port} {namespace}",
            *others[:_LISTENERS_MOST],
            "no request can come unless REDIRECT or DNAT changes the port",
        ]
    )
