# SPDX-License-Identifier: Apache-2.0
"""Is the agent alive, and does it measure now? Answered to whoever probes it.

The answers are of the moment in which they are given: an agent that has ended, was killed or stands
still cannot leave a good one behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from http import HTTPStatus
from time import monotonic

from otelbpf.errors import UsageError
from otelbpf.export.http_port import HttpPort, MakePage, Page
from otelbpf.host import rights
from otelbpf.ledger.tally import Coverage, Gap
from otelbpf.protocols.urls import authority_of

# A turn of the agent's loop takes a small part of a second. This is more than a machine that is
# busy, or attaching to an interface that is there again, makes of it.
_STILL_S = 10.0

_NOT_MEASURED = {
    Gap.GONE: "gone",
    Gap.NAMESPACE_GONE: "gone with its network namespace",
    Gap.BEHIND: "behind somebody's program that keeps packets",
    Gap.REFUSED: "attaching to it refused",
}


class _Phase(Enum):
    LOADING = auto()
    MEASURING = auto()
    STOPPING = auto()


@dataclass(frozen=True)
class _Told:
    """What the agent has told last.

    Attributes:
        turned_s: when its loop began to turn, on the monotonic clock.
    """

    phase: _Phase = _Phase.LOADING
    turned_s: float = 0.0
    coverage: Mapping[str, Coverage] = field(default_factory=dict)


class Health:
    """What the agent tells of itself, in one thread, and what follows from it, in any other."""

    def __init__(self) -> None:
        # Replaced as a whole: whoever reads it needs no lock.
        self._told = _Told()

    def turns(self, coverage: Mapping[str, Coverage], now_s: float) -> None:
        """A turn of the agent's loop begins: all is attached, and requests are read.

        Args:
            coverage: whether the interfaces are measured that were asked for, by name.
            now_s: on the monotonic clock.
        """
        self._told = _Told(_Phase.MEASURING, now_s, coverage)

    def stops(self) -> None:
        """No more turn comes: what was measured is still sent."""
        self._told = _Told(_Phase.STOPPING)

    def not_alive(self, now_s: float) -> list[str]:
        """Why only a restart can help, a sentence each; nothing, if the agent is alive.

        While it loads and while it stops it is: both come to an end by themselves.
        """
        told = self._told
        return _standstill(told, now_s) + [
            f"interface {name}: {_gap(each, now_s)}: start otelbpf again for another one"
            for name, each in told.coverage.items()
            if each.gap is Gap.NAMESPACE_GONE
        ]

    def not_ready(self, now_s: float) -> list[str]:
        """Why not everything that was asked for is measured now; nothing, if it is."""
        told = self._told
        if told.phase is _Phase.LOADING:
            return ["loading programs"]
        if told.phase is _Phase.STOPPING:
            return ["stopping"]
        return _standstill(told, now_s) + [
            f"interface {name}: {_gap(each, now_s)}"
            for name, each in told.coverage.items()
            if each.gap is not None
        ]


def _standstill(told: _Told, now_s: float) -> list[str]:
    still_s = now_s - told.turned_s
    if told.phase is not _Phase.MEASURING or still_s < _STILL_S:
        return []
    return [f"the agent's loop has stood still for {still_s:.1f} s: requests are not read"]


def _gap(coverage: Coverage, now_s: float) -> str:
    assert coverage.gap is not None
    return f"{_NOT_MEASURED[coverage.gap]} for {now_s - coverage.gap_since_s:.1f} s"


@contextlib.contextmanager
def answering_probes(address: tuple[str, int] | None) -> Iterator[Health]:
    """Answers GET /livez and /readyz: 200 `ok`, or 503 with a line for each reason.

    Args:
        address: host and port to listen on; None: nobody is answered.
    Raises:
        UsageError: the address cannot be listened on.
    """
    health = Health()
    if address is None:
        yield health
        return
    host, port = address
    pages = {"/livez": _page(health.not_alive), "/readyz": _page(health.not_ready)}
    try:
        served = HttpPort(host, port, pages, "health")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot listen on {authority_of(host, port)} for probes ({reason}): "
            "give another address by --health"
        ) from error
    # What it answers has been told to it, which takes no right.
    rights.with_only((), served.start)
    try:
        yield health
    finally:
        served.stop()


def _page(reasons: Callable[[float], list[str]]) -> MakePage:
    def page(_accept: str) -> Page:
        lines = reasons(monotonic())
        text = "".join(f"{line}\n" for line in lines or ["ok"])
        status = HTTPStatus.SERVICE_UNAVAILABLE if lines else HTTPStatus.OK
        return Page.of(text.encode(), "text/plain; charset=utf-8", status)

    return page
